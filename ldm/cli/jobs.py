"""Every demo job beside its null and its ceiling: `python -m ldm.cli.jobs out=docs`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.cli import history, sampling
from ldm.cli.build import build
from ldm.cli.entry import command
from ldm.cli.evaluate import reconstructions
from ldm.data.demo.drawing import COLOURS, SHAPES
from ldm.diffusion.samplers import Sampler
from ldm.errors import UserError
from ldm.evaluation.alignment import Z_95, wilson
from ldm.evaluation.conditions import Measure, bicubic, kept_outside
from ldm.grid import labelled_grid, to_pil
from ldm.model import LatentDiffusion
from ldm.typing import Batch


@dataclass(frozen=True)
class Score:
    """A mean over pictures and its 95 % interval: Wilson's of a share, the normal one of other numbers."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float[Tensor, " n"]) -> "Score":
        """Of one number a picture."""
        n, mean = len(values), float(values.mean())
        if bool(((values == 0) | (values == 1)).all()):
            return cls(mean, *wilson(round(n * mean), n))
        half = Z_95 * float(values.std()) / math.sqrt(n)
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} – {self.high:.3g})"


@dataclass(frozen=True)
class Result:
    """One job: what its conditions give, what is left without them, and what nothing can pass."""

    unit: str
    drawn: Score
    null: Score
    ceiling: Score
    bicubic: Score | None
    """Of super-resolution: the small picture enlarged."""
    training: history.Training | None = None
    """How long it took; None without its log."""

    @property
    def apart(self) -> bool:
        """Whether the intervals of null and drawn do not meet."""
        return self.null.high < self.drawn.low or self.drawn.high < self.null.low

    @property
    def closed(self) -> float:
        """The share of the gap between null and ceiling that is closed."""
        return (self.drawn.mean - self.null.mean) / (self.ceiling.mean - self.null.mean)


@command("jobs")
def main(cfg: DictConfig) -> None:
    """Score each demo job that has been trained: a table, and a picture of all side by side."""
    out, results, rows = Path(cfg.out), dict[str, Result](), list[tuple[str, list[Image.Image]]]()
    out.mkdir(parents=True, exist_ok=True)
    for name, job in cfg.jobs.items():
        file = Path(cfg.runs) / str(name) / "latent_diffusion.safetensors"
        if not file.is_file():
            print(f"{name}: not trained; python train.py experiment={name}")
            continue
        results[str(name)], shown = run(str(name), job, file, cfg)
        rows += shown
    if not results:
        raise UserError(
            f"no demo job has been trained into {cfg.runs}: start with experiment=demo_class, say"
        )
    labelled_grid(rows).save(out / "jobs.png")
    (out / "jobs.md").write_text(table(results, cfg.n) + "\n")
    (out / "jobs.json").write_text(json.dumps({k: asdict(v) for k, v in results.items()}, indent=1) + "\n")
    print(f"{table(results, cfg.n)}\nwrote {out}/jobs.md, .json and .png")


def run(
    name: str, job: DictConfig, file: Path, cfg: DictConfig
) -> tuple[Result, list[tuple[str, list[Image.Image]]]]:
    """A job's scores, and rows of what it was given and what it drew."""
    measure: Measure = build(job.measure)
    model, _ = sampling.load(str(file), cfg.device)
    weak = sampling.load_weak(job.get("weak"), model, cfg.device)
    times, sampler = build(cfg.spacing)(model.schedule, cfg.steps), build(cfg.sampler)
    values: dict[str, list[Tensor]] = {"drawn": [], "null": [], "ceiling": [], "bicubic": []}
    rows: list[tuple[str, list[Image.Image]]] = []
    for batch in batches(file.parent, job, cfg):
        first = cfg.seed + len(values["drawn"]) * cfg.batch_size
        seeds = range(first, first + len(batch["position"]))
        size = (batch["image"].shape[2], batch["image"].shape[3])
        x = batch["image"].float() / 127.5 - 1
        scale = job.get("scale", 1.0)
        drawn = model.generate(batch, seeds, size, sampler, times, scale, weak=weak).cpu()
        made = {
            "drawn": drawn,
            "null": null(model, batch, seeds, size, sampler, times),
            "ceiling": reconstructions(model, x),
        }
        if "small" in batch:
            made["bicubic"] = bicubic(batch)
        if "mask" in batch:
            made = {kind: kept_outside(pictures, batch) for kind, pictures in made.items()}
        for kind, pictures in made.items():
            values[kind].append(measure(pictures, batch))
        if not rows:
            rows = [
                (f"{name}: given", given(batch)[: cfg.shown]),
                ("drawn", [to_pil(x) for x in made["drawn"][: cfg.shown]]),
            ]
    scores = {kind: Score.of(torch.cat(found)) for kind, found in values.items() if found}
    unit = f"{measure.unit}{', less is better' if measure.less else ''}"
    got, without, best = (scores[kind] for kind in ("drawn", "null", "ceiling"))
    return Result(unit, got, without, best, scores.get("bicubic"), history.read(file.parent)), rows


