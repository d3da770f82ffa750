"""From a network to `denoise(z_t, t) -> (z_0, eps)`, with or without guidance.

Every guidance leads away from a worse prediction. Without `weak` that is the network's own for `null`, or for
a negative prompt (classifier-free guidance): both predictions come from one pass over a stacked batch. With
`weak`, a smaller or earlier network, it is `weak`'s, and `null` is the condition as that network is told it
(autoguidance, Karras et al. 2024, eq. 3). At scale 1, and outside the interval, it is not computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.objective import Network
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Conditioning

Denoise: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t: b z h w, t: scalar) -> (z_0, eps), both b z h w."""

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(the network's input: b z h w, the network's time: b) -> y, b z h w."""


@runtime_checkable
class Guidance(Protocol):
    """What `guided` and the others below have in common."""

    def __call__(
        self,
        network: Network,
        schedule: Schedule,
        parameterization: Parameterization,
        cond: Conditioning,
        null: Conditioning | None = None,
        scale: float = 1.0,
        weak: Network | None = None,
    ) -> Denoise: ...


def guided(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    weak: Network | None = None,
) -> Denoise:
    """y = y_null + scale (y_cond - y_null) (Ho & Salimans 2022, eq. 6; here scale 1 is no guidance)."""
    return rescaled(network, schedule, parameterization, cond, null, scale, weak, phi=0.0)


def rescaled(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    weak: Network | None = None,
    phi: float = 0.7,
) -> Denoise:
    """y = phi y_g std(y_cond)/std(y_g) + (1 - phi) y_g, y_g as `guided` has it (Lin et al. 2023, eq. 15, 16).

    Large scales spread the prediction more than any image is spread; std is that of each image's y.
    """
    if not 0 <= phi <= 1:
        raise InvalidValue(f"guidance is rescaled by phi in 0..1, not {phi}")
    if scale == 1:
        return _denoise(schedule, parameterization, _prediction(network, cond))
    predictions = _predictions(network, [cond, _given(null, scale)], weak)

    def predict(inputs: Tensor, time: Tensor) -> Tensor:
        y_cond, y_null = predictions(inputs, time)
        y = y_null + scale * (y_cond - y_null)
        if phi == 0:
            return y
        std, std_cond = y.std((1, 2, 3), keepdim=True), y_cond.std((1, 2, 3), keepdim=True)
        return phi * y * std_cond / std + (1 - phi) * y

    return _denoise(schedule, parameterization, predict)


def interval(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    weak: Network | None = None,
    low: float = 0.28,
    high: float = 5.42,
    guidance: Guidance = guided,
) -> Denoise:
    """`guidance` where low < sigma/alpha <= high, none elsewhere (Kynkäänniemi et al. 2024, eq. 6).

    The default is their interval for Stable Diffusion XL (section 4.3); on ImageNet at 512 pixels the lowest
    FID was at (0.28, 2.90] with EDM2-S and (0.19, 1.61] with EDM2-XXL (table 1).
    """
    if not 0 <= low < high:
        raise InvalidValue(
            f"guidance needs an interval of sigma/alpha with 0 <= low < high, not {low}, {high}"
        )
    inside = guidance(network, schedule, parameterization, cond, null, scale, weak)
    outside = guided(network, schedule, parameterization, cond)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = (-schedule.lam(t.reshape(1))).exp().item()
        return inside(z_t, t) if low < ratio <= high else outside(z_t, t)

    return denoise


def two_conditions(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    weak: Network | None = None,
    image_scale: float = 1.5,
) -> Denoise:
    """y = y_null + image_scale (y_image - y_null) + scale (y_cond - y_image) (Brooks et al. 2023, eq. 3).

    The image is the condition's `concat`, the text all else; y_image knows the image alone. What the two
    scales leave out is not computed.
    """
    if scale == 1 and image_scale == 1:
        return _denoise(schedule, parameterization, _prediction(network, cond))
    null = _given(null, scale)
    if cond.concat is None:
        raise InvalidValue("guidance by image and text needs a condition with `concat`, the image")
    image = Conditioning(null.context, null.vector, cond.concat)
    return nested(network, schedule, parameterization, cond, null, scale, weak, [image], [image_scale])


def nested(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    weak: Network | None = None,
    between: Sequence[Conditioning] = (),
    scales: Sequence[float] = (),
) -> Denoise:
    """y = y_null + sum_i s_i (y_{c1..ci} - y_{c1..c(i-1)}) (Brooks et al. 2023, eq. 3, has two conditions).

    `between` are the conditions c1, then c1 and c2, and so on, with their s_i in `scales`; `scale` is that of
    the step to all, `cond`. Where two neighbours' scales agree, and where the first is 1, the prediction
    between them falls out of the sum and is not computed.
    """
    if len(between) != len(scales):
        raise InvalidValue(f"{len(scales)} scales for {len(between)} conditions between null and all")
    steps = [1.0, *scales, scale]
    if all(step == 1 for step in steps):
        return _denoise(schedule, parameterization, _prediction(network, cond))
    levels = [_given(null, scale), *between, cond]
    kept = [i for i in range(len(levels)) if i == len(levels) - 1 or steps[i] != steps[i + 1]]
    # From all to null, for a weak network's is the last; without the null, no network is led away from it.
    weak = weak if kept[0] == 0 else None
    predictions = _predictions(network, [levels[i] for i in reversed(kept)], weak)

    def predict(inputs: Tensor, time: Tensor) -> Tensor:
        found = predictions(inputs, time)[::-1]
        y = found[0]
        for i, before, after in zip(kept[1:], found[:-1], found[1:], strict=True):
            y = y + steps[i] * (after - before)
        return y

    return _denoise(schedule, parameterization, predict)


@dataclass(frozen=True)
class Nested:
    """`nested`, its conditions named: {image: 1.5} leads by 1.5 to the image, then by `scale` to all.

    The order of the names is that of the sum. Without a name, or with None, it is `guided`.
    """

    scales: Mapping[str, float] | None

    @property
    def subsets(self) -> list[tuple[str, ...]]:
        """The names of c1, of c1 and c2, and so on."""
        names = tuple(self.scales or {})
        return [names[: i + 1] for i in range(len(names))]

    def among(self, between: Sequence[Conditioning]) -> Guidance:
        """The guidance by the conditions of these subsets."""
        return partial(nested, between=between, scales=list((self.scales or {}).values()))

    def __call__(
        self,
        network: Network,
        schedule: Schedule,
        parameterization: Parameterization,
        cond: Conditioning,
        null: Conditioning | None = None,
        scale: float = 1.0,
        weak: Network | None = None,
    ) -> Denoise:
        """ValueError if there is a name: its condition is told by `among`."""
        return self.among([])(network, schedule, parameterization, cond, null, scale, weak)


def _denoise(schedule: Schedule, parameterization: Parameterization, predict: Predict) -> Denoise:
    """The network's view of (z_t, t), its prediction, and the solve."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(z_t.device, torch.promote_types(z_t.dtype, torch.float32)).expand(len(z_t))
        alpha_t, sigma_t = schedule.alpha(t).to(z_t.dtype), schedule.sigma(t).to(z_t.dtype)
        inputs = parameterization.input_scale(alpha_t, sigma_t) * z_t
        return parameterization.solve(predict(inputs, schedule.network_time(t)), z_t, alpha_t, sigma_t)

    return denoise


