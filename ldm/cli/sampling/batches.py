"""Sample images in batches, under one progress bar."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ldm.cli.device import autocast_for_sampling
from ldm.errors import UserError
from ldm.model import LatentDiffusion


def split_into_batches(n: int, batch_size: int) -> list[slice]:
    """Return the batches of n images, in order."""
    return [slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


@torch.no_grad()
def sample_batches(
    model: LatentDiffusion,
    n: int,
    batches: Sequence[slice],
    steps: int,
    trajectory: Callable[[slice], Iterator[Tensor]],
) -> Iterator[tuple[slice, Float[Tensor, "b c h w"]]]:
    """Yield each of these batches of n images, and its images in [-1, 1] on the CPU.

    UserError for images that are not finite.

    Args:
        steps: of the sampler, for the progress bar.
        trajectory: yields z_T and every z_t of the images of a slice, as `LatentDiffusion.trajectory` does.
    """
    device = next(model.denoiser.parameters()).device
    left = sum(part.stop - part.start for part in batches)
    # The bar appears after the first step, so that a UserError in a condition has a line of its own.
    with tqdm(total=n, initial=n - left, unit="image", miniters=0, delay=1e-3) as bar:
        for part in batches:
            with autocast_for_sampling(device):
                latents = trajectory(part)
                z_t = next(latents)  # z_T, which takes no step
                for step, z_t in enumerate(latents, 1):  # noqa: B007  the last one is decoded
                    bar.set_postfix_str(f"step {step}/{steps}", refresh=False)
                    bar.update(0)
                _check_finite(z_t, part, "the sampler gave", "use a lower scale, or another sampler")
                images = model.decode(z_t).float().cpu()
            _check_finite(images, part, "the first stage decoded", "use another first stage")
            yield part, images
            bar.update(part.stop - part.start)


def sample_in_batches(
    model: LatentDiffusion,
    n: int,
    batch_size: int,
    steps: int,
    trajectory: Callable[[slice], Iterator[Tensor]],
) -> Float[Tensor, "b c h w"]:
    """Sample n images, all of them held in memory; see `sample_batches`."""
    batches = split_into_batches(n, batch_size)
    return torch.cat([images for _, images in sample_batches(model, n, batches, steps, trajectory)])


def _check_finite(values: Tensor, part: slice, what: str, remedy: str) -> None:
    """Raise UserError for NaN or infinity, which would be saved as black or white pixels."""
    bad = (~values.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise UserError(f"{what} NaN or infinity for image {part.start + int(bad[0]) + 1}: {remedy}")
