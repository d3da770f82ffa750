"""The Fréchet distance between two sets of images, and simple features for the demo."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from ldm.errors import InvalidValue
from ldm.typing import Image


def frechet_distance(x: Float[Tensor, "a d"], y: Float[Tensor, "b d"]) -> float:
    """|m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^1/2) of means and covariances (Heusel et al. 2017, eq. 6)."""
    if min(len(x), len(y)) <= x.shape[1]:
        raise InvalidValue(
            f"the covariance of {x.shape[1]} features needs more than {min(len(x), len(y))} images"
        )
    (m_x, c_x), (m_y, c_y) = _moments(x), _moments(y)
    values, vectors = torch.linalg.eigh(c_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C_x C_y)^1/2 through a symmetric matrix with the same eigenvalues
    cross = torch.linalg.eigvalsh(root @ c_y @ root).clamp(min=0).sqrt().sum()
    return ((m_x - m_y).square().sum() + c_x.trace() + c_y.trace() - 2 * cross).item()


def demo_features(images: Image, filters: int = 64, seed: int = 0) -> Float[Tensor, "b d"]:
    """Return the mean colours of a 4 x 4 grid and the mean rectified responses of random 7 x 7 filters.

    For the demo's synthetic scenes: the scene checker scores single images, this compares their distribution
    with that of rendered scenes. The filters have mean 0 and norm 1.
    """
    weight = torch.randn(filters, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
    colours = adaptive_avg_pool2d(images, 4).flatten(1)
    edges = conv2d(images, weight.to(images)).relu().mean((2, 3))
    return torch.cat([colours, edges], 1)


def _moments(x: Tensor) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    x = x.cpu().double()  # Apple GPUs lack float64
    return x.mean(0), torch.cov(x.T)
