"""Pixel space against latents at equal time: `python -m studies.downsampling_factors out=...`."""

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
from ldm.cli.evaluate import ceilings
from ldm.cli.sampling import files
from ldm.cli.training import run_config
from ldm.cli.training.setup import precision
from ldm.data.demo.scenes import captions
from ldm.errors import UserError
from ldm.evaluation.demo.alignment import AlignmentScore, score
from ldm.evaluation.frechet import demo_features, frechet_distance
from ldm.grid import labelled_grid, to_pil
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from studies import CONFIGS, equal_time, training_log
from studies.downsampling_tables import Space, figure, report
from studies.first_stages import pictures
from studies.samplers import drawn_scenes

FILE = "latent_diffusion.safetensors"
PIXELS = ("data.shards={shards}", "data.val_shards=null")
"""Encoding as it trains."""
QUIET = "callbacks.latent_statistics=null"
"""The log's statistics of the latents would encode some images twice."""


@command("downsampling_factors", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Speed and score of spaces, their U-Nets equally large and equally long trained: tables and plots."""
    out = Path(cfg.out)
    names = list(cfg.experiments)
    seconds, size = trained(Path(cfg.runs), names), image_size(Path(cfg.runs), names)
    real = demo_features(drawn_scenes(cfg.reference, size))
    spaces = {name: found(name, cfg, seconds, real) for name in names}
    floor = frechet_distance(demo_features(drawn_scenes(cfg.n, size, cfg.reference)), real)
    text = report(spaces, cfg.steps, floor)
    (out / "factors.md").write_text(text)
    plain = {name: asdict(space) for name, space in spaces.items()}
    (out / "factors.json").write_text(json.dumps(plain, indent=1) + "\n")
    figure(spaces).savefig(out / "factors.png")
    titles = {name: f"{name}: {100 * s.samples.passed:.0f} % all right" for name, s in spaces.items()}
    labelled_grid([(title, shown(out / name, cfg.shown)) for name, title in titles.items()]).save(
        out / "factors_samples.png"
    )
    print(f"{text}\nwrote {out}/factors.md, .json and .png, and {out}/factors_samples.png")


def file(cfg: DictConfig, name: str) -> Path:
    """An experiment's model file."""
    return Path(cfg.runs) / name / FILE


def trained(runs: Path, names: list[str]) -> float:
    """Seconds that every run was trained for; UserError for what is missing, unfinished or not equal."""
    again = f"python -m studies.equal_time {' '.join(names)} stage.log_every=10 --trial 20 --out {runs}"
    plans = {name: runs / name / "equal_time.json" for name in names}
    missing = [name for name in names if not ((runs / name / FILE).is_file() and plans[name].is_file())]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} not trained: {again} --seconds 150")
    planned = {name: json.loads(plan.read_text()) for name, plan in plans.items()}
    for name, plan in planned.items():
        step = int(model_file.read_header(runs / name / FILE, "latent_diffusion")["step"])
        if step < plan["steps"]:
            raise UserError(
                f"{name} stands at step {step:,} of {plan['steps']:,}: {again} --seconds {plan['seconds']:g}"
            )
    seconds = {name: float(plan["seconds"]) for name, plan in planned.items()}
    said = "the runs were not trained equally long, in seconds"
    return agreed(seconds, said, "give them another --out")


def image_size(runs: Path, names: list[str]) -> tuple[int, int]:
    """(height, width) that every run draws; UserError where they differ."""
    headers = {name: model_file.read_header(runs / name / FILE, "latent_diffusion") for name in names}
    sizes = {name: int(header["size"]) for name, header in headers.items()}
    side = int(agreed(sizes, "the runs draw images of several sizes", "train them with one data.size"))
    return side, side


def agreed(values: Mapping[str, float], fault: str, mend: str) -> float:
    """The one value of all runs; UserError where there are several."""
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise UserError(f"{fault}: {listed}; {mend}")
    return next(iter(values.values()))


def found(name: str, cfg: DictConfig, seconds: float, real: Float[Tensor, "n d"]) -> Space:
    """What was measured of a run before, where all that was asked is as it was; else it is measured now.

    How long it was trained is read from its log each time.
    """
    log = training_log.read(file(cfg, name).parent)
    took = None if log is None else log.seconds
    kept = Path(cfg.out) / name / "found.json"
    stat = file(cfg, name).stat()
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    asked = {k: v for k, v in asked.items() if k not in ("out", "experiments")} | {"file": stat.st_mtime_ns}
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["asked"] == asked:
            print(f"{name}: measured before", flush=True)
            scores = {key: AlignmentScore(**known[key]) for key in ("samples", "reconstructions")}
            return replace(Space(**{**known["space"], **scores}), took=took)
    space = replace(measured(name, cfg, seconds, real), took=took)
    plain = asdict(space)
    scores = {key: plain.pop(key) for key in ("samples", "reconstructions")}
    kept.write_text(json.dumps({"asked": asked, "space": plain, **scores}, indent=1) + "\n")
    return space


