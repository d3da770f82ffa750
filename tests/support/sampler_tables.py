"""Print the tables of docs/guide/samplers.md: `python -m tests.support.sampler_tables`."""

import math

from ldm.diffusion.samplers import Sampler, dpmpp_3m
from ldm.diffusion.schedule import RectifiedFlow, ScaledLinear, Schedule
from tests.support.exact_samplers import (  # fmt: skip
    ODE,
    SDE,
    exact_denoiser,
    fit_order,
    halve_second,
    marginal,
    measure_errors,
    seeded_noise,
    times_even_in_lam,
)

STEPS = (10, 20, 40, 80, 160)
MULTISTEP = [name for name in ODE if name.startswith(("plms", "dpmpp_2m", "dpmpp_3m", "unipc"))]


def table_row(name: str, sampler: Sampler, schedule: Schedule, exact_steps: int) -> str:
    """Return the errors for all numbers of steps, their slope, and the slope of the last doubling."""
    errors = measure_errors(sampler, schedule, exact_steps, STEPS)
    last = fit_order({n: errors[n] for n in STEPS[-2:]})
    numbers = " | ".join(f"{error:.1e}" for error in errors.values())
    return f"| {name} | {numbers} | {fit_order(errors):.2f} | {last:.2f} |"


def ode_table(schedule: Schedule) -> list[str]:
    """Return the table of ODE samplers, then of multistep samplers with an exact history."""
    head = "| sampler | " + " | ".join(f"N = {n}" for n in STEPS) + " | order | order 80 to 160 |"
    lines = [f"{type(schedule).__name__}:", "", head, "|---" * (len(STEPS) + 3) + "|"]
    lines += [table_row(name, sampler, schedule, 0) for name, sampler in ODE.items()]
    lines += [table_row(f"{name}, exact start", ODE[name], schedule, 2) for name in MULTISTEP]
    derivatives = dpmpp_3m._derivatives
    dpmpp_3m._derivatives = halve_second(derivatives)
    lines += [table_row("dpmpp_3m as published, exact start", dpmpp_3m.dpmpp_3m, schedule, 2)]
    dpmpp_3m._derivatives = derivatives
    return lines


def sde_table(schedule: Schedule, n: int = 20_000) -> list[str]:
    """Return the errors of mean and std of n samples, relative to the exact std, for 25 to 200 steps."""
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
            mean_error, std_error = (z.mean().item() - mean_s) / std_s, z.std().item() / std_s - 1
            cells.append(f"{mean_error:+.3f}, {100 * std_error:+.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", f"(chance: {1 / math.sqrt(n):.3f}, {100 / math.sqrt(2 * n):.1f} %)"]


def main() -> None:
    """Print the tables of two schedules."""
    for schedule in (ScaledLinear(), RectifiedFlow(1000)):
        print("\n".join(["", *ode_table(schedule), "", *sde_table(schedule)]), flush=True)


if __name__ == "__main__":
    main()
