"""Model files: their format, models built from them, and weights adapted to a model with more inputs."""
