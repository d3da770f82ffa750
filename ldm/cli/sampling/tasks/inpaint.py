"""Inpainting with any model."""

from functools import partial

from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.cli.sampling.plan import Postprocess
from ldm.cli.sampling.tasks.base import SamplingContext, Txt2Img, encode_image, image_channels
from ldm.cli.sampling.tasks.inputs import Size, read_image, read_mask, restore_known_pixels
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.inpaint import inpaint, resample
from ldm.model import LatentDiffusion
from ldm.typing import PositiveInt


class Inpaint(Txt2Img):
    """Sample the masked part of an image with any model; every pixel outside of the mask stays.

    Args:
        image: path of the image.
        mask: path of a mask of the same size, white where the image is sampled.
        repeats, jump: run every `jump` steps `repeats` times, for a better fit (RePaint); 1 is once.
    """

    def __init__(self, image: str, mask: str, repeats: PositiveInt, jump: PositiveInt) -> None:
        self.image, self.mask, self.repeats, self.jump = image, mask, repeats, jump

    def prepare_sampler(
        self, context: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        model = context.model
        known = encode_image(model, read_image(self.image, context.size, image_channels(model)))
        # A latent position is sampled if any of its pixels is masked.
        white = read_mask(self.mask, self.image, context.size)
        mask = max_pool2d(white, model.first_stage.downsampling).to(known)
        inpainting: Sampler = partial(inpaint, sampler=sampler, known=known, mask=mask)
        if self.repeats == 1:
            return inpainting, times, len(times) - 1
        repeated: Sampler = partial(resample, sampler=inpainting, repeats=self.repeats, jump=self.jump)
        return repeated, times, self.repeats * (len(times) - 1)

    def postprocess(self, model: LatentDiffusion, size: Size) -> Postprocess:
        return restore_known_pixels(self.image, self.mask, size, image_channels(model))
