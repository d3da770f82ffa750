"""From a network to `denoise(z_t, t) -> (z_0, eps)`, with or without guidance.

Guidance extrapolates away from a worse prediction. In classifier-free guidance this is the same network's
prediction for `null`, the empty or the negative prompt; all predictions come from one pass over a stacked
batch. In autoguidance (Karras et al. 2024, eq. 3) it is the prediction of `weak`, a smaller or less trained
network, and `null` holds the condition as encoded for that network. A prediction that does not affect the
result (at scale 1, or outside the interval) is not computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.objective import Network
from ldm.diffusion.parameterization import Parameterization
from ldm.diffusion.schedule import Schedule
from ldm.errors import InvalidValue
from ldm.typing import Conditioning, FiniteFloat, NonNegativeFloat, PositiveFloat, Proportion

Denoise: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t: b z h w, t: scalar) -> (z_0, eps), both b z h w."""


@dataclass(frozen=True)
class Prediction:
    """A network that predicts y (b z h w), and the conditions between which a guidance extrapolates.

    Args:
        cond: the condition to sample from.
        null: the condition to extrapolate away from.
        weak: the network that predicts for `null`; None for `network`.
    """

    network: Network
    schedule: Schedule
    parameterization: Parameterization
    cond: Conditioning
    null: Conditioning | None = None
    weak: Network | None = None

    def without_guidance(self) -> Denoise:
        """Return the denoiser without guidance: y = y_cond."""
        return self._denoise(lambda inputs, time: self.network(inputs, time, self.cond).to(inputs.dtype))

    def combine(
        self, conds: Sequence[Conditioning], mix: Callable[..., Tensor], weak: bool = True
    ) -> Denoise:
        """Return the denoiser with y = mix(y of conds[0], y of conds[1], ...), in one pass per network.

        Args:
            weak: whether the weak network, if there is one, predicts for the last condition.
        """
        weak_network = self.weak if weak else None
        own_conds = conds if weak_network is None else conds[:-1]
        stacked_cond, n = _stack(own_conds), len(own_conds)

        def predict(inputs: Tensor, time: Tensor) -> Tensor:
            y = self.network(torch.cat([inputs] * n), torch.cat([time] * n), stacked_cond)
            predictions = y.to(inputs.dtype).chunk(n)
            if weak_network is not None:
                predictions = (*predictions, weak_network(inputs, time, conds[-1]).to(inputs.dtype))
            return mix(*predictions)

        return self._denoise(predict)

    def required_null(self, scale: float) -> Conditioning:
        """Return `null`; InvalidValue if there is none."""
        if self.null is None:
            raise InvalidValue(f"guidance with scale {scale} needs the null condition")
        return self.null

    def _denoise(self, predict: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
        """Return `denoise`, which scales z_t, calls predict(input, time) -> y and solves for (z_0, eps)."""

        def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            t = t.to(z_t.device, torch.promote_types(z_t.dtype, torch.float32)).expand(len(z_t))
            alpha_t, sigma_t = self.schedule.alpha(t).to(z_t.dtype), self.schedule.sigma(t).to(z_t.dtype)
            inputs = self.parameterization.input_scale(alpha_t, sigma_t) * z_t
            y = predict(inputs, self.schedule.network_time(t))
            return self.parameterization.solve(y, z_t, alpha_t, sigma_t)

        return denoise


@runtime_checkable
class Guidance(Protocol):
    """A function that builds a denoiser from a prediction and a scale.

    Scale 1 is no guidance, unless the function has further scales.
    """

    def __call__(self, prediction: Prediction, scale: float) -> Denoise: ...


def classifier_free_guidance(prediction: Prediction, scale: FiniteFloat) -> Denoise:
    """y = y_null + scale (y_cond - y_null) (Ho & Salimans 2022, eq. 6; here scale 1 is no guidance)."""
    return rescaled_cfg(prediction, scale, phi=0.0)


def rescaled_cfg(prediction: Prediction, scale: FiniteFloat, phi: Proportion = 0.7) -> Denoise:
    """y = phi y_g std(y_cond)/std(y_g) + (1 - phi) y_g (Lin et al. 2023, eq. 15, 16).

    y_g is the y of classifier-free guidance, whose std grows with the scale, which overexposes images. Each
    std is over all elements of one image's y.
    """
    if not 0 <= phi <= 1:
        raise InvalidValue(f"guidance.phi must be in 0..1, not {phi}")
    if scale == 1:
        return prediction.without_guidance()

    def mix(y_cond: Tensor, y_null: Tensor) -> Tensor:
        y = y_null + scale * (y_cond - y_null)
        if phi == 0:
            return y
        std, std_cond = y.std((1, 2, 3), keepdim=True), y_cond.std((1, 2, 3), keepdim=True)
        return phi * y * std_cond / std + (1 - phi) * y

    return prediction.combine([prediction.cond, prediction.required_null(scale)], mix)


def interval_cfg(
    prediction: Prediction,
    scale: FiniteFloat,
    low: NonNegativeFloat = 0.28,
    high: PositiveFloat = 5.42,
    guidance: Guidance = classifier_free_guidance,
) -> Denoise:
    """Apply `guidance` where low < sigma/alpha <= high, none elsewhere (Kynkäänniemi et al. 2024, eq. 6).

    The default is their interval for Stable Diffusion XL (section 4.3); on ImageNet at 512 pixels the lowest
    FID was at (0.28, 2.90] with EDM2-S and (0.19, 1.61] with EDM2-XXL (table 1).
    """
    if not 0 <= low < high:
        raise InvalidValue(f"guidance.low and guidance.high need 0 <= low < high, not {low}, {high}")
    inside, outside = guidance(prediction, scale), prediction.without_guidance()

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = (-prediction.schedule.lam(t.reshape(1))).exp().item()
        return inside(z_t, t) if low < ratio <= high else outside(z_t, t)

    return denoise


def instruct_pix2pix_cfg(
    prediction: Prediction, scale: FiniteFloat, image_scale: FiniteFloat = 1.5
) -> Denoise:
    """y = y_null + image_scale (y_image - y_null) + scale (y_cond - y_image) (Brooks et al. 2023, eq. 3).

    y_image is conditioned only on the image, the condition's `concat`; `scale` applies to all other
    conditions (in the paper, the text).
    """
    if scale == 1 and image_scale == 1:
        return prediction.without_guidance()
    null = prediction.required_null(scale)
    if prediction.cond.concat is None:
        raise InvalidValue(
            "guidance=instruct_pix2pix needs a condition that is concatenated to the latent, but this model "
            "has none: use guidance=cfg"
        )
    image = replace(null, concat=prediction.cond.concat)
    return nested_cfg(prediction, scale, [image], [image_scale])


def nested_cfg(
    prediction: Prediction,
    scale: float,
    intermediate: Sequence[Conditioning] = (),
    scales: Sequence[float] = (),
) -> Denoise:
    """y = y_null + sum_i s_i (y_{c1..ci} - y_{c1..c(i-1)}) (Brooks et al. 2023, eq. 3, has two conditions).

    `intermediate` are the conditions c1, then c1 and c2, and so on, with their s_i in `scales`; `scale` is
    the s_i of the last term, up to `cond`. Where s_i = s_(i+1) the prediction between the two terms cancels,
    and where s_1 = 1 that for null does; these are not computed.
    """
    if len(intermediate) != len(scales):
        raise InvalidValue(
            f"nested_cfg needs a scale per intermediate condition, not {len(scales)} for {len(intermediate)}"
        )
    all_scales = [1.0, *scales, scale]
    if all(s == 1 for s in all_scales):
        return prediction.without_guidance()
    conds = [prediction.required_null(scale), *intermediate, prediction.cond]
    used = [i for i in range(len(conds)) if i == len(conds) - 1 or all_scales[i] != all_scales[i + 1]]

    def mix(*y_from_cond: Tensor) -> Tensor:
        predictions = y_from_cond[::-1]
        y = predictions[0]
        for i, before, after in zip(used[1:], predictions[:-1], predictions[1:], strict=True):
            y = y + all_scales[i] * (after - before)
        return y

    # From cond to null: the weak network predicts for the last condition, unless null cancels.
    return prediction.combine([conds[i] for i in reversed(used)], mix, weak=used[0] == 0)


@dataclass(frozen=True)
class NestedCFG:
    """`nested_cfg` by condition names: {image: 1.5} gives `image` the scale 1.5, all others `scale`.

    The names are in the order of the sum. None or an empty mapping is `classifier_free_guidance`.
    """

    scales: Mapping[str, FiniteFloat] | None

    @property
    def subsets(self) -> list[tuple[str, ...]]:
        """The names of c1, of c1 and c2, and so on."""
        names = tuple(self.scales or {})
        return [names[: i + 1] for i in range(len(names))]

    def with_conditions(self, intermediate: Sequence[Conditioning]) -> Guidance:
        """Return the guidance whose intermediate conditions are those of `subsets`."""
        return partial(nested_cfg, intermediate=intermediate, scales=list((self.scales or {}).values()))

    def __call__(self, prediction: Prediction, scale: float) -> Denoise:
        """Apply classifier-free guidance; InvalidValue with `scales`, which need `with_conditions` first."""
        return self.with_conditions([])(prediction, scale)


def _stack(conds: Sequence[Conditioning]) -> Conditioning:
    """Concatenate conditions along the batch; all must fill the same fields."""
    fields_by_name = {}
    for field in fields(Conditioning):
        values = [getattr(cond, field.name) for cond in conds]
        present = [value for value in values if value is not None]
        assert len(present) in (0, len(values)), f"all conditions must fill {field.name}, or none"
        fields_by_name[field.name] = torch.cat(present) if present else None
    return Conditioning(**fields_by_name)
