"""The part of a picture under a mask, by any model."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.cli.tasks.base import Inputs, Txt2Img, latent
from ldm.cli.tasks.files import Size, read_mask, read_picture
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.inpaint import inpaint, resample
from ldm.errors import UserError


class Inpaint(Txt2Img):
    """Pictures of which the part under a mask is drawn anew and the rest stays, by any model.

    Args:
        image: the picture's file.
        mask: a file of the same size, white where the picture is to be drawn.
        repeats, jump: every `jump` steps are made `repeats` times, for a better fit (RePaint); 1 is once.
    """

    def __init__(self, image: str, mask: str, repeats: int, jump: int) -> None:
        if repeats < 1 or jump < 1:
            raise UserError(f"task.repeats and task.jump are at least 1, not {repeats} and {jump}")
        self.image, self.mask, self.repeats, self.jump = image, mask, repeats, jump

    def changed(self, inputs: Inputs, sampler: Sampler, times: Tensor) -> tuple[Sampler, Tensor, int]:
        known = latent(inputs.model, read_picture(self.image, inputs.size))
        # A place of the latent is drawn anew if any of its pixels is.
        white = read_mask(self.mask, self.image, inputs.size)
        mask = max_pool2d(white, inputs.model.first_stage.downsampling).to(known)
        keeping: Sampler = partial(inpaint, sampler=sampler, known=known, mask=mask)
        if self.repeats == 1:
            return keeping, times, len(times) - 1
        again: Sampler = partial(resample, sampler=keeping, repeats=self.repeats, jump=self.jump)
        return again, times, self.repeats * (len(times) - 1)

    def finished(self, images: Tensor, size: Size) -> Tensor:
        return torch.where(read_mask(self.mask, self.image, size) > 0, images, read_picture(self.image, size))
