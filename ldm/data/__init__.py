"""Data: pack images with captions into tar shards, and read them in a reproducible order."""
