"""Tables and plots of `studies.downsampling_factors`, with the paper's numbers for comparison."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldm.evaluation.demo.alignment import AlignmentScore

PAPER = {
    "LDM-1 (pixels)": (0.11, 0.26, 24.74),
    "LDM-4 (KL, attention)": (0.32, 0.97, 15.21),
    "LDM-4 (VQ, attention)": (0.33, 0.97, 14.99),
    "LDM-4 (VQ, no attention in the first stage)": (0.35, 0.99, 15.95),
}
"""Samples/s in training and in sampling at 256x256, and FID (Rombach et al. 2022, Table 6: inpainting)."""
CLAIM = 2.7
"""The paper's smallest speed-up over pixel space in training and sampling (the same table)."""


@dataclass(frozen=True)
class Space:
    """Measurements of a first stage and the diffusion model of its latents. Speeds are in images/s."""

    factor: int
    channels: int
    parameters: int
    """Of the U-Net."""
    gmac: float
    """10^9 multiply-accumulates of the U-Net per image and evaluation."""
    planned_seconds: float
    """Planned training time."""
    steps: int
    images: int
    """Number of images seen in training."""
    training_speed: float
    """On cached latents, or on pixels for factor 1."""
    uncached_training_speed: float
    """Where each step encodes its images; for factor 1, the same as `training_speed`."""
    encoding_speed: float | None
    """Of the first stage alone; None for factor 1."""
    denoising_seconds: float
    """For all samples."""
    decoding_seconds: float
    """For all samples."""
    samples: AlignmentScore
    distance: float
    """Fréchet distance of the samples from rendered scenes."""
    reconstructions: AlignmentScore
    """The ceiling of `samples`."""
    training_seconds: float | None = None
    """Actual training time; None without a log."""

    @property
    def sampling_speed(self) -> float:
        """With decoding."""
        return self.samples.n / (self.denoising_seconds + self.decoding_seconds)


def speedups(spaces: Mapping[str, Space]) -> dict[str, dict[str, float]]:
    """Return the speeds of each space relative to the first one."""
    first = next(iter(spaces.values()))
    keys = ("training_speed", "uncached_training_speed", "sampling_speed")
    return {
        name: {key: getattr(space, key) / getattr(first, key) for key in keys}
        for name, space in spaces.items()
    }


def report(spaces: Mapping[str, Space], steps: int, floor: float) -> str:
    """Return three Markdown tables: speed, quality after equal training time, the paper's numbers.

    Args:
        steps: of the sampler.
        floor: the Fréchet distance of as many rendered scenes.
    """
    n, seconds = next(iter(spaces.values())).samples.n, next(iter(spaces.values())).planned_seconds
    return "\n".join(
        [
            f"Speed; × is relative to the first row, sampling is {steps} steps with guidance, and decoding:",
            "",
            *speed_table(spaces),
            "",
            f"Quality after training planned for {seconds:g} s each, in {n} samples each; the Fréchet "
            f"distance of as many rendered scenes is {floor:.3f}:",
            "",
            *score_table(spaces),
            "",
            f"The paper (Rombach et al. 2022, Table 6: inpainting at 256x256), at least {CLAIM} × as fast:",
            "",
            *paper_table(),
            "",
        ]
    )


def speed_table(spaces: Mapping[str, Space]) -> list[str]:
    """Return the lines of the table of sizes and speeds."""
    lines = [
        "| | latent | U-Net | GMAC per image | training, images/s | × | training with encoding, images/s | × "
        "| encoding only, images/s | sampling, images/s | × | proportion of decoding |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, s), r in zip(spaces.items(), speedups(spaces).values(), strict=True):
        latent = f"f{s.factor}, {s.channels} channels"
        encoding = "" if s.encoding_speed is None else f"{s.encoding_speed:.0f}"
        decoding = s.decoding_seconds / (s.denoising_seconds + s.decoding_seconds)
        lines.append(
            f"| {name} | {latent} | {s.parameters / 1e6:.2f} M | {s.gmac:.3f} | {s.training_speed:.1f} "
            f"| {r['training_speed']:.1f} | {s.uncached_training_speed:.1f} "
            f"| {r['uncached_training_speed']:.1f} | {encoding} | {s.sampling_speed:.2f} "
            f"| {r['sampling_speed']:.1f} | {100 * decoding:.1f} % |"
        )
    return lines


def score_table(spaces: Mapping[str, Space]) -> list[str]:
    """Return the lines of the table of training lengths and quality."""
    lines = [
        "| | steps | images seen | training, s | accuracy | 95 % CI | Fréchet distance "
        "| accuracy of reconstructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in spaces.items():
        a, seconds = s.samples, "" if s.training_seconds is None else f"{s.training_seconds:.0f}"
        lines.append(
            f"| {name} | {s.steps:,} | {s.images:,} | {seconds} | {100 * a.passed:.1f} % "
            f"| {100 * a.low:.1f} – {100 * a.high:.1f} | {s.distance:.3f} "
            f"| {100 * s.reconstructions.passed:.1f} % |"
        )
    return lines


def paper_table() -> list[str]:
    """Return the lines of the table of published numbers and their ratios."""
    train, sample, fid = next(iter(PAPER.values()))
    lines = [
        "| | training, samples/s | × | sampling, samples/s | × | FID | times lower |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (a, b, c) in PAPER.items():
        lines.append(
            f"| {name} | {a:.2f} | {a / train:.1f} | {b:.2f} | {b / sample:.1f} | {c:.2f} | {fid / c:.1f} |"
        )
    return lines


def plot(spaces: Mapping[str, Space]) -> Figure:
    """Plot speed relative to the first space, and accuracy and Fréchet distance over training speed."""
    figure = Figure(figsize=(13, 4.6), dpi=100, layout="constrained")
    speed, accuracy, distance = figure.subplots(1, 3)
    _plot_speedups(speed, spaces)
    for name, s in spaces.items():
        a = s.samples
        below, above = max(0.0, a.passed - a.low), max(0.0, a.high - a.passed)
        accuracy.errorbar(
            s.training_speed,
            100 * a.passed,
            yerr=[[100 * below], [100 * above]],
            fmt="o",
            capsize=3,
            label=name,
        )
        distance.plot(s.training_speed, s.distance, "o", label=name)
    accuracy.set(ylabel="accuracy, %, with 95 % intervals", ylim=(-3, 103))
    distance.set(ylabel="Fréchet distance")
    distance.set_yscale("log")
    seconds = next(iter(spaces.values())).planned_seconds
    for axes in (accuracy, distance):
        axes.set(xlabel="training, images/s", title=f"after {seconds:g} s of training")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _plot_speedups(axes: Axes, spaces: Mapping[str, Space]) -> None:
    """Draw three bars per space, and the paper's claim as a line."""
    titles = {
        "training_speed": "training",
        "uncached_training_speed": "training with encoding",
        "sampling_speed": "sampling",
    }
    ratios = speedups(spaces)
    for i, (key, title) in enumerate(titles.items()):
        x = [position + 0.27 * (i - 1) for position in range(len(ratios))]
        bars = axes.bar(x, [r[key] for r in ratios.values()], 0.25, label=title)
        axes.bar_label(bars, fmt="%.1f", fontsize="x-small")
    axes.axhline(CLAIM, color="black", linestyle="--", linewidth=1, label=f"the paper's latents: >= {CLAIM}")
    axes.set_xticks(range(len(ratios)), [f"f{s.factor}" for s in spaces.values()])
    axes.set(title=f"speed relative to {next(iter(spaces))}")
    axes.legend(fontsize="small")
