"""What schedules and samplers make of two moons, exactly denoised: `python -m studies.two_moons out=docs`."""

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
"""Half the side of a image."""


@command("two_moons", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Write images of two moons under noise and of what samplers draw, and a table of how far it is off."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    means, n = two_moons(cfg.k), cfg.n
    true = sample_mixture(means, cfg.std, n, rng.generator(cfg.seed, 0, "moons"))
    schedules, samplers = instantiate(cfg.schedules), instantiate(cfg.samplers)
    rows = {name: noised(schedule, true, cfg) for name, schedule in schedules.items()}
    titles = [f"{share:g} T" for share in cfg.shares]
    plots.clouds(rows, titles, EXTENT).savefig(out / "densities_schedules.png")
    found = {
        (name, steps): sampled(
            instantiate(cfg.schedule), sampler, instantiate(cfg.timestep_spacing), steps, cfg
        )
        for name, sampler in samplers.items()
        for steps in cfg.steps
    }
    rows = {name: [found[name, steps] for steps in cfg.steps] for name in samplers}
    titles = [f"{steps} steps" for steps in cfg.steps]
    plots.clouds(rows, titles, EXTENT).savefig(out / "densities_samplers.png")
    again = sample_mixture(means, cfg.std, n, rng.generator(cfg.seed, 1, "moons"))
    off = {key: energy_distance(x, true) for key, x in found.items()}
    text = table(off, energy_distance(again, true))
    (out / "densities.md").write_text(text)
    print(f"{text}\nwrote densities_schedules.png, densities_samplers.png and densities.md into {out}")


def noised(schedule: Schedule, true: Float[Tensor, "b 2"], cfg: DictConfig) -> list[Float[Tensor, "b 2"]]:
    """z_t at the shares of T that the config lists."""
    t = torch.tensor([share * schedule.num_steps for share in cfg.shares], dtype=torch.float64)
    eps = torch.randn(true.shape, generator=rng.generator(cfg.seed, 0, "eps"), dtype=torch.float64)
    pairs = zip(schedule.alpha(t).flatten(), schedule.sigma(t).flatten(), strict=True)
    return [alpha * true + sigma * eps for alpha, sigma in pairs]


def sampled(
    schedule: Schedule, sampler: Sampler, spacing: partial[Tensor], steps: int, cfg: DictConfig
) -> Float[Tensor, "b 2"]:
    """What a sampler draws."""

    def noise(step: int) -> Tensor:
        generator = rng.generator(cfg.seed, 0, f"sampler/{step}")
        return torch.randn(cfg.n, 2, 1, 1, generator=generator, dtype=torch.float64)

    denoise = gaussian_mixture_denoiser(schedule, two_moons(cfg.k), cfg.std)
    *_, z_0 = sampler(denoise, noise(-1), spacing(schedule, steps), schedule, noise)
    return z_0.flatten(1)


def table(off: Mapping[tuple[str, int], float], floor: float) -> str:
    """Energy distances as Markdown."""
    samplers, steps = (list(dict.fromkeys(key[i] for key in off)) for i in (0, 1))
    lines = [
        f"Energy distance to an exact sample, in thousandths; that of another one is {1000 * floor:.1f}.",
        "",
        "| sampler | " + " | ".join(f"{n} steps" for n in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for name in samplers:
        lines.append(f"| {name} | " + " | ".join(f"{1000 * off[name, n]:.1f}" for n in steps) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
