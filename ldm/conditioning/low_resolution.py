"""A small image that is to be drawn larger."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.conditioning.base import Size
from ldm.conditioning.rescalers import Rescaler
from ldm.conditioning.spatial import SpatialConditioner, pixels
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.networks.denoiser import sinusoidal_embedding
from ldm.typing import Conditioning


class LowResolution(SpatialConditioner):
    """alpha_s x + sigma_s eps beside z_t: a small image, noised if there is a schedule.

    The noise is the conditioning augmentation of Ho et al. (2022, Cascaded Diffusion Models). Its level s, 0
    for none, fills the vector: as the number s - 1 that `denoiser.num_labels` takes (the ×4 upscaler of
    Stable Diffusion 2; 0 stands for no noise, too), or as sinusoids. The null is zeros.

    Args:
        factor: pixels of the small image to a place of the latent, a side.
        schedule: of the noise; None for none, and no vector.
        level_channels: 1 for the number, more for sinusoids.
        most: the highest level that training draws; None is the schedule's last.
        key: the small image. With a schedule, `noise_level` and `noise` are read, too.
    """

    def __init__(
        self,
        dropout: float,
        factor: int,
        rescaler: Rescaler,
        schedule: Schedule | None = None,
        level_channels: int = 1,
        most: int | None = None,
        key: str = "small",
    ) -> None:
        super().__init__(key, dropout, factor, rescaler)
        if level_channels < 1 or (level_channels > 1 and level_channels % 2):
            raise InvalidValue(f"the level takes 1 channel or an even number of them, not {level_channels}")
        self.schedule, self.level_channels = schedule, level_channels
        self.most = 0 if schedule is None else schedule.num_steps if most is None else most

    @property
    def keys(self) -> tuple[str, ...]:
        """The image, and what noises it."""
        return (self.key,) if self.schedule is None else (self.key, "noise_level", "noise")

    def read(self, batch: Mapping[str, Any], size: Size | None) -> tuple[Tensor, ...]:
        """The image, and the level and the noise if it is noised."""
        return tuple(batch[key] for key in self.keys)

    def channels(self, values: Any) -> Float[Tensor, "b c h w"]:
        return pixels(values.to(self.device))

    def forward(self, values: tuple[Tensor, ...]) -> Conditioning:
        """The condition of each image."""
        x = self.channels(values[0])
        if self.schedule is None:
            return self.told(x)
        level, noise = values[1].to(self.device), values[2].to(self.device)
        s = level.float()
        cond = self.told(self.schedule.alpha(s) * x + self.schedule.sigma(s) * noise)
        return Conditioning(cond.context, self.level(level), cond.concat)

    def level(self, level: Int64[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """What the network is told of the noise."""
        assert self.schedule is not None
        told = self.schedule.network_time(level.float()).clamp(min=0)
        return told[:, None] if self.level_channels == 1 else sinusoidal_embedding(told, self.level_channels)

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Zeros."""
        cond = super().null(n, size)
        if self.schedule is not None:
            cond.vector = torch.zeros(n, self.level_channels, device=self.device)
        return cond
