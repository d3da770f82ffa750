"""`tile=SIDE` of the commands that pass images through a first stage."""

from typing import Any

from ldm.errors import UserError
from ldm.networks.autoencoder import Autoencoder


def set_tile(first_stage: Autoencoder, tile: Any) -> None:
    """Have the first stage compute its maps in parts of this side, None whole; UserError for another side."""
    if tile is not None and (type(tile) is not int or tile < 1):
        raise UserError(
            f"tile={tile} is no side of a part of a map: give a whole number from 1 on, as tile=512, or "
            "tile=null for whole maps"
        )
    first_stage.tile = tile
