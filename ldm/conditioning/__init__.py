"""tau_theta(y): conditioners that encode text, classes, images and maps; one per file."""