def _prediction(network: Network, cond: Conditioning) -> Predict:
    return lambda inputs, time: network(inputs, time, cond).to(inputs.dtype)


def _predictions(
    network: Network, conds: Sequence[Conditioning], weak: Network | None
) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    """One y for each condition, the last of them `weak`'s where there is one; one pass a network."""
    own = conds if weak is None else conds[:-1]
    stacked, n = _stack(own), len(own)

    def predictions(inputs: Tensor, time: Tensor) -> Sequence[Tensor]:
        found = network(torch.cat([inputs] * n), torch.cat([time] * n), stacked).to(inputs.dtype).chunk(n)
        return found if weak is None else (*found, weak(inputs, time, conds[-1]).to(inputs.dtype))

    return predictions


def _given(null: Conditioning | None, scale: float) -> Conditioning:
    if null is None:
        raise InvalidValue(f"guidance of scale {scale} needs the null condition")
    return null


def _stack(conds: Sequence[Conditioning]) -> Conditioning:
    """One conditioning of all batches; all must fill the same slots."""
    slots = {}
    for field in fields(Conditioning):
        values = [getattr(cond, field.name) for cond in conds]
        filled = [value for value in values if value is not None]
        assert len(filled) in (0, len(values)), f"all conditions must fill {field.name}, or none"
        slots[field.name] = torch.cat(filled) if filled else None
    return Conditioning(**slots)
