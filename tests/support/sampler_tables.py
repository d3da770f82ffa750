"""The tables of docs/guide/samplers.md: `python -m tests.support.sampler_tables`."""

import math

from ldm.diffusion.samplers import Sampler, dpmpp_3m
from ldm.diffusion.schedule import RectifiedFlow, ScaledLinear, Schedule
from tests.support.exact_samplers import (  # fmt: skip
    ODE,
    SDE,
    seeded_noise,
    measure_errors,
    times_even_in_lam,
    exact_denoiser,
    halve_second,
    marginal,
    fit_order,
)

STEPS = (10, 20, 40, 80, 160)
MULTISTEP = [name for name in ODE if name.startswith(("plms", "dpmpp_2m", "dpmpp_3m", "unipc"))]


def row(name: str, sampler: Sampler, schedule: Schedule, known: int) -> str:
    """Errors at all numbers of steps, the slope through all, and that of the last doubling."""
    found = measure_errors(sampler, schedule, known, STEPS)
    last = fit_order({n: found[n] for n in STEPS[-2:]})
    numbers = " | ".join(f"{error:.1e}" for error in found.values())
    return f"| {name} | {numbers} | {fit_order(found):.2f} | {last:.2f} |"


def ordinary(schedule: Schedule) -> list[str]:
    """ODE samplers from their own start, then multistep ones from exact starting values."""
    head = "| sampler | " + " | ".join(f"N = {n}" for n in STEPS) + " | order | order 80 to 160 |"
    lines = [f"{type(schedule).__name__}:", "", head, "|---" * (len(STEPS) + 3) + "|"]
    lines += [row(name, sampler, schedule, 0) for name, sampler in ODE.items()]
    lines += [row(f"{name}, exact start", ODE[name], schedule, 2) for name in MULTISTEP]
    kept = dpmpp_3m._derivatives
    dpmpp_3m._derivatives = halve_second(kept)
    lines += [row("dpmpp_3m as published, exact start", dpmpp_3m.dpmpp_3m, schedule, 2)]
    dpmpp_3m._derivatives = kept
    return lines


def stochastic(schedule: Schedule, n: int = 20_000) -> list[str]:
    """Mean and std of n samples after 25 to 200 steps, less the exact ones, in exact stds."""
    steps = (25, 50, 100, 200)
    head = "| sampler | " + " | ".join(f"N = {k}" for k in steps) + " |"
    lines = [f"{type(schedule).__name__}:", "", head, "|---" * (len(steps) + 1) + "|"]
    for name, sampler in SDE.items():
        cells = []
        for k in steps:
            times = times_even_in_lam(schedule, k)
            (mean, std), (mean_s, std_s) = marginal(schedule, times[0]), marginal(schedule, times[-1])
            noise = seeded_noise((n, 1, 1, 1))
            *_, z = sampler(exact_denoiser(schedule), mean + std * noise(-1), times, schedule, noise)
            off, spread = (z.mean().item() - mean_s) / std_s, z.std().item() / std_s - 1
            cells.append(f"{off:+.3f}, {100 * spread:+.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", f"(chance: {1 / math.sqrt(n):.3f}, {100 / math.sqrt(2 * n):.1f} %)"]


def main() -> None:
    """Print the tables."""
    for schedule in (ScaledLinear(), RectifiedFlow(1000)):
        print("\n".join(["", *ordinary(schedule), "", *stochastic(schedule)]), flush=True)


if __name__ == "__main__":
    main()
