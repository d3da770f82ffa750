"""One module per kind of batch field: image, caption, class, map, mask, low-resolution image."""
