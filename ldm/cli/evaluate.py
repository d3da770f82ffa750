"""Score a demo model with the exact scene checker: `python -m ldm.cli.evaluate ckpt=... out=...`."""

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from ldm.atomic import write_file
from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.validate import check_writable
from ldm.cli.sampling.load import load_model, load_weak_model
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, output_size, sample_images
from ldm.data.demo.scenes import Split, captions
from ldm.evaluation.demo.alignment import score_alignment, score_chance, table
from ldm.evaluation.demo.reference import score_ceilings
from ldm.grid import labelled_grid, to_pil, write_png

GRID_ROWS = 12


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Sample an image for each of n seen and n held-out captions and check it against its caption."""
    check_writable(cfg.out, "out")
    out = Path(cfg.out)
    model, header = load_model(cfg.ckpt, cfg.device)
    weak = load_weak_model(cfg.weak, model, cfg.device)
    tasks = [Txt2Img()]
    size = output_size(tasks, model, cfg.size, header)
    context = SamplingContext(model, tasks, sampling_options(cfg), size, weak)
    scores = score_ceilings(model.first_stage, cfg.n)
    times = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps)
    splits: dict[str, Split] = {"seen": "train", "held-out": "held_out"}
    for label, split in splits.items():
        prompts = captions(split, cfg.n)
        specs = [SampleSpec(prompt, cfg.seed + i) for i, prompt in enumerate(prompts)]
        images = sample_images(context, specs, sampler=instantiate(cfg.sampler), times=times)
        scores |= {
            f"samples, {label} captions": score_alignment(images, prompts),
            f"  chance ({label})": score_chance(images, prompts),
        }
        rows = [(prompt, [to_pil(x)]) for prompt, x in zip(prompts[:GRID_ROWS], images, strict=False)]
        write_png(out / f"{split}.png", labelled_grid(rows, 1))
    print(table(scores))
    write_file(out / "scores.json", json.dumps({k: asdict(v) for k, v in scores.items()}, indent=1) + "\n")
    print(f"wrote {out / 'scores.json'}")


if __name__ == "__main__":
    main()
