"""A low-resolution image as a condition, for super-resolution."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.conditioning.base import Size
from ldm.conditioning.rescalers import Rescaler
from ldm.conditioning.spatial import SpatialConditioner, to_float_image
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.networks.denoiser import sinusoidal_embedding
from ldm.typing import Channels, Conditioning, Pixels, PositiveInt, Proportion


class LowResolution(SpatialConditioner):
    """alpha_s x + sigma_s eps concatenated to z_t: a small image, with noise if there is a schedule.

    The noise is the conditioning augmentation of Ho et al. (2022, Cascaded Diffusion Models). Its level s (0:
    no noise) fills the vector: as the label s - 1 for `denoiser.num_labels` (the ×4 upscaler of Stable
    Diffusion 2; s = 0 also gives label 0), or as a sinusoidal embedding. The null is zeros.

    Args:
        factor: width in pixels of the small image's cell at one latent position.
        schedule: of the noise; None for no noise and no vector.
        level_channels: 1 for the label, an even number for the sinusoidal embedding.
        max_noise_level: the highest level in training; None for the schedule's last.
        batch_key: of the small image. With a schedule, `noise_level` and `noise` are needed, too.
    """

    def __init__(
        self,
        dropout: Proportion,
        factor: Pixels,
        rescaler: Rescaler,
        schedule: Schedule | None = None,
        level_channels: Channels = 1,
        max_noise_level: PositiveInt | None = None,
        batch_key: str = "small",
    ) -> None:
        super().__init__(batch_key, dropout, factor, rescaler)
        if level_channels < 1 or (level_channels > 1 and level_channels % 2):
            raise InvalidValue(f"level_channels is 1 or an even number, got {level_channels}")
        if schedule is not None and max_noise_level is not None and max_noise_level > schedule.num_steps:
            raise InvalidValue(
                f"max_noise_level={max_noise_level} is above the schedule's num_steps={schedule.num_steps}"
            )
        self.schedule, self.level_channels = schedule, level_channels
        if schedule is None:
            self.max_noise_level = 0
        else:
            self.max_noise_level = schedule.num_steps if max_noise_level is None else max_noise_level

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """The small image, and with a schedule the noise level and the noise."""
        return (self.batch_key,) if self.schedule is None else (self.batch_key, "noise_level", "noise")

    def read(self, batch: Mapping[str, Any], size: Size | None) -> tuple[Tensor, ...]:
        """Return the small image, and with a schedule the noise level and the noise."""
        return tuple(batch[key] for key in self.batch_keys)

    def channels(self, values: Any) -> Float[Tensor, "b c h w"]:
        return to_float_image(values.to(self.device))

    def forward(self, values: tuple[Tensor, ...]) -> Conditioning:
        """Encode small images, with noise if there is a schedule."""
        x = self.channels(values[0])
        if self.schedule is None:
            return self.encode_map(x)
        level, noise = values[1].to(self.device), values[2].to(self.device)
        s = level.float()
        cond = self.encode_map(self.schedule.alpha(s) * x + self.schedule.sigma(s) * noise)
        return replace(cond, vector=self.embed_noise_level(level))

    def embed_noise_level(self, level: Int64[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Return the vector for a noise level."""
        assert self.schedule is not None
        label = self.schedule.network_time(level.float()).clamp(min=0)
        return (
            label[:, None] if self.level_channels == 1 else sinusoidal_embedding(label, self.level_channels)
        )

    def null(self, n: int, size: Size | None = None) -> Conditioning:
        """Return zeros."""
        cond = super().null(n, size)
        if self.schedule is not None:
            cond.vector = torch.zeros(n, self.level_channels, device=self.device)
        return cond
