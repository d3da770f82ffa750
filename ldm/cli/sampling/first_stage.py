"""Load the first stage, the autoencoder, of a model file."""

from ldm.cli.device import pick_device
from ldm.cli.sampling.tiling import set_tile
from ldm.interop import model_file
from ldm.interop.instantiate import build_untrusted
from ldm.networks.autoencoder import Autoencoder


def load_first_stage(path: str, device: str, tile: int | None = None) -> Autoencoder:
    """Load the autoencoder of a model file, built from its header.

    Args:
        tile: side length of the tiles in which it computes its maps; None for whole images.
    """
    tensors, config, _ = model_file.load(path, "autoencoder")
    autoencoder: Autoencoder = build_untrusted(config)
    model_file.load_state(autoencoder, tensors, path)
    set_tile(autoencoder, tile)
    return autoencoder.to(pick_device(device)).eval()
