"""Summarize a run's log: how long training took, and how far PSNR dropped after the discriminator started."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli.training import run_log


@dataclass(frozen=True)
class PSNRDrop:
    """PSNR after the start of a discriminator, compared with the best PSNR before it."""

    depth: float
    """The largest drop, in dB; negative if PSNR stayed above."""
    steps_below: int
    """Longest period, in steps, more than 1 dB below."""


@dataclass(frozen=True)
class TrainingSummary:
    """The length of a run, and its PSNR drop."""

    steps: int
    seconds: float | None
    """Of training without validation; None for a run too short to log its speed."""
    psnr_drop: PSNRDrop | None
    """None without a discriminator, or without PSNR from before and after its start."""


def summarize(run: Path) -> TrainingSummary | None:
    """Summarize the run in a folder; None without a log."""
    if not (run / "metrics.csv").is_file():
        return None
    log = run_log.read(run)
    steps, batch = log.config["trainer"]["max_steps"], log.config["data"]["global_batch_size"]
    speeds = [value for _, value in log.columns.get("speed/images_per_second", [])]
    seconds = steps * batch * sum(1 / value for value in speeds) / len(speeds) if speeds else None
    adversary = log.config["stage"].get("adversary")  # stage 2 has none
    psnr = log.columns.get("val/psnr", [])
    drop = find_psnr_drop(psnr, adversary["start"]) if adversary else None
    return TrainingSummary(steps, seconds, drop)


def find_psnr_drop(psnr: Sequence[tuple[float, float]], start: int) -> PSNRDrop | None:
    """Return the drop of PSNR, given as (step, dB), after step `start`; None without points on both sides."""
    before = [value for step, value in psnr if step <= start]
    after = [(step, value) for step, value in psnr if step > start]
    if not before or not after:
        return None
    best = max(before)
    longest = 0.0
    fell_at: float | None = None
    for step, value in after:
        if value >= best - 1:
            fell_at = None
            continue
        if fell_at is None:
            fell_at = step
        longest = max(longest, step - fell_at)
    return PSNRDrop(best - min(value for _, value in after), int(longest))


def table(rows: dict[str, TrainingSummary]) -> str:
    """Return a Markdown table with one row per first stage."""
    lines = [
        "| first stage | steps | training, s | largest PSNR drop after the discriminator starts, dB "
        "| steps more than 1 dB below |",
        "|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        seconds = "" if r.seconds is None else f"{r.seconds:.0f}"
        depth = "" if r.psnr_drop is None else f"{r.psnr_drop.depth:.2f}"
        below = "" if r.psnr_drop is None else f"{r.psnr_drop.steps_below}"
        lines.append(f"| {name} | {r.steps:,} | {seconds} | {depth} | {below} |")
    return "\n".join(lines)
