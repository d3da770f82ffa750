"""Preparing data once: write, index and verify shards, cache latents."""
