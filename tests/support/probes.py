"""How to build, in the smallest size, each class and function that configs name, and how to run it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from ldm.diffusion.guidance import Prediction
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine, ScaledLinear
from ldm.typing import Conditioning

NOT_SET = {
    ("ldm.diffusion.samplers.unipc.bh2", "x"),
    *((f"ldm.diffusion.times.{name}", "schedule") for name in ("leading", "linspace", "trailing")),
    *(
        (f"ldm.diffusion.times.{name}", "steps")
        for name in ("leading", "linspace", "trailing", "karras", "exponential", "explicit")
    ),
    *(
        (f"ldm.diffusion.guidance.{name}", "scale")
        for name in ("classifier_free_guidance", "instruct_pix2pix_cfg", "interval_cfg", "rescaled_cfg")
    ),
    ("ldm.networks.autoencoder.Autoencoder", "latent_mean"),
    ("ldm.networks.autoencoder.Autoencoder", "latent_std"),
}
"""Arguments that the code gives, not a config."""


def call(target: str, **arguments: Any) -> Any:
    return resolve_name(target)(**arguments)


def nothing(built: Any) -> Iterator[Any]:
    return iter(())


@dataclass(frozen=True)
class Case:
    """How to build and run an object.

    Attributes:
        arguments: all arguments but the one that is tried.
        run: yields results that must be finite.
        largest: numbers above are built on the meta device, where they take no memory, and not run.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any], Iterable[Any]] = nothing
    largest: float = 2.0**31
    make: Callable[..., Any] = call

    def build(self, target: str, **changed: Any) -> Any:
        return self.make(target, **{**self.arguments, **changed})


X = torch.rand(2, 3, 32, 32) * 2 - 1
LATENT = torch.randn(2, 4, 8, 8)
SCHEDULE = Cosine(10)
WIDE = 500


def run_schedule(schedule: Any) -> Iterator[Any]:
    T = schedule.num_steps
    t = torch.tensor([1.0, T / 2, T]).clamp(min=1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    yield from (alpha, sigma, schedule.network_time(t), schedule.time(schedule.lam(t[:2]).flatten()))
    assert ((alpha > 0) | (t == T)[:, None, None, None]).all() and (sigma > 0).all()


def run_times(times: Any) -> Iterator[Any]:
    t = times(torch.linspace(0, 1 - 1e-7, 64))
    yield t
    assert (t > 0).all()


def run_weighting(weighting: Any) -> Iterator[Any]:
    t = torch.tensor([1.0, 5, 9])
    yield weighting.loss(torch.ones(3), SCHEDULE.alpha(t), SCHEDULE.sigma(t))


def run_spacing(spacing: Any) -> Iterator[Any]:
    yield spacing(ScaledLinear(), 5)


def run_sampler(sampler: Any) -> Iterator[Any]:
    schedule = ScaledLinear()
    times = torch.tensor([1000.0, 700, 300, 0])
    yield from sampler(
        lambda z, t: (0.5 * z, 0.5 * z), LATENT, times, schedule, lambda i: torch.randn_like(LATENT)
    )


def run_guidance(guidance: Any) -> Iterator[Any]:
    cond = Conditioning(context=torch.ones(2, 1, 4), concat=torch.ones(2, 1, 8, 8))
    null = Conditioning(context=torch.zeros(2, 1, 4), concat=torch.zeros(2, 1, 8, 8))
    prediction = Prediction(lambda z, t, c: z * c.context.mean(), ScaledLinear(), V(), cond, null)
    for t in (1.0, 500.0, 999.0):
        yield from guidance(prediction, 1.5)(LATENT, torch.tensor(t))


def run_image(network: Any) -> Iterator[Any]:
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = network.in_channels if hasattr(network, "in_channels") or first is None else first.in_channels
    yield network(X[:, :1].expand(-1, channels, -1, -1))


def run_decoder(network: Any) -> Iterator[Any]:
    yield network(torch.randn(1, network.in_channels, 4, 4))


def run_denoiser(network: Any) -> Iterator[Any]:
    def of(name: str) -> int | None:
        return getattr(network, name, None)

    vector = None if of("vector_channels") is None else torch.zeros(2, network.vector_channels)
    yield network(
        torch.randn(2, network.in_channels, 8, 8),
        torch.tensor([1.0, 5.0]),
        Conditioning(
            context=None if of("context_channels") is None else torch.randn(2, 3, network.context_channels),
            vector=vector,
        ),
    )


def run_bottleneck(bottleneck: Any) -> Iterator[Any]:
    h = torch.randn(2, bottleneck.in_channels, 4, 4)
    posterior = bottleneck.posterior(h)
    yield posterior.mean
    yield from bottleneck.terms(posterior, 3 * 32 * 32).values()


def run_field(derived: Any) -> Iterator[Any]:
    row = {
        "image": torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8),
        "mask": torch.full((1, 32, 32), 255, dtype=torch.uint8),
    }
    for position in range(3):
        yield from derived(row, position).values()


def run_tokens(tokens: Any) -> Iterator[Any]:
    yield tokens(torch.rand(1, tokens.linear.in_channels, 32, 32))


def run_rate(learning_rate: Any) -> Iterator[Any]:
    yield from (learning_rate(step) for step in (0, 1, 500, 999, 2**31 - 1))


def run_loss(loss: Any) -> Iterator[Any]:
    yield loss(X, X.flip(0))


def make_partial(target: str, **arguments: Any) -> Any:
    return partial(resolve_name(target), **arguments)


def make_adversary(target: str, **arguments: Any) -> Any:
    return call(target, discriminator=nn.Conv2d(3, 1, 4), **arguments)


def run_adversary(adversary: Any) -> Iterator[Any]:
    for step in (0, 1, 10**6, 2**31 - 1):
        yield adversary.weight_at(step)
        assert isinstance(adversary.trains_at(step), bool)
