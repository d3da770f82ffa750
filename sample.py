"""Sample images: `python sample.py ckpt=runs/NAME/latent_diffusion.safetensors prompts="['a red ...']"`."""

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import check_sampling
from ldm.cli.sampling.folder import SampleFolder
from ldm.cli.sampling.load import load_model, load_weak_model
from ldm.cli.sampling.prompts import collect_texts, read_prompts, report_cuts, set_prompt_options
from ldm.cli.sampling.save import save_samples
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import SamplingContext, additional_tasks, output_size
from ldm.cli.sampling.tiling import set_tile


@command("sample")
def main(cfg: DictConfig) -> None:
    """Sample n images per prompt; write them as PNGs with prompt, seed and settings, and a labelled grid."""
    check_sampling(cfg)
    task, also = instantiate(cfg.task), additional_tasks(instantiate(cfg.also))
    prompts = read_prompts(cfg.prompts)
    texts = collect_texts(cfg, prompts)
    folder = SampleFolder(cfg)
    model, header = load_model(cfg.ckpt, cfg.device)
    weak = load_weak_model(cfg.weak, model, cfg.device)
    set_tile(model.first_stage, cfg.tile)
    for part in filter(None, (model, weak)):
        set_prompt_options(part, cfg.prompt_chunks, cfg.prompt_weights)
    report_cuts(model, texts)
    tasks = [task, *also]
    size = output_size(tasks, model, cfg.size, header)
    context = SamplingContext(model, tasks, sampling_options(cfg), size, weak)
    times = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps)
    plan = task.plan(context, context.require_prompts(prompts), sampler=instantiate(cfg.sampler), times=times)
    save_samples(plan, model, folder, cfg, header)


if __name__ == "__main__":
    main()
