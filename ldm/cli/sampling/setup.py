"""What `sample.py` and the evaluation build from their configs."""

from omegaconf import DictConfig

from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import parse_pixels
from ldm.cli.sampling.options import SamplingOptions


def sampling_options(cfg: DictConfig) -> SamplingOptions:
    """Return the options of a command's config; the negative prompt and score are optional keys."""
    negative, score = cfg.get("negative"), cfg.get("negative_aesthetic")
    original = cfg.original_size
    return SamplingOptions(
        n=cfg.n,
        seed=cfg.seed,
        scale=cfg.scale,
        negative=None if negative is None else str(negative),
        negative_aesthetic=None if score is None else float(score),
        original_size=None if original is None else parse_pixels("original_size", original, 1),
        crop=parse_pixels("crop", cfg.crop, 0),
        aesthetic=cfg.aesthetic,
        batch_size=cfg.batch_size,
        guidance=instantiate(cfg.guidance),
    )
