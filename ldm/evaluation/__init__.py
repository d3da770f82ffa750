"""How good pictures are: measures of finished pictures, none of which trains anything."""
