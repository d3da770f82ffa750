"""The part of a picture under a mask, by any model."""

from functools import partial

from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.cli.asked import whole
from ldm.cli.tasks.base import Finish, Inputs, Txt2Img, channels, latent
from ldm.cli.tasks.files import Size, keeping, read_mask, read_picture
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.inpaint import inpaint, resample
from ldm.model import LatentDiffusion


class Inpaint(Txt2Img):
    """Pictures of which the part under a mask is drawn anew and the rest stays, by any model.

    Args:
        image: the picture's file.
        mask: a file of the same size, white where the picture is to be drawn.
        repeats, jump: every `jump` steps are made `repeats` times, for a better fit (RePaint); 1 is once.
    """

    def __init__(self, image: str, mask: str, repeats: int, jump: int) -> None:
        whole("task.repeats", repeats, 1)
        whole("task.jump", jump, 1)
        self.image, self.mask, self.repeats, self.jump = image, mask, repeats, jump

    def changed(self, inputs: Inputs, sampler: Sampler, times: Tensor) -> tuple[Sampler, Tensor, int]:
        known = latent(inputs.model, read_picture(self.image, inputs.size, channels(inputs.model)))
        # A place of the latent is drawn anew if any of its pixels is.
        white = read_mask(self.mask, self.image, inputs.size)
        mask = max_pool2d(white, inputs.model.first_stage.downsampling).to(known)
        keeping: Sampler = partial(inpaint, sampler=sampler, known=known, mask=mask)
        if self.repeats == 1:
            return keeping, times, len(times) - 1
        again: Sampler = partial(resample, sampler=keeping, repeats=self.repeats, jump=self.jump)
        return again, times, self.repeats * (len(times) - 1)

    def finishing(self, model: LatentDiffusion, size: Size) -> Finish:
        return keeping(self.image, self.mask, size, channels(model))
