"""How far two sets of images are apart as a whole: the Fréchet distance of simple features."""

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
            f"a covariance of {x.shape[1]} features needs more images than {min(len(x), len(y))}"
        )
    (m_x, c_x), (m_y, c_y) = _moments(x), _moments(y)
    values, vectors = torch.linalg.eigh(c_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C_x C_y)^1/2 through a symmetric matrix with the same eigenvalues
    cross = torch.linalg.eigvalsh(root @ c_y @ root).clamp(min=0).sqrt().sum()
    return ((m_x - m_y).square().sum() + c_x.trace() + c_y.trace() - 2 * cross).item()


def demo_features(images: Image, filters: int = 64, seed: int = 0) -> Float[Tensor, "b d"]:
    """Where which colour is, and what edges there are: 4 x 4 mean colours, mean answers of random filters.

    For drawn scenes, whose score is the checker's: this says whether the images as a whole are like the
    drawn ones. The filters are 7 x 7, of mean 0 and length 1; their answers are rectified.
    """
    weight = torch.randn(filters, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
    colours = adaptive_avg_pool2d(images, 4).flatten(1)
    edges = conv2d(images, weight.to(images)).relu().mean((2, 3))
    return torch.cat([colours, edges], 1)


def _moments(x: Tensor) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    x = x.double()
    return x.mean(0), torch.cov(x.T)
