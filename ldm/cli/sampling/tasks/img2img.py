"""Images from prompts and another image."""

from functools import partial
from typing import Annotated

from torch import Tensor

from ldm.cli.sampling.tasks.base import SamplingContext, Txt2Img, encode_image, image_channels
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.img2img import img2img, remaining_times
from ldm.errors import UserError
from ldm.typing import Range


class Img2Img(Txt2Img):
    """Sample images from prompts and another image (SDEdit).

    Args:
        image: path of the image; it is resized to cover the size and center-cropped.
        strength: fraction of the steps that are run, in (0, 1]: 0.3 changes little, 1 nearly everything.
    """

    def __init__(self, image: str, strength: Annotated[float, Range(1e-8, 1)]) -> None:
        if not 0 < strength <= 1:
            raise UserError(f"task.strength={strength} must be a fraction of the steps, in (0, 1]")
        self.image, self.strength = image, strength

    def prepare_sampler(
        self, context: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        x = read_image(self.image, context.size, image_channels(context.model))
        z_0, times = encode_image(context.model, x), remaining_times(times, self.strength)
        return partial(img2img, sampler=sampler, z_0=z_0, strength=1.0), times, len(times) - 1
