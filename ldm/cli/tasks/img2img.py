"""Pictures from prompts and another picture."""

from functools import partial

from torch import Tensor

from ldm.cli.tasks.base import Inputs, Txt2Img, channels, latent
from ldm.cli.tasks.files import read_picture
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.img2img import img2img, remaining
from ldm.errors import UserError


class Img2Img(Txt2Img):
    """Pictures from prompts and another picture (SDEdit).

    Args:
        image: the picture's file; it is scaled to cover the size, its middle cut out.
        strength: the share of the steps that are made, in (0, 1]: 0.3 changes little, 1 nearly all.
    """

    def __init__(self, image: str, strength: float) -> None:
        if not 0 < strength <= 1:
            raise UserError(f"task.strength is the share of the steps, in (0, 1], not {strength}")
        self.image, self.strength = image, strength

    def changed(self, inputs: Inputs, sampler: Sampler, times: Tensor) -> tuple[Sampler, Tensor, int]:
        picture = read_picture(self.image, inputs.size, channels(inputs.model))
        z_0, times = latent(inputs.model, picture), remaining(times, self.strength)
        return partial(img2img, sampler=sampler, z_0=z_0, strength=1.0), times, len(times) - 1
