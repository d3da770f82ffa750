"""Every demo job beside its null and its ceiling: `python -m studies.conditional_tasks out=runs/jobs`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.evaluate import reconstructions
from ldm.cli.sampling import files
from ldm.diffusion.samplers import Sampler
from ldm.errors import UserError
from ldm.evaluation.demo.alignment import Z_95, wilson
from ldm.evaluation.demo.metrics import Metric
from ldm.evaluation.demo.show_condition import ShowCondition
from ldm.grid import labelled_grid, to_pil
from ldm.model import LatentDiffusion
from ldm.typing import Batch
from studies import CONFIGS, training_log


@dataclass(frozen=True)
class Score:
    """A mean over images and its 95 % interval: Wilson's of a share, the normal one of other numbers."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float[Tensor, " n"], share: bool) -> "Score":
        """Of one number a image, each 0 or 1 where their mean is a share."""
        n, mean = len(values), float(values.mean())
        if share:
            return cls(mean, *wilson(round(n * mean), n))
        half = Z_95 * float(values.std()) / math.sqrt(n)
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} – {self.high:.3g})"


@dataclass(frozen=True)
class Result:
    """One job: what its conditions give, what is left without them, and what nothing can pass."""

    unit: str
    n: int
    """Images of each."""
    drawn: Score
    null: Score
    ceiling: Score
    beside: Mapping[str, Score] = field(default_factory=dict)
    """What needs no model, by name: of super-resolution the small image enlarged."""
    training: training_log.TrainingSummary | None = None
    """How long it took; None without its log."""

    @classmethod
    def read(cls, plain: Mapping[str, Any], training: training_log.TrainingSummary | None) -> "Result":
        """From what `asdict` makes of one."""
        scores = {kind: Score(**plain[kind]) for kind in ("drawn", "null", "ceiling")}
        beside = {name: Score(**score) for name, score in plain["beside"].items()}
        return cls(plain["unit"], plain["n"], **scores, beside=beside, training=training)

    @property
    def apart(self) -> bool:
        """Whether the intervals of null and drawn do not meet."""
        return self.null.high < self.drawn.low or self.drawn.high < self.null.low

    @property
    def closed(self) -> float | None:
        """The share of the gap between null and ceiling that is closed; None where there is no gap."""
        gap = self.ceiling.mean - self.null.mean
        return None if gap == 0 else (self.drawn.mean - self.null.mean) / gap


