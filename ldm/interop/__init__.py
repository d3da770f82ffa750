"""Files that hold weights: ours, and other programs' by tables of names."""
