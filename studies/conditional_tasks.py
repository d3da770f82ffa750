"""Score the demo's conditional tasks against null and ceiling: `python -m studies.conditional_tasks`."""

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
from ldm.cli.sampling.load import load_model, load_weak_model
from ldm.diffusion.samplers import Sampler
from ldm.errors import UserError
from ldm.evaluation.demo.alignment import Z_95, wilson_interval
from ldm.evaluation.demo.metrics import Metric
from ldm.evaluation.demo.show_condition import ShowCondition
from ldm.evaluation.reconstruction import reconstruct
from ldm.grid import labelled_grid, to_pil
from ldm.model import LatentDiffusion
from ldm.typing import Batch
from studies import CONFIGS, training_log


@dataclass(frozen=True)
class Score:
    """A mean over images with its 95 % interval: Wilson's for proportions, else the normal approximation."""

    mean: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Float[Tensor, " n"], is_proportion: bool) -> "Score":
        """Return the score of one value per image; each is 0 or 1 for a proportion."""
        n, mean = len(values), float(values.mean())
        if is_proportion:
            return cls(mean, *wilson_interval(round(n * mean), n))
        half_width = Z_95 * float(values.std()) / math.sqrt(n)
        return cls(mean, mean - half_width, mean + half_width)

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} – {self.high:.3g})"


@dataclass(frozen=True)
class Result:
    """The scores of one task: of samples with its conditions and without (null), and of reconstructions."""

    unit: str
    n: int
    """Number of images behind each score."""
    samples: Score
    null: Score
    ceiling: Score
    baselines: Mapping[str, Score] = field(default_factory=dict)
    """Scores of methods without a model, by name: bicubic enlargement for super-resolution."""
    training: training_log.TrainingSummary | None = None
    """None without the log of the training run."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], training: training_log.TrainingSummary | None) -> "Result":
        """Return the result that `asdict` converted to `values`."""
        scores = {kind: Score(**values[kind]) for kind in ("samples", "null", "ceiling")}
        baselines = {name: Score(**score) for name, score in values["baselines"].items()}
        return cls(values["unit"], values["n"], **scores, baselines=baselines, training=training)

    @property
    def is_separated(self) -> bool:
        """Whether the intervals of null and samples do not overlap."""
        return self.null.high < self.samples.low or self.samples.high < self.null.low

    @property
    def gap_closed(self) -> float | None:
        """The proportion of the gap between null and ceiling that the samples close; None without a gap."""
        gap = self.ceiling.mean - self.null.mean
        return None if gap == 0 else (self.samples.mean - self.null.mean) / gap


@command("conditional_tasks", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Score each demo task whose model is trained: a table, and a grid of conditions and samples."""
    out, tasks = Path(cfg.out), find_trained(cfg)
    if not tasks:
        raise UserError(
            f"no demo task is trained in {cfg.runs}: start with experiment=demo/class, for example"
        )
    results = {name: load_or_score(name, task, cfg) for name, task in tasks.items()}
    grid = stack_vertically([Image.open(out / name / "images.png") for name in results])
    grid.save(out / "conditional_tasks.png")
    (out / "conditional_tasks.md").write_text(table(results) + "\n")
    serialized = {name: asdict(result) for name, result in results.items()}
    (out / "conditional_tasks.json").write_text(json.dumps(serialized, indent=1) + "\n")
    print(f"{table(results)}\nwrote {out}/conditional_tasks.md, .json and .png")