def measured(name: str, cfg: DictConfig, seconds: float, real: Float[Tensor, "n d"]) -> Space:
    """All of one run, its Fréchet distance from features of real images; its first samples beside."""
    out = Path(cfg.out) / name
    out.mkdir(parents=True, exist_ok=True)
    model, header = files.load_model(str(file(cfg, name)), cfg.device)
    size, steps = (int(header["size"]), int(header["size"])), int(header["step"])
    factor, latent_channels = model.first_stage.downsampling, model.first_stage.latent_channels
    cached = training_speed(name, cfg, out / "trial")
    batch = run_config.read(file(cfg, name).parent)["data"]["global_batch_size"]
    wanted = captions("train", cfg.n)
    images, clock = draw(model, wanted, cfg, size)
    for i, image in enumerate(images[: cfg.shown]):
        to_pil(image).save(out / f"{i:02d}.png")
    return Space(
        factor=factor,
        channels=latent_channels,
        parameters=sum(p.numel() for p in model.denoiser.parameters()),
        gmac=gmac(model, size),
        seconds=seconds,
        steps=steps,
        pictures=steps * batch,
        cached=cached,
        uncached=cached if factor == 1 else training_speed(name, cfg, out / "trial_uncached", PIXELS),
        encoding=None if factor == 1 else encoding(model, cfg, size[0]),
        denoising=clock.denoising,
        decoding=clock.decoding,
        samples=score(images, wanted),
        distance=frechet_distance(demo_features(images), real),
        reconstructions=ceilings(model, cfg.n)["their reconstructions (ceiling)"],
    )


@torch.no_grad()
def gmac(model: LatentDiffusion, size: tuple[int, int]) -> float:
    """10^9 multiplications and additions of a image's pass through the denoiser, without guidance."""
    # On the meta device attention is counted, too, which the CPU's fused kernel hides from the counter.
    twin = copy.deepcopy(model).to("meta")
    shape = twin.latent_shape(*size)
    z_t, t = torch.zeros(1, *shape, device="meta"), torch.zeros(1, device="meta")
    cond = twin.null(1, shape[1:])
    with FlopCounterMode(display=False) as counter:
        twin.denoiser(z_t, t, cond)
    return counter.get_total_flops() / 2e9


def training_speed(name: str, cfg: DictConfig, run: Path, data: Sequence[str] = ()) -> float:
    """Images a second of a few steps of the same training, now: all spaces on one machine in one hour."""
    words = [word.format(shards=cfg.shards) for word in data]
    whole = OmegaConf.create(run_config.read(file(cfg, name).parent))
    equal_time.try_out(name, run, [*cfg.given, *words, QUIET], whole, cfg.trial_steps)
    return equal_time.images_a_second(run)


@torch.no_grad()
def encoding(model: LatentDiffusion, cfg: DictConfig, size: int) -> float:
    """Images a second through the encoder, in the precision of training."""
    device = model.first_stage.latent_mean.device
    parts = [
        x.to(device).float() / 127.5 - 1 for x in pictures(cfg.shards, size, cfg.encoded, cfg.batch_size)
    ]
    with training_precision(device):
        model.first_stage.posterior(parts[0])  # kernels are made in the first pass
        start = now(device)
        for x in parts:
            model.first_stage.posterior(x)
    return sum(map(len, parts)) / (now(device) - start)


def training_precision(device: torch.device) -> AbstractContextManager:
    """bf16 where training would have it."""
    bf16 = precision("auto" if device.type == "cuda" else "cpu") != "32-true"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@dataclass
class Clock:
    """Seconds of sampling, in its two parts."""

    denoising: float = 0.0
    decoding: float = 0.0


def draw(
    model: LatentDiffusion, wanted: list[str], cfg: DictConfig, size: tuple[int, int]
) -> tuple[Float[Tensor, "b 3 h w"], Clock]:
    """A image a caption, as sample.py draws it, and where the time went."""
    sampler, guidance, spacing = (
        instantiate(cfg.sampler),
        instantiate(cfg.guidance),
        instantiate(cfg.timestep_spacing),
    )
    times, device = spacing(model.schedule, cfg.steps), next(model.denoiser.parameters()).device
    clock = Clock()

    def make(part: slice, progress: files.Progress) -> Tensor:
        start = middle = now(device)

        def steps(made: Iterator[Tensor]) -> Iterator[Tensor]:
            nonlocal middle
            yield from progress(made)
            middle = now(device)

        seeds = range(cfg.seed, cfg.seed + cfg.n)[part]
        words: Any = {"caption": wanted[part]}
        images = model.generate(words, seeds, size, sampler, times, cfg.scale, None, steps, guidance)
        clock.denoising += middle - start
        clock.decoding += now(device) - middle
        return images

    warm: Any = {"caption": wanted[: cfg.batch_size]}
    once = spacing(model.schedule, 1)  # kernels are made in the first pass
    model.generate(warm, range(len(warm["caption"])), size, sampler, once, cfg.scale, guidance=guidance)
    return files.sample_in_batches(len(wanted), cfg.batch_size, len(times) - 1, model, make), clock


def shown(folder: Path, n: int) -> list[Image.Image]:
    """The images that `measured` kept."""
    return [Image.open(path) for path in sorted(folder.glob("*.png"))[:n]]


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
