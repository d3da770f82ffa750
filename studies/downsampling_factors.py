"""Compare pixel space and latents at equal time: `python -m studies.downsampling_factors out=...`."""

import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.device import default_precision
from ldm.cli.sampling.batches import sample_in_batches
from ldm.cli.sampling.load import load_model
from ldm.cli.training import run_config
from ldm.data.demo.scenes import captions
from ldm.errors import UserError
from ldm.evaluation.demo.alignment import AlignmentScore, score_alignment
from ldm.evaluation.demo.reference import render_scenes, score_ceilings
from ldm.evaluation.frechet import demo_features, frechet_distance
from ldm.grid import labelled_grid, to_pil
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from studies import CONFIGS, equal_time, training_log
from studies.downsampling_tables import Space, plot, report
from studies.first_stages import load_images

MODEL_FILE = "latent_diffusion.safetensors"
WITHOUT_CACHE = ("data.shards={shards}", "data.val_shards=null")
"""Overrides that train on images, which each step encodes."""
WITHOUT_STATISTICS = "callbacks.latent_statistics=null"
"""The logged statistics of the latents would encode some images twice."""


@command("downsampling_factors", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Measure speed and quality of models of equal size and training time: tables and plots."""
    out = Path(cfg.out)
    names = list(cfg.experiments)
    seconds, size = check_trained(Path(cfg.runs), names), image_size(Path(cfg.runs), names)
    reference = demo_features(render_scenes(cfg.reference, size))
    spaces = {name: load_or_measure(name, cfg, seconds, reference) for name in names}
    scenes = render_scenes(cfg.n, size, first=cfg.reference)
    text = report(spaces, cfg.steps, frechet_distance(demo_features(scenes), reference))
    (out / "downsampling_factors.md").write_text(text)
    plain = {name: asdict(space) for name, space in spaces.items()}
    (out / "downsampling_factors.json").write_text(json.dumps(plain, indent=1) + "\n")
    plot(spaces).savefig(out / "downsampling_factors.png")
    titles = {name: f"{name}: {100 * s.samples.passed:.0f} % correct" for name, s in spaces.items()}
    rows = [(title, open_samples(out / name, cfg.shown)) for name, title in titles.items()]
    labelled_grid(rows).save(out / "downsampling_factors_samples.png")
    print(
        f"{text}\nwrote {out}/downsampling_factors.md, .json and .png, and downsampling_factors_samples.png"
    )


def model_path(cfg: DictConfig, name: str) -> Path:
    """Return the path of an experiment's model file."""
    return Path(cfg.runs) / name / MODEL_FILE


def check_trained(runs: Path, names: list[str]) -> float:
    """Return the seconds of training planned for all runs; UserError if any is unfinished or differs."""
    command = f"python -m studies.equal_time {' '.join(names)} stage.log_every=10 --trial 20 --out {runs}"
    paths = {name: runs / name / equal_time.PLAN_FILE for name in names}
    missing = [n for n in names if not ((runs / n / MODEL_FILE).is_file() and paths[n].is_file())]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} not trained: run {command} --seconds 150")
    plans = {name: json.loads(path.read_text()) for name, path in paths.items()}
    for name, plan in plans.items():
        step = int(model_file.read_header(runs / name / MODEL_FILE, "latent_diffusion")["step"])
        if step < plan["steps"]:
            raise UserError(
                f"{name} is at step {step:,} of {plan['steps']:,}: "
                f"run {command} --seconds {plan['seconds']:g}"
            )
    seconds = {name: float(plan["seconds"]) for name, plan in plans.items()}
    return common_value(
        seconds, "the runs have different training times, in seconds", "give them another --out"
    )


def image_size(runs: Path, names: list[str]) -> tuple[int, int]:
    """Return the (height, width) of the images of all runs; UserError if they differ."""
    headers = {name: model_file.read_header(runs / name / MODEL_FILE, "latent_diffusion") for name in names}
    sizes = {name: int(header["size"]) for name, header in headers.items()}
    size = int(
        common_value(sizes, "the runs have different image sizes", "train them with the same data.size")
    )
    return size, size


def common_value(values: Mapping[str, float], problem: str, remedy: str) -> float:
    """Return the value that all runs share; UserError if they differ."""
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise UserError(f"{problem} ({listed}): {remedy}")
    return next(iter(values.values()))


def load_or_measure(name: str, cfg: DictConfig, seconds: float, reference: Float[Tensor, "n d"]) -> Space:
    """Return the saved measurements of a run, or measure and save them if its settings or model changed.

    The training time is always read from the log.
    """
    log = training_log.summarize(model_path(cfg, name).parent)
    training_seconds = None if log is None else log.seconds
    path = Path(cfg.out) / name / "result.json"
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in ("out", "experiments")}
    settings["file"] = model_path(cfg, name).stat().st_mtime_ns
    if path.is_file():
        saved = json.loads(path.read_text())
        if saved["settings"] == settings:
            print(f"{name}: measured before", flush=True)
            scores = {key: AlignmentScore(**saved[key]) for key in ("samples", "reconstructions")}
            return replace(Space(**{**saved["space"], **scores}), training_seconds=training_seconds)
    space = replace(measure(name, cfg, seconds, reference), training_seconds=training_seconds)
    plain = asdict(space)
    scores = {key: plain.pop(key) for key in ("samples", "reconstructions")}
    path.write_text(json.dumps({"settings": settings, "space": plain, **scores}, indent=1) + "\n")
    return space


