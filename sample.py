"""Draw pictures: `python sample.py ckpt=runs/NAME/latent_diffusion.safetensors prompts="['a red ...']"`."""

from omegaconf import DictConfig

from ldm.cli import sampling
from ldm.cli.build import build
from ldm.cli.entry import command


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw n pictures a prompt: PNGs with prompt, seed and settings inside them, and a labelled grid."""
    prompts, task = sampling.read_prompts(cfg.prompts), build(cfg.task)
    model, settings = sampling.load(cfg.ckpt, cfg.device)
    times = build(cfg.spacing)(model.schedule, cfg.steps)
    size = sampling.picture_size(cfg, settings)
    drawn = task(model, prompts, cfg, size, build(cfg.sampler), times)
    sampling.save(drawn.images, drawn.wanted, cfg, settings, drawn.names)


if __name__ == "__main__":
    main()
