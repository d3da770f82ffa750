"""Draw pictures: `python sample.py ckpt=runs/NAME/latent_diffusion.safetensors prompts="['a red ...']"`."""

from omegaconf import DictConfig

from ldm.cli import sampling
from ldm.cli.build import build
from ldm.cli.entry import command


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw n pictures a prompt: PNGs with prompt, seed and settings inside them, and a labelled grid."""
    prompts = sampling.read_prompts(cfg.prompts)
    model, settings = sampling.load(cfg.ckpt, cfg.device)
    times = build(cfg.spacing)(model.schedule.num_steps, cfg.steps)
    wanted = [(prompt, cfg.seed + i) for prompt in prompts for i in range(cfg.n)]
    size = sampling.picture_size(cfg, settings)
    images = sampling.draw(model, wanted, cfg, size, build(cfg.sampler), times)
    sampling.save(images, wanted, cfg, settings)


if __name__ == "__main__":
    main()
