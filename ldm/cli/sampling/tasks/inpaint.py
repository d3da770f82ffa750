"""The part of a image under a mask, by any model."""

from functools import partial

from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.cli.config.validate import whole
from ldm.cli.sampling.tasks.base import Postprocess, SamplingContext, Txt2Img, channels, encode_image
from ldm.cli.sampling.tasks.inputs import Size, paste_known, read_image, read_mask
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.tasks.inpaint import inpaint, resample
from ldm.model import LatentDiffusion


class Inpaint(Txt2Img):
    """Images of which the part under a mask is drawn anew and the rest stays, by any model.

    Args:
        image: the image's file.
        mask: a file of the same size, white where the image is to be drawn.
        repeats, jump: every `jump` steps are made `repeats` times, for a better fit (RePaint); 1 is once.
    """

    def __init__(self, image: str, mask: str, repeats: int, jump: int) -> None:
        whole("task.repeats", repeats, 1)
        whole("task.jump", jump, 1)
        self.image, self.mask, self.repeats, self.jump = image, mask, repeats, jump

    def changed(
        self, inputs: SamplingContext, sampler: Sampler, times: Tensor
    ) -> tuple[Sampler, Tensor, int]:
        known = encode_image(inputs.model, read_image(self.image, inputs.size, channels(inputs.model)))
        # A place of the latent is drawn anew if any of its pixels is.
        white = read_mask(self.mask, self.image, inputs.size)
        mask = max_pool2d(white, inputs.model.first_stage.downsampling).to(known)
        paste_known: Sampler = partial(inpaint, sampler=sampler, known=known, mask=mask)
        if self.repeats == 1:
            return paste_known, times, len(times) - 1
        again: Sampler = partial(resample, sampler=paste_known, repeats=self.repeats, jump=self.jump)
        return again, times, self.repeats * (len(times) - 1)

    def finishing(self, model: LatentDiffusion, size: Size) -> Postprocess:
        return paste_known(self.image, self.mask, size, channels(model))