def measure(name: str, cfg: DictConfig, seconds: float, reference: Float[Tensor, "n d"]) -> Space:
    """Measure one run, and save its first samples.

    Args:
        reference: features of rendered scenes, for the Fréchet distance.
    """
    out = Path(cfg.out) / name
    out.mkdir(parents=True, exist_ok=True)
    model, header = load_model(str(model_path(cfg, name)), cfg.device)
    size, steps = (int(header["size"]), int(header["size"])), int(header["step"])
    factor, latent_channels = model.first_stage.downsampling, model.first_stage.latent_channels
    speed = uncached_speed = measure_training_speed(name, cfg, out / "trial")
    if factor > 1:
        uncached_speed = measure_training_speed(name, cfg, out / "trial_uncached", WITHOUT_CACHE)
    batch = run_config.read(model_path(cfg, name).parent)["data"]["global_batch_size"]
    prompts = captions("train", cfg.n)
    images, duration = sample_timed(model, prompts, cfg, size)
    for i, image in enumerate(images[: cfg.shown]):
        to_pil(image).save(out / f"{i:02d}.png")
    return Space(
        factor=factor,
        channels=latent_channels,
        parameters=sum(p.numel() for p in model.denoiser.parameters()),
        gmac=count_gmac(model, size),
        planned_seconds=seconds,
        steps=steps,
        images=steps * batch,
        training_speed=speed,
        uncached_training_speed=uncached_speed,
        encoding_speed=None if factor == 1 else measure_encoding_speed(model, cfg, size[0]),
        denoising_seconds=duration.denoising,
        decoding_seconds=duration.decoding,
        samples=score_alignment(images, prompts),
        distance=frechet_distance(demo_features(images), reference),
        reconstructions=score_ceilings(model.first_stage, cfg.n)["reconstructions (ceiling)"],
    )


@torch.no_grad()
def count_gmac(model: LatentDiffusion, size: tuple[int, int]) -> float:
    """Count the 10^9 multiply-accumulates of the denoiser per image, without guidance."""
    # On the meta device attention is counted as well; the CPU's fused kernel hides it from the counter.
    meta = copy.deepcopy(model).to("meta")
    shape = meta.latent_shape(*size)
    z_t, t = torch.zeros(1, *shape, device="meta"), torch.zeros(1, device="meta")
    cond = meta.null(1, shape[1:])
    with FlopCounterMode(display=False) as counter:
        meta.denoiser(z_t, t, cond)
    return counter.get_total_flops() / 2e9


def measure_training_speed(name: str, cfg: DictConfig, run: Path, overrides: Sequence[str] = ()) -> float:
    """Train a few steps now, so that all spaces are timed on one machine in one hour; return images/s."""
    extra = [override.format(shards=cfg.shards) for override in overrides]
    train_cfg = OmegaConf.create(run_config.read(model_path(cfg, name).parent))
    equal_time.run_trial(name, run, [*cfg.given, *extra, WITHOUT_STATISTICS], train_cfg, cfg.trial_steps)
    return equal_time.images_per_second(run)


@torch.no_grad()
def measure_encoding_speed(model: LatentDiffusion, cfg: DictConfig, size: int) -> float:
    """Return the images/s of the encoder in the precision of training."""
    device = model.first_stage.latent_mean.device
    batches = [
        x.to(device).float() / 127.5 - 1 for x in load_images(cfg.shards, size, cfg.encoded, cfg.batch_size)
    ]
    with training_precision(device):
        model.first_stage.posterior(batches[0])  # warm-up: the first pass compiles kernels
        start = synchronized_time(device)
        for x in batches:
            model.first_stage.posterior(x)
    return sum(map(len, batches)) / (synchronized_time(device) - start)


def training_precision(device: torch.device) -> AbstractContextManager:
    """Return an autocast to bf16 if training on this device uses it."""
    bf16 = default_precision(device.type) == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@dataclass
class SamplingTime:
    """Seconds of sampling, by part."""

    denoising: float = 0.0
    decoding: float = 0.0


def sample_timed(
    model: LatentDiffusion, prompts: list[str], cfg: DictConfig, size: tuple[int, int]
) -> tuple[Float[Tensor, "b 3 h w"], SamplingTime]:
    """Sample an image per prompt, as sample.py does, and measure the time of both parts."""
    sampler, guidance = instantiate(cfg.sampler), instantiate(cfg.guidance)
    spacing = instantiate(cfg.timestep_spacing)
    times, device = spacing(model.schedule, cfg.steps), next(model.denoiser.parameters()).device
    duration = SamplingTime()

    def trajectory(part: slice) -> Iterator[Tensor]:
        start = synchronized_time(device)
        seeds = range(cfg.seed, cfg.seed + cfg.n)[part]
        batch: Any = {"caption": prompts[part]}
        latent_size = model.latent_shape(*size)[1:]
        denoise = model.denoise(batch, scale=cfg.scale, guidance=guidance, size=latent_size)
        yield from model.trajectory(denoise, seeds, size, sampler, times)
        duration.denoising += synchronized_time(device) - start

    warm_up: Any = {"caption": prompts[: cfg.batch_size]}
    seeds, one_step = range(len(warm_up["caption"])), spacing(model.schedule, 1)
    model.generate(warm_up, seeds, size, sampler=sampler, times=one_step, scale=cfg.scale, guidance=guidance)
    start = synchronized_time(device)
    images = sample_in_batches(model, len(prompts), cfg.batch_size, len(times) - 1, trajectory)
    duration.decoding = synchronized_time(device) - start - duration.denoising
    return images, duration


def open_samples(folder: Path, n: int) -> list[Image.Image]:
    """Open the first samples that `measure` saved."""
    return [Image.open(path) for path in sorted(folder.glob("*.png"))[:n]]


def synchronized_time(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
