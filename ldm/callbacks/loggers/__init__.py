"""Lightning loggers: CSV, TensorBoard and W&B."""
