"""Data: images with captions into tar shards, and back out of them in an order that is a pure function."""
