"""Latent diffusion models: an autoencoder, then a denoiser of its latents (Rombach et al. 2022)."""
