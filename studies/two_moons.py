"""Compare schedules and samplers on two moons, exactly denoised: `python -m studies.two_moons out=...`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm import rng
from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import plots
from ldm.diffusion.ideal_denoiser import energy_distance, gaussian_mixture_denoiser, sample_mixture, two_moons
from ldm.diffusion.samplers import Sampler
from ldm.diffusion.schedule import Schedule
from studies import CONFIGS

EXTENT = 2.5
"""Half the width and height of each plot."""


@command("two_moons", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Plot two moons under noise and as sampled by each sampler, with a table of the samplers' errors."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    means, n = two_moons(cfg.k), cfg.n
    moons = sample_mixture(means, cfg.std, n, rng.generator(cfg.seed, 0, "moons"))
    schedules, samplers = instantiate(cfg.schedules), instantiate(cfg.samplers)
    rows = {name: add_noise(schedule, moons, cfg) for name, schedule in schedules.items()}
    titles = [f"{share:g} T" for share in cfg.shares]
    plots.plot_points(rows, titles, EXTENT).savefig(out / "two_moons_schedules.png")
    samples = {
        (name, steps): sample(
            instantiate(cfg.schedule), sampler, instantiate(cfg.timestep_spacing), steps, cfg
        )
        for name, sampler in samplers.items()
        for steps in cfg.steps
    }
    rows = {name: [samples[name, steps] for steps in cfg.steps] for name in samplers}
    titles = [f"{steps} steps" for steps in cfg.steps]
    plots.plot_points(rows, titles, EXTENT).savefig(out / "two_moons_samplers.png")
    other_moons = sample_mixture(means, cfg.std, n, rng.generator(cfg.seed, 1, "moons"))
    distances = {key: energy_distance(x, moons) for key, x in samples.items()}
    text = table(distances, energy_distance(other_moons, moons))
    (out / "two_moons.md").write_text(text)
    print(f"{text}\nwrote two_moons_schedules.png, two_moons_samplers.png and two_moons.md to {out}")


def add_noise(schedule: Schedule, z_0: Float[Tensor, "b 2"], cfg: DictConfig) -> list[Float[Tensor, "b 2"]]:
    """Return z_t at the proportions of T in `cfg.shares`."""
    t = torch.tensor([share * schedule.num_steps for share in cfg.shares], dtype=torch.float64)
    eps = torch.randn(z_0.shape, generator=rng.generator(cfg.seed, 0, "eps"), dtype=torch.float64)
    pairs = zip(schedule.alpha(t).flatten(), schedule.sigma(t).flatten(), strict=True)
    return [alpha * z_0 + sigma * eps for alpha, sigma in pairs]


def sample(
    schedule: Schedule, sampler: Sampler, spacing: partial[Tensor], steps: int, cfg: DictConfig
) -> Float[Tensor, "b 2"]:
    """Sample n points with the exact denoiser."""

    def noise(step: int) -> Tensor:
        generator = rng.generator(cfg.seed, 0, f"sampler/{step}")
        return torch.randn(cfg.n, 2, 1, 1, generator=generator, dtype=torch.float64)

    denoise = gaussian_mixture_denoiser(schedule, two_moons(cfg.k), cfg.std)
    *_, z_0 = sampler(denoise, noise(-1), spacing(schedule, steps), schedule, noise)
    return z_0.flatten(1)


def table(distances: Mapping[tuple[str, int], float], floor: float) -> str:
    """Return the energy distances as a Markdown table; `floor` is that of a second exact sample."""
    samplers = dict.fromkeys(name for name, _ in distances)
    steps = dict.fromkeys(n for _, n in distances)
    lines = [
        f"1000 × energy distance from an exact sample; a second exact sample has {1000 * floor:.1f}.",
        "",
        "| sampler | " + " | ".join(f"{n} steps" for n in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for name in samplers:
        lines.append(f"| {name} | " + " | ".join(f"{1000 * distances[name, n]:.1f}" for n in steps) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
