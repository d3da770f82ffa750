"""`tile=512` of the commands that pass images through a first stage."""

from typing import Any

from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder


def set_tile(first_stage: Autoencoder, tile: Any) -> None:
    """Let the first stage compute its feature maps in tiles of this height and width; None is no tiling."""
    if tile is not None and (type(tile) is not int or tile < 1):
        raise UserError(
            f"tile={tile} must be the height and width of a tile, a whole number of 1 or more, for example "
            "tile=512, or tile=null for no tiling"
        )
    first_stage.tile = tile
