"""Synthetic captioned scenes, so that the whole pipeline runs and is scored without a download."""
