"""What the autoencoder is trained to make small: reconstruction, perceptual and adversarial losses."""
