"""Metrics of generated and reconstructed images; none of them is a training loss."""
