"""What a run's log says: how long it took, and what the discriminator's onset did."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli import compare


@dataclass(frozen=True)
class PSNRDrop:
    """PSNR behind a discriminator's start, against the best before it."""

    fall: float
    """The deepest, in dB; below 0 where PSNR never was as low again."""
    steps_below: int
    """Longest stretch that stayed more than 1 dB below."""


@dataclass(frozen=True)
class TrainingSummary:
    """A run's length."""

    steps: int
    seconds: float | None
    """Of training, validation left out; None of a run too short to have logged its speed."""
    psnr_drop: PSNRDrop | None


def read(run: Path) -> TrainingSummary | None:
    """A run's training; None for a folder without a log."""
    if not (run / "metrics.csv").is_file():
        return None
    found = compare.read(run)
    steps, batch = (found.config[a][b] for a, b in (("trainer", "max_steps"), ("data", "global_batch_size")))
    speeds = [value for _, value in found.columns.get("speed/images_per_second", [])]
    seconds = steps * batch * sum(1 / value for value in speeds) / len(speeds) if speeds else None
    adversary = found.config["stage"].get("adversary")  # stage 2 has none
    psnr = found.columns.get("val/psnr", [])
    return TrainingSummary(steps, seconds, psnr_drop(psnr, adversary["start"]) if adversary else None)


def psnr_drop(psnr: Sequence[tuple[float, float]], start: int) -> PSNRDrop | None:
    """What PSNR, points of (step, dB), did behind step `start`; None without points on both sides of it."""
    before = [value for step, value in psnr if step <= start]
    later = [(step, value) for step, value in psnr if step > start]
    if not before or not later:
        return None
    best = max(before)
    longest, since = 0.0, None
    for step, value in later:
        since = None if value >= best - 1 else step if since is None else since
        longest = longest if since is None else max(longest, step - since)
    return PSNRDrop(best - min(value for _, value in later), int(longest))


def table(rows: dict[str, TrainingSummary]) -> str:
    """A Markdown table, one first stage a row."""
    lines = [
        "| first stage | steps | training, s | deepest fall of PSNR at the discriminator's onset, dB "
        "| steps more than 1 dB below |",
        "|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        length = "" if r.seconds is None else f"{r.seconds:.0f}"
        behind = "" if r.onset is None else f"{r.onset.fall:.2f}"
        below = "" if r.onset is None else f"{r.onset.steps_below}"
        lines.append(f"| {name} | {r.steps:,} | {length} | {behind} | {below} |")
    return "\n".join(lines)