def find_trained(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the tasks whose models are trained; print the training commands for the others."""
    trained = {}
    for name, task in cfg.tasks.items():
        overrides = {f"demo_{name}": f"experiment=demo/{name}"}
        if "weak" in task:
            overrides[task.weak.run] = task.weak.train
        commands = [
            f"python train.py {arguments} run={cfg.runs}/{run}"
            for run, arguments in overrides.items()
            if not model_path(cfg, run).is_file()
        ]
        if commands:
            print(f"{name} is not trained: {'; '.join(commands)}", flush=True)
        else:
            trained[str(name)] = task
    return trained


def model_path(cfg: DictConfig, run: str) -> Path:
    """Return the path of a run's model file."""
    return Path(cfg.runs) / run / "latent_diffusion.safetensors"


def load_or_score(name: str, task: DictConfig, cfg: DictConfig) -> Result:
    """Return the saved result of a task, or score and save it if settings or model files have changed."""
    folder, models = Path(cfg.out) / name, [model_path(cfg, f"demo_{name}")]
    if "weak" in task:
        models.append(model_path(cfg, task.weak.run))
    training, path = training_log.summarize(models[0].parent), folder / "result.json"
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    del settings["out"], settings["tasks"]
    settings["task"] = OmegaConf.to_container(task, resolve=True)
    settings["files"] = [model.stat().st_mtime_ns for model in models]
    if path.is_file() and (saved := json.loads(path.read_text()))["settings"] == settings:
        print(f"{name}: already scored", flush=True)
        return Result.from_dict(saved["result"], training)
    result, rows = score_task(name, task, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows).save(folder / "images.png")
    path.write_text(json.dumps({"settings": settings, "result": asdict(result)}, indent=1) + "\n")
    print(f"{name}: {result.unit} {result.samples}", flush=True)
    return Result.from_dict(asdict(result), training)


def score_task(
    name: str, task: DictConfig, cfg: DictConfig
) -> tuple[Result, list[tuple[str, list[Image.Image]]]]:
    """Sample and score n images of a task; return the scores and grid rows of conditions and samples."""
    metric: Metric = instantiate(task.metric)
    show: ShowCondition = instantiate(task.show)
    path = model_path(cfg, f"demo_{name}")
    model, _ = load_model(str(path), cfg.device)
    weak = load_weak_model(str(model_path(cfg, task.weak.run)) if "weak" in task else None, model, cfg.device)
    values: dict[str, list[Tensor]] = {}
    rows: list[tuple[str, list[Image.Image]]] = []
    for i, batch in enumerate(validation_batches(path.parent, task, cfg)):
        images = sample_batch(model, weak, batch, cfg.seed + i * cfg.batch_size, task.get("scale", 1.0), cfg)
        images = {kind: metric.prepare(x, batch) for kind, x in images.items()} | metric.baselines(batch)
        for kind, x in images.items():
            values.setdefault(kind, []).append(metric(x, batch))
        if not rows:
            rows = [
                (f"{name}: condition", show(batch)[: cfg.shown]),
                ("samples", [to_pil(x) for x in images["samples"][: cfg.shown]]),
            ]
    scores = {kind: Score.from_values(torch.cat(v), metric.is_proportion) for kind, v in values.items()}
    unit = f"{metric.unit}{', lower is better' if metric.lower_is_better else ''}"
    n = sum(len(v) for v in values["samples"])
    samples, null, ceiling = (scores.pop(kind) for kind in ("samples", "null", "ceiling"))
    return Result(unit, n, samples, null, ceiling, scores), rows


def sample_batch(
    model: LatentDiffusion,
    weak: LatentDiffusion | None,
    batch: Batch,
    seed: int,
    scale: float,
    cfg: DictConfig,
) -> dict[str, Float[Tensor, "b c h w"]]:
    """Sample with the conditions of a batch ("samples") and without ("null"); reconstruct it ("ceiling")."""
    seeds = range(seed, seed + len(batch["position"]))
    size = (batch["image"].shape[2], batch["image"].shape[3])
    times, sampler = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps), instantiate(cfg.sampler)
    samples = model.generate(batch, seeds, size, sampler=sampler, times=times, scale=scale, weak=weak)
    return {
        "samples": samples.cpu(),
        "null": sample_null(model, batch, seeds, size, sampler, times),
        "ceiling": reconstruct(model.first_stage, batch["image"].float() / 127.5 - 1),
    }


@torch.no_grad()
def sample_null(
    model: LatentDiffusion,
    batch: Batch,
    seeds: Sequence[int],
    size: tuple[int, int],
    sampler: Sampler,
    times: Float[Tensor, " s"],
) -> Float[Tensor, "b c h w"]:
    """Sample with the conditions dropped; a model that never drops them gives decoded noise instead."""
    if model.supports_guidance:
        return model.generate(batch, seeds, size, sampler=sampler, times=times, scale=1.0, active=()).cpu()
    denoise = model.denoise(batch, scale=1.0, size=model.latent_shape(*size)[1:])
    z_T = next(model.trajectory(denoise, seeds, size, sampler, times))
    return model.first_stage.decode(z_T).clamp(-1, 1).cpu()


def validation_batches(folder: Path, task: DictConfig, cfg: DictConfig) -> Iterator[Batch]:
    """Yield the first n validation samples (all, if there are fewer), with the conditions of the run."""
    data = OmegaConf.load(folder / "config.yaml").data
    sizes = {"global_batch_size": cfg.batch_size, "val_batches": -(-cfg.n // cfg.batch_size)}
    remaining = cfg.n
    for batch in instantiate(OmegaConf.merge(data, task.get("data", {}), sizes)).val_dataloader():
        yield {key: values[:remaining] for key, values in batch.items()}
        remaining -= len(batch["position"])


def stack_vertically(images: Sequence[Image.Image]) -> Image.Image:
    """Stack images into one, the first at the top."""
    stack = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)))
    top = 0
    for image in images:
        stack.paste(image, (0, top))
        top += image.height
    return stack


def table(results: Mapping[str, Result]) -> str:
    """Return a Markdown table with one row per task."""
    lines = [
        "Means over validation images with 95 % intervals; a task is separated if the intervals of null and "
        "samples do not overlap.",
        "",
        "| task | steps | training, s | images | metric | null | samples | ceiling | gap closed "
        "| separated (95 % CI) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        baselines = "".join(f"; {method} {score}" for method, score in r.baselines.items())
        steps = "" if r.training is None else f"{r.training.steps:,}"
        seconds = "" if r.training is None or r.training.seconds is None else f"{r.training.seconds:.0f}"
        closed = "" if r.gap_closed is None else f"{100 * r.gap_closed:.0f} %"
        lines.append(
            f"| {name} | {steps} | {seconds} | {r.n} | {r.unit} | {r.null}{baselines} | {r.samples} "
            f"| {r.ceiling} | {closed} | {'yes' if r.is_separated else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
