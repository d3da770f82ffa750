"""How good images are: measures of finished images, none of which trains anything."""
