"""Sample many images in batches under one progress bar."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ldm.model import LatentDiffusion


@torch.no_grad()
def sample_in_batches(
    model: LatentDiffusion,
    n: int,
    batch_size: int,
    steps: int,
    trajectory: Callable[[slice], Iterator[Tensor]],
) -> Float[Tensor, "b c h w"]:
    """Sample n images in [-1, 1], returned on the CPU.

    Args:
        steps: of the sampler, for the progress bar.
        trajectory: yields z_T and every z_t of the images of a slice, as `LatentDiffusion.trajectory` does.
    """
    device, images = next(model.denoiser.parameters()).device, []
    # The bar appears after the first step, so that a UserError in a condition has a line of its own.
    with tqdm(total=n * steps, desc=f"{n} images", unit="step", delay=1e-3) as bar:
        for start in range(0, n, batch_size):
            part = slice(start, min(start + batch_size, n))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = trajectory(part)
                z_t = next(latents)  # z_T, which takes no step
                for z_t in latents:  # noqa: B007  the last one is decoded
                    bar.update(part.stop - part.start)
                images.append(model.decode(z_t).float().cpu())
    return torch.cat(images)
