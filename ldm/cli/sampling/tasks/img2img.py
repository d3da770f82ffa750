"""Images from prompts and another image."""

from functools import partial

from torch import Tensor

from ldm.cli.sampling.tasks.base import SamplingContext, Txt2Img, channels, encode_image
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.img2img import img2img, remaining
from ldm.errors import UserError


class Img2Img(Txt2Img):
    """Images from prompts and another image (SDEdit).

    Args:
        image: the image's file; it is scaled to cover the size, its middle cut out.
        strength: the share of the steps that are made, in (0, 1]: 0.3 changes little, 1 nearly all.
    """

    def __init__(self, image: str, strength: float) -> None:
        if not 0 < strength <= 1:
            raise UserError(f"task.strength is the share of the steps, in (0, 1], not {strength}")
        self.image, self.strength = image, strength

    def changed(
        self, inputs: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        picture = read_image(self.image, inputs.size, channels(inputs.model))
        z_0, times = encode_image(inputs.model, picture), remaining(times, self.strength)
        return partial(img2img, sampler=sampler, z_0=z_0, strength=1.0), times, len(times) - 1