@torch.no_grad()
def null(
    model: LatentDiffusion,
    batch: Batch,
    seeds: Sequence[int],
    size: tuple[int, int],
    sampler: Sampler,
    times: Float[Tensor, " s"],
) -> Float[Tensor, "b 3 h w"]:
    """What is drawn with the conditions dropped; where there are none, what stage 1 makes of pure noise."""
    if model.guidable:
        return model.generate(batch, seeds, size, sampler, times, 1.0, keep=()).cpu()
    denoise = model.denoise(batch, 1.0, size=model.latent_shape(*size)[1:])
    z_T = next(model.trajectory(denoise, seeds, size, sampler, times))
    return model.first_stage.decode(z_T).clamp(-1, 1).cpu()


def batches(folder: Path, job: DictConfig, cfg: DictConfig) -> Iterator[Batch]:
    """The first n validation samples, with the conditions that the run was trained on."""
    trained = OmegaConf.load(folder / "config.yaml").data
    sizes = {"global_batch_size": cfg.batch_size, "val_batches": -(-cfg.n // cfg.batch_size)}
    yield from build(OmegaConf.merge(trained, job.get("data", {}), sizes)).val_dataloader()


def given(batch: Batch) -> list[Image.Image]:
    """What a batch's pictures are drawn from, as pictures."""
    entries: Mapping[str, Any] = batch
    size = entries["image"].shape[-1]
    if "masked" in entries:
        return [to_pil(x) for x in entries["masked"]]
    if "small" in entries:
        return [
            to_pil(x / 127.5 - 1).resize((size, size), Image.Resampling.NEAREST) for x in entries["small"]
        ]
    if "segmentation" in entries:
        palette = np.array([(255, 255, 255), *(rgb for rgb in COLOURS.values() for _ in SHAPES)], np.uint8)
        return [Image.fromarray(palette[labels.numpy()]) for labels in entries["segmentation"]]
    for entry in ("depth", "edges"):
        if entry in entries:
            return [to_pil(x) for x in entries[entry]]
    if "boxes" in entries:
        return [_frames(boxes.tolist(), size) for boxes in entries["boxes"]]
    return [to_pil(x) for x in entries["image"].float() / 127.5 - 1]


def _frames(boxes: Sequence[Sequence[float]], size: int) -> Image.Image:
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    for label, *corners in boxes:
        if label >= 0:
            colour = list(COLOURS.values())[int(label) // len(SHAPES)]
            pen.rectangle([round(c * (size - 1)) for c in corners], outline=colour)
            pen.text(
                (corners[0] * size + 3, corners[1] * size + 2), SHAPES[int(label) % len(SHAPES)][0], colour
            )
    return picture


def table(results: Mapping[str, Result], n: int) -> str:
    """Markdown."""
    lines = [
        f"{n} validation pictures each, 95 % intervals in brackets; apart: null's and drawn's do not meet.",
        "",
        "| job | steps | trained, s | what is counted | null | drawn | ceiling | gap closed | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        beside = "" if r.bicubic is None else f"; bicubic {r.bicubic}"
        took = " | " if r.training is None else f"{r.training.steps:,} | {r.training.seconds:.0f}"
        lines.append(
            f"| {name} | {took} | {r.unit} | {r.null}{beside} | {r.drawn} | {r.ceiling} "
            f"| {100 * r.closed:.0f} % | {'yes' if r.apart else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
