"""The settings of `sample.py` that tasks use, as plain values: a notebook can sample without Hydra."""

from dataclasses import dataclass

from ldm.diffusion.guidance import Guidance, classifier_free_guidance


@dataclass(frozen=True)
class SamplingOptions:
    """How many images to sample, from which seeds, how they are guided, and their size conditions.

    Args:
        n: images per prompt; image i has the seed `seed` + i.
        scale: of guidance; 1 disables it.
        negative: a prompt to extrapolate away from, instead of the null condition.
        negative_aesthetic: a score to extrapolate away from.
        original_size: (height, width) before cropping, in pixels, for a model of size conditions; None is the
            size sampled.
        crop: (top, left) of the crop, in pixels.
        aesthetic: score, for a model of score conditions.
        batch_size: images sampled at once.
    """

    n: int = 1
    seed: int = 0
    scale: float = 1.0
    negative: str | None = None
    negative_aesthetic: float | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    aesthetic: float = 6.0
    batch_size: int = 64
    guidance: Guidance = classifier_free_guidance
