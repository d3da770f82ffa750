"""Offline preparation of data: write, index and verify shards, cache latents."""
