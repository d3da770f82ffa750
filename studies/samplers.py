"""Samplers on a demo model: `python -m studies.samplers ckpt=... out=docs`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files, tasks
from ldm.data.demo.scenes import DemoScenes, captions
from ldm.evaluation.demo.alignment import AlignmentScore, score
from ldm.evaluation.frechet import demo_features, frechet_distance
from ldm.grid import labelled_grid, to_pil
from studies import CONFIGS


@dataclass(frozen=True)
class Result:
    """What a sampler made in some number of steps."""

    evaluations: int
    """Passes through the network a image; guidance stacks two into one."""
    alignment: AlignmentScore
    distance: float
    images: Float[Tensor, "b 3 h w"]


@command("samplers", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Alignment and Fréchet distance by sampler and number of steps: a table and a grid of images."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    model, header = files.load_model(cfg.ckpt, cfg.device)
    wanted = captions("train", cfg.n)
    each = [tasks.SampleSpec(caption, cfg.seed + i) for i, caption in enumerate(wanted)]
    size = files.image_size(model, cfg, header)
    weak = files.load_weak(cfg.weak, model, cfg.device)
    inputs = tasks.SamplingContext(model, [tasks.Txt2Img()], cfg, size, weak)
    real = demo_features(drawn_scenes(cfg.reference, size))
    results: dict[tuple[str, int], Result] = {}
    for name, sampler in instantiate(cfg.samplers).items():
        for steps in cfg.steps:
            times = instantiate(cfg.timestep_spacing)(model.schedule, steps)
            with passes(model.denoiser) as count:
                images = tasks.sample_images(inputs, each, sampler, times)
            passed = len(count) // math.ceil(cfg.n / cfg.batch_size)
            distance = frechet_distance(demo_features(images), real)
            results[name, steps] = Result(passed, score(images, wanted), distance, images[: cfg.shown])
    floor = frechet_distance(demo_features(drawn_scenes(cfg.n, size, first=cfg.reference)), real)
    text = table(results, cfg.n, floor)
    (out / "samplers_demo.md").write_text(text)
    labelled_grid(rows(results)).save(out / "samplers_demo.png")
    print(f"{text}\nwrote {out / 'samplers_demo.md'} and {out / 'samplers_demo.png'}")


def drawn_scenes(n: int, size: tuple[int, int], first: int = 0) -> Float[Tensor, "b 3 h w"]:
    """Scenes of the validation split in [-1, 1], as the model's images are."""
    scenes = DemoScenes("val", first + n)
    pictures = [scenes[i].image.resize(size[::-1]) for i in range(first, first + n)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


@contextmanager
def passes(network: nn.Module) -> Iterator[list[None]]:
    """Grows by one with every pass through the network."""
    count: list[None] = []

    def hook(*_: object) -> None:
        count.append(None)

    handle = network.register_forward_pre_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def table(results: Mapping[tuple[str, int], Result], n: int, floor: float) -> str:
    """Markdown."""
    lines = [
        f"{n} images each; the Fréchet distance of as many drawn scenes is {floor:.3f}.",
        "",
        "| sampler | steps | evaluations | all right | 95 % | Fréchet distance |",
        "|---|---|---|---|---|---|",
    ]
    for (name, steps), r in results.items():
        a = r.alignment
        lines.append(
            f"| {name} | {steps} | {r.evaluations} | {100 * a.passed:.1f} % | "
            f"{100 * a.low:.1f} – {100 * a.high:.1f} | {r.distance:.3f} |"
        )
    return "\n".join(lines) + "\n"


def rows(results: Mapping[tuple[str, int], Result]) -> list[tuple[str, Sequence[Image.Image]]]:
    """A row a sampler: the first images at each number of steps."""
    names = dict.fromkeys(name for name, _ in results)
    found = {name: [(steps, r) for (other, steps), r in results.items() if other == name] for name in names}
    labels = {name: f"{name}: {', '.join(str(s) for s, _ in each)} steps" for name, each in found.items()}
    return [(labels[name], [to_pil(x) for _, r in each for x in r.images]) for name, each in found.items()]


if __name__ == "__main__":
    main()
