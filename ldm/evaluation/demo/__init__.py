"""Exact metrics of the demo's synthetic scenes."""
