"""Compare samplers on a demo model: `python -m studies.samplers ckpt=... out=runs/samplers`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model, load_weak_model
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, output_size, sample_images
from ldm.data.demo.scenes import captions
from ldm.evaluation.demo.alignment import AlignmentScore, score_alignment
from ldm.evaluation.demo.reference import render_scenes
from ldm.evaluation.frechet import demo_features, frechet_distance
from ldm.grid import labelled_grid, to_pil
from studies import CONFIGS


@dataclass(frozen=True)
class Result:
    """The samples of one sampler with one number of steps."""

    evaluations: int
    """Network evaluations per image; guidance evaluates condition and null in one batch."""
    alignment: AlignmentScore
    distance: float
    """Fréchet distance from rendered scenes."""
    images: Float[Tensor, "b 3 h w"]
    """The first samples."""


@command("samplers", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Measure accuracy and Fréchet distance by sampler and number of steps: a table and a grid of samples."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    model, header = load_model(cfg.ckpt, cfg.device)
    weak = load_weak_model(cfg.weak, model, cfg.device)
    prompts = captions("train", cfg.n)
    specs = [SampleSpec(prompt, cfg.seed + i) for i, prompt in enumerate(prompts)]
    tasks = [Txt2Img()]
    size = output_size(tasks, model, cfg.size, header)
    context = SamplingContext(model, tasks, sampling_options(cfg), size, weak)
    reference = demo_features(render_scenes(cfg.reference, size))
    results: dict[tuple[str, int], Result] = {}
    for name, sampler in instantiate(cfg.samplers).items():
        for steps in cfg.steps:
            times = instantiate(cfg.timestep_spacing)(model.schedule, steps)
            with count_forward_passes(model.denoiser) as passes:
                images = sample_images(context, specs, sampler=sampler, times=times)
            evaluations = len(passes) // math.ceil(cfg.n / cfg.batch_size)
            distance = frechet_distance(demo_features(images), reference)
            alignment = score_alignment(images, prompts)
            results[name, steps] = Result(evaluations, alignment, distance, images[: cfg.shown])
    scenes = render_scenes(cfg.n, size, first=cfg.reference)
    text = table(results, cfg.n, frechet_distance(demo_features(scenes), reference))
    (out / "samplers_demo.md").write_text(text)
    labelled_grid(grid_rows(results)).save(out / "samplers_demo.png")
    print(f"{text}\nwrote {out / 'samplers_demo.md'} and {out / 'samplers_demo.png'}")


@contextmanager
def count_forward_passes(network: nn.Module) -> Iterator[list[None]]:
    """Yield a list that grows by one with every forward pass of the network."""
    passes: list[None] = []

    def hook(*_: object) -> None:
        passes.append(None)

    handle = network.register_forward_pre_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


def table(results: Mapping[tuple[str, int], Result], n: int, floor: float) -> str:
    """Return a Markdown table; `floor` is the Fréchet distance of n rendered scenes."""
    lines = [
        f"{n} samples each; the Fréchet distance of as many rendered scenes is {floor:.3f}.",
        "",
        "| sampler | steps | evaluations | accuracy | 95 % CI | Fréchet distance |",
        "|---|---|---|---|---|---|",
    ]
    for (name, steps), r in results.items():
        a = r.alignment
        lines.append(
            f"| {name} | {steps} | {r.evaluations} | {100 * a.passed:.1f} % | "
            f"{100 * a.low:.1f} – {100 * a.high:.1f} | {r.distance:.3f} |"
        )
    return "\n".join(lines) + "\n"


def grid_rows(results: Mapping[tuple[str, int], Result]) -> list[tuple[str, Sequence[Image.Image]]]:
    """Return one row per sampler: its first samples with each number of steps."""
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for sampler in dict.fromkeys(name for name, _ in results):
        by_steps = {steps: r for (name, steps), r in results.items() if name == sampler}
        label = f"{sampler}: {', '.join(str(steps) for steps in by_steps)} steps"
        rows.append((label, [to_pil(x) for r in by_steps.values() for x in r.images]))
    return rows


if __name__ == "__main__":
    main()
