"""What `studies.downsampling_factors` finds of a space, and how it is shown beside the paper's numbers."""

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
"""At least so many times faster than pixel space in training and sampling (the same table)."""


@dataclass(frozen=True)
class Space:
    """One run: a first stage, and the diffusion model of its latents."""

    factor: int
    channels: int
    parameters: int
    """Of the U-Net."""
    gmac: float
    """10^9 multiplications and additions of one pass of one image through the U-Net."""
    seconds: float
    """Of training, as planned."""
    steps: int
    images: int
    """Seen in training."""
    cached: float
    """Images a second of the training run."""
    uncached: float
    """The same where each step encodes its images; of pixels, the training run's."""
    encoding: float | None
    """Images a second of the first stage alone; None without one."""
    denoising: float
    """Seconds of all samples."""
    decoding: float
    samples: AlignmentScore
    distance: float
    """Fréchet distance of the samples."""
    reconstructions: AlignmentScore
    """The ceiling."""
    took: float | None = None
    """Seconds of training, by its log; None without one."""

    @property
    def sampling(self) -> float:
        """Images a second, decoded."""
        return self.samples.n / (self.denoising + self.decoding)


def ratios(spaces: Mapping[str, Space]) -> dict[str, dict[str, float]]:
    """How many times as fast as the first space each is."""
    first = next(iter(spaces.values()))
    return {
        name: {key: getattr(s, key) / getattr(first, key) for key in ("cached", "uncached", "sampling")}
        for name, s in spaces.items()
    }


def report(spaces: Mapping[str, Space], steps: int, floor: float) -> str:
    """Three Markdown tables: speed, what the same time brought, the paper."""
    n, seconds = (next(iter(spaces.values())).samples.n, next(iter(spaces.values())).seconds)
    return "\n".join(
        [
            f"Speed; × is against the first row, sampling is {steps} steps with guidance and decoding:",
            "",
            *speed_table(spaces),
            "",
            f"What training brought, planned for {seconds:g} s each, in {n} samples of each; the Fréchet "
            f"distance of as many drawn scenes is {floor:.3f}:",
            "",
            *score_table(spaces),
            "",
            f"The paper (Rombach et al. 2022, Table 6: inpainting at 256x256): at least {CLAIM} × as fast:",
            "",
            *paper_table(),
            "",
        ]
    )


def speed_table(spaces: Mapping[str, Space]) -> list[str]:
    """Sizes and images a second."""
    lines = [
        "| | latent | U-Net | GMAC a image | training, images/s | × | encoding as it trains | × "
        "| encoding alone, images/s | sampling, images/s | × | of it decoding |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, s), r in zip(spaces.items(), ratios(spaces).values(), strict=True):
        latent = f"f{s.factor}, {s.channels} channels"
        encoding = "" if s.encoding is None else f"{s.encoding:.0f}"
        share = s.decoding / (s.denoising + s.decoding)
        lines.append(
            f"| {name} | {latent} | {s.parameters / 1e6:.2f} M | {s.gmac:.3f} | {s.cached:.1f} "
            f"| {r['cached']:.1f} | {s.uncached:.1f} | {r['uncached']:.1f} | {encoding} "
            f"| {s.sampling:.2f} | {r['sampling']:.1f} | {100 * share:.1f} % |"
        )
    return lines


def score_table(spaces: Mapping[str, Space]) -> list[str]:
    """What was learned."""
    lines = [
        "| | steps | images seen | trained, s | all right | 95 % | Fréchet distance "
        "| reconstructions all right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in spaces.items():
        a, took = s.samples, "" if s.took is None else f"{s.took:.0f}"
        lines.append(
            f"| {name} | {s.steps:,} | {s.images:,} | {took} | {100 * a.passed:.1f} % "
            f"| {100 * a.low:.1f} – {100 * a.high:.1f} | {s.distance:.3f} "
            f"| {100 * s.reconstructions.passed:.1f} % |"
        )
    return lines


def paper_table() -> list[str]:
    """The published numbers, and their ratios."""
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


def figure(spaces: Mapping[str, Space]) -> Figure:
    """How many times as fast as the first space; and what was learned, over the speed of training."""
    made = Figure(figsize=(13, 4.6), dpi=100, layout="constrained")
    speed, score, distance = made.subplots(1, 3)
    _bars(speed, spaces)
    for name, s in spaces.items():
        a = s.samples
        below, above = max(0.0, a.passed - a.low), max(0.0, a.high - a.passed)
        score.errorbar(
            s.cached, 100 * a.passed, yerr=[[100 * below], [100 * above]], fmt="o", capsize=3, label=name
        )
        distance.plot(s.cached, s.distance, "o", label=name)
    score.set(ylabel="all right, %, with 95 % intervals", ylim=(-3, 103))
    distance.set(ylabel="Fréchet distance")
    distance.set_yscale("log")
    seconds = next(iter(spaces.values())).seconds
    for axes in (score, distance):
        axes.set(xlabel="training, images/s", title=f"after {seconds:g} s of training")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return made


def _bars(axes: Axes, spaces: Mapping[str, Space]) -> None:
    """Three bars a space, and the paper's claim as a line."""
    titles = {"cached": "training", "uncached": "training, encoding as it trains", "sampling": "sampling"}
    found = ratios(spaces)
    for i, (key, title) in enumerate(titles.items()):
        places = [place + 0.27 * (i - 1) for place in range(len(found))]
        bars = axes.bar(places, [r[key] for r in found.values()], 0.25, label=title)
        axes.bar_label(bars, fmt="%.1f", fontsize="x-small")
    axes.axhline(CLAIM, color="black", linestyle="--", linewidth=1, label=f"the paper's latents: >= {CLAIM}")
    axes.set_xticks(range(len(found)), [f"f{s.factor}" for s in spaces.values()])
    axes.set(title=f"speed, {next(iter(spaces))} = 1")
    axes.legend(fontsize="small")
