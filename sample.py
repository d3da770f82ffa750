"""Draw pictures: `python sample.py ckpt=runs/NAME/latent_diffusion.safetensors prompts="['a red ...']"`."""

from omegaconf import DictConfig

from ldm.cli import asked, sampling, tasks
from ldm.cli.build import build
from ldm.cli.entry import command
from ldm.cli.tile import set_tile


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw n pictures a prompt: PNGs with prompt, seed and settings inside them, and a labelled grid."""
    asked.sampling(cfg)
    task, also = build(cfg.task), tasks.others(build(cfg.also))
    prompts = sampling.read_prompts(cfg.prompts)
    model, settings = sampling.load(cfg.ckpt, cfg.device)
    weak = sampling.load_weak(cfg.weak, model, cfg.device)
    set_tile(model.first_stage, cfg.tile)
    times = build(cfg.spacing)(model.schedule, cfg.steps)
    size = tasks.picture_size([task, *also], model, cfg, settings)
    inputs = tasks.Inputs(model, [task, *also], cfg, size, weak)
    drawn = task(inputs, inputs.captions(prompts), build(cfg.sampler), times)
    sampling.save(drawn, cfg, settings)


if __name__ == "__main__":
    main()
