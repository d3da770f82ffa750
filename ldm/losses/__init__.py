"""Losses of the autoencoder: reconstruction, perceptual and adversarial."""