@command("conditional_tasks", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Score each demo job that has been trained: a table, and a image of all side by side."""
    out, jobs = Path(cfg.out), trained(cfg)
    if not jobs:
        raise UserError(
            f"no demo job has been trained into {cfg.runs}: start with experiment=demo/class, say"
        )
    results = {name: found(name, job, cfg) for name, job in jobs.items()}
    stacked([Image.open(out / name / "images.png") for name in results]).save(out / "jobs.png")
    (out / "jobs.md").write_text(table(results) + "\n")
    (out / "jobs.json").write_text(json.dumps({k: asdict(v) for k, v in results.items()}, indent=1) + "\n")
    print(f"{table(results)}\nwrote {out}/jobs.md, .json and .png")


def trained(cfg: DictConfig) -> dict[str, DictConfig]:
    """The jobs whose models are there; of the others the commands that train them are printed."""
    ready = {}
    for name, job in cfg.jobs.items():
        wanted = {f"demo_{name}": f"experiment=demo/{name}"}
        if "weak" in job:
            wanted[job.weak.run] = job.weak.train
        lacking = [
            f"python train.py {words} run={cfg.runs}/{run}"
            for run, words in wanted.items()
            if not file(cfg, run).is_file()
        ]
        if lacking:
            print(f"{name} is not trained: {'; '.join(lacking)}", flush=True)
        else:
            ready[str(name)] = job
    return ready


def file(cfg: DictConfig, run: str) -> Path:
    """A run's model file."""
    return Path(cfg.runs) / run / "latent_diffusion.safetensors"


def found(name: str, job: DictConfig, cfg: DictConfig) -> Result:
    """A job's scores of before, where all that was asked is as it was; else it is scored now, and kept."""
    folder, training = Path(cfg.out) / name, training_log.read(file(cfg, name).parent)
    kept = folder / "found.json"
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    del asked["out"], asked["jobs"]
    asked["job"] = OmegaConf.to_container(job, resolve=True)
    files = [file(cfg, name), *([file(cfg, job.weak.run)] if "weak" in job else [])]
    asked["files"] = [path.stat().st_mtime_ns for path in files]
    if kept.is_file() and (known := json.loads(kept.read_text()))["asked"] == asked:
        print(f"{name}: scored before", flush=True)
        return Result.read(known["result"], training)
    result, rows = scored(name, job, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows).save(folder / "images.png")
    kept.write_text(json.dumps({"asked": asked, "result": asdict(result)}, indent=1) + "\n")
    print(f"{name}: {result.unit} {result.drawn}", flush=True)
    return Result.read(asdict(result), training)


def scored(name: str, job: DictConfig, cfg: DictConfig) -> tuple[Result, list[tuple[str, list[Image.Image]]]]:
    """A job's scores, and rows of what it was given and what it drew."""
    measure: Metric = instantiate(job.measure)
    given: ShowCondition = instantiate(job.given)
    model, _ = files.load_model(str(file(cfg, name)), cfg.device)
    weak = files.load_weak(str(file(cfg, job.weak.run)) if "weak" in job else None, model, cfg.device)
    values: dict[str, list[Tensor]] = {}
    rows: list[tuple[str, list[Image.Image]]] = []
    for i, batch in enumerate(batches(file(cfg, name).parent, job, cfg)):
        made = images(model, weak, batch, cfg.seed + i * cfg.batch_size, job.get("scale", 1.0), cfg)
        made = {kind: measure.prepare(x, batch) for kind, x in made.items()} | measure.beside(batch)
        for kind, x in made.items():
            values.setdefault(kind, []).append(measure(x, batch))
        if not rows:
            rows = [
                (f"{name}: given", given(batch)[: cfg.shown]),
                ("drawn", [to_pil(x) for x in made["drawn"][: cfg.shown]]),
            ]
    numbers = {kind: torch.cat(parts) for kind, parts in values.items()}
    scores = {kind: Score.of(x, measure.share) for kind, x in numbers.items()}
    unit = f"{measure.unit}{', less is better' if measure.less else ''}"
    drawn, null, ceiling = (scores.pop(kind) for kind in ("drawn", "null", "ceiling"))
    return Result(unit, len(numbers["drawn"]), drawn, null, ceiling, scores), rows


def images(
    model: LatentDiffusion,
    weak: LatentDiffusion | None,
    batch: Batch,
    seed: int,
    scale: float,
    cfg: DictConfig,
) -> dict[str, Float[Tensor, "b c h w"]]:
    """Of a batch: from its conditions, from none, and its own as the first stage leaves them."""
    seeds = range(seed, seed + len(batch["position"]))
    size = (batch["image"].shape[2], batch["image"].shape[3])
    times, sampler = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps), instantiate(cfg.sampler)
    return {
        "drawn": model.generate(batch, seeds, size, sampler, times, scale, weak=weak).cpu(),
        "null": null(model, batch, seeds, size, sampler, times),
        "ceiling": reconstructions(model, batch["image"].float() / 127.5 - 1),
    }


@torch.no_grad()
def null(
    model: LatentDiffusion,
    batch: Batch,
    seeds: Sequence[int],
    size: tuple[int, int],
    sampler: Sampler,
    times: Float[Tensor, " s"],
) -> Float[Tensor, "b c h w"]:
    """What is drawn with the conditions dropped; where there are none, what stage 1 makes of pure noise."""
    if model.supports_guidance:
        return model.generate(batch, seeds, size, sampler, times, 1.0, active=()).cpu()
    denoise = model.denoise(batch, 1.0, size=model.latent_shape(*size)[1:])
    z_T = next(model.trajectory(denoise, seeds, size, sampler, times))
    return model.first_stage.decode(z_T).clamp(-1, 1).cpu()


def batches(folder: Path, job: DictConfig, cfg: DictConfig) -> Iterator[Batch]:
    """The first n validation samples, or all where there are fewer, with the run's own conditions."""
    trained_on = OmegaConf.load(folder / "config.yaml").data
    sizes = {"global_batch_size": cfg.batch_size, "val_batches": -(-cfg.n // cfg.batch_size)}
    left = cfg.n
    for batch in instantiate(OmegaConf.merge(trained_on, job.get("data", {}), sizes)).val_dataloader():
        yield {key: values[:left] for key, values in batch.items()}  # type: ignore[misc]
        left -= len(batch["position"])


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """One below the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)))
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def table(results: Mapping[str, Result]) -> str:
    """Markdown."""
    lines = [
        "Validation images, 95 % intervals in brackets; apart: null's and drawn's do not meet.",
        "",
        "| job | steps | trained, s | images | what is counted | null | drawn | ceiling | gap closed "
        "| apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        beside = "".join(f"; {what} {score}" for what, score in r.beside.items())
        steps = "" if r.training is None else f"{r.training.steps:,}"
        seconds = "" if r.training is None or r.training.seconds is None else f"{r.training.seconds:.0f}"
        closed = "" if r.closed is None else f"{100 * r.closed:.0f} %"
        lines.append(
            f"| {name} | {steps} | {seconds} | {r.n} | {r.unit} | {r.null}{beside} | {r.drawn} | {r.ceiling} "
            f"| {closed} | {'yes' if r.apart else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
