"""Draw images: `python sample.py ckpt=runs/NAME/latent_diffusion.safetensors prompts="['a red ...']"`."""

from omegaconf import DictConfig

from ldm.cli.config import validate
from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files, tasks
from ldm.cli.sampling.tiling import set_tile


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw n images a prompt: PNGs with prompt, seed and settings inside them, and a labelled grid."""
    validate.sampling(cfg)
    task, also = instantiate(cfg.task), tasks.additional_tasks(instantiate(cfg.also))
    prompts = files.read_prompts(cfg.prompts)
    model, settings = files.load_model(cfg.ckpt, cfg.device)
    weak = files.load_weak(cfg.weak, model, cfg.device)
    set_tile(model.first_stage, cfg.tile)
    times = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps)
    size = tasks.output_size([task, *also], model, cfg, settings)
    inputs = tasks.SamplingContext(model, [task, *also], cfg, size, weak)
    drawn = task(inputs, inputs.captions(prompts), instantiate(cfg.sampler), times)
    files.save_samples(drawn, cfg, settings)


if __name__ == "__main__":
    main()
