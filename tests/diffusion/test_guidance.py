import pytest
import torch

from ldm.diffusion.guidance import (
    Denoise,
    Guidance,
    NestedCFG,
    Prediction,
    classifier_free_guidance,
    instruct_pix2pix_cfg,
    interval_cfg,
    nested_cfg,
    rescaled_cfg,
)
from ldm.diffusion.parameterization import Eps
from ldm.diffusion.schedule import ScaledLinear
from ldm.typing import Conditioning


def guide(  # noqa: ANN201
    variant: Guidance,
    /,
    network,
    schedule,
    parameterization,
    cond,
    null=None,
    scale=1.0,
    weak=None,
    **options,  # noqa: ANN001, ANN003
) -> Denoise:
    return variant(Prediction(network, schedule, parameterization, cond, null, weak), scale, **options)


class Counting:
    """Predicts the mean of the context and counts the samples it is asked for."""

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, z_t, t, cond):  # noqa: ANN001, ANN204
        self.samples += len(z_t)
        return cond.context.mean((1, 2))[:, None, None, None].expand_as(z_t)


def cond(value: float) -> Conditioning:
    return Conditioning(context=torch.full((2, 3, 4), value))


@pytest.mark.parametrize(("scale", "expected", "samples"), [(1.0, 2.0, 2), (3.0, 4.0, 4), (0.0, 1.0, 4)])
def test_extrapolates_from_the_null_and_skips_it_at_scale_one(
    scale: float, expected: float, samples: int
) -> None:
    network, z_t = Counting(), torch.zeros(2, 1, 2, 2)
    denoise = guide(classifier_free_guidance, network, ScaledLinear(), Eps(), cond(2.0), cond(1.0), scale)
    _, eps = denoise(z_t, torch.tensor(500.0))
    torch.testing.assert_close(eps, torch.full_like(eps, expected))
    assert network.samples == samples


def test_guidance_needs_a_null() -> None:
    with pytest.raises(ValueError, match="scale 2.0 needs the null"):
        guide(classifier_free_guidance, Counting(), ScaledLinear(), Eps(), cond(1.0), None, 2.0)


class Recording:
    """y = tanh(z_t) + the means of context and concat; keeps the batch sizes of its calls."""

    def __init__(self, gain: float = 1.0) -> None:
        self.calls: list[int] = []
        self.gain = gain

    def __call__(self, z_t, t, cond):  # noqa: ANN001, ANN204
        self.calls.append(len(z_t))
        y = self.gain * torch.tanh(z_t)
        for slot in (cond.context, cond.concat):
            if slot is not None:
                y = y + slot.flatten(1).mean(1)[:, None, None, None] * z_t.cos()
        return y


def noisy() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def prediction(denoise, t: float = 500.0):  # noqa: ANN001, ANN201
    return denoise(noisy(), torch.tensor(t))[1]


def test_rescaling_keeps_the_spread_of_the_prediction_with_the_condition() -> None:
    """Lin et al. (2023), eq. 15 and 16, written out."""
    at = (ScaledLinear(), Eps(), cond(2.0), cond(1.0))
    y_cond, y_null = (prediction(guide(classifier_free_guidance, Recording(), *at[:2], c)) for c in at[2:])
    y = y_null + 7 * (y_cond - y_null)
    got = prediction(guide(rescaled_cfg, Recording(), *at, 7.0, phi=0.7))
    for i in range(2):
        want = 0.7 * y[i] * y_cond[i].std() / y[i].std() + 0.3 * y[i]
        torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-5)
    whole = prediction(guide(rescaled_cfg, Recording(), *at, 7.0, phi=1.0))
    torch.testing.assert_close(whole.std((1, 2, 3)), y_cond.std((1, 2, 3)), rtol=1e-4, atol=0)
    assert torch.equal(
        prediction(guide(rescaled_cfg, Recording(), *at, 7.0, phi=0.0)),
        prediction(guide(classifier_free_guidance, Recording(), *at, 7.0)),
    )


@pytest.mark.parametrize("variant", [classifier_free_guidance, rescaled_cfg, interval_cfg])
def test_scale_1_is_one_pass_over_the_batch_as_it_is(variant) -> None:  # noqa: ANN001
    network, weak = Recording(), Recording()
    for led_away_by in (None, weak):
        prediction(guide(variant, network, ScaledLinear(), Eps(), cond(2.0), cond(1.0), 1.0, led_away_by))
    assert network.calls == [2, 2] and not weak.calls


@pytest.mark.parametrize("inner", [classifier_free_guidance, rescaled_cfg, instruct_pix2pix_cfg])
def test_outside_the_interval_no_second_pass_is_made(inner) -> None:  # noqa: ANN001
    schedule, network = ScaledLinear(), Recording()
    times = [1.0, 100.0, 500.0, 900.0, 1000.0]
    ratio = [(schedule.sigma(t) / schedule.alpha(t)).item() for t in torch.tensor(times).split(1)]
    conds = [
        Conditioning(context=torch.full((2, 3, 4), v), concat=torch.full((2, 1, 4, 4), v)) for v in (2.0, 1.0)
    ]
    denoise = guide(
        interval_cfg, network, schedule, Eps(), *conds, 4.0, low=ratio[1], high=ratio[3], guidance=inner
    )
    for t in times:
        prediction(denoise, t)
    many = 6 if inner is instruct_pix2pix_cfg else 4
    assert network.calls == [2, 2, many, many, 2], "low is outside, high inside"
    inside = guide(inner, Recording(), schedule, Eps(), *conds, 4.0)
    outside = guide(classifier_free_guidance, Recording(), schedule, Eps(), conds[0])
    assert torch.equal(prediction(denoise, 500.0), prediction(inside, 500.0))
    assert torch.equal(prediction(denoise, 1000.0), prediction(outside, 1000.0))


def test_autoguidance_leads_away_from_the_weaker_network() -> None:
    """D = D_weak + scale (D - D_weak) (Karras et al. 2024, eq. 3), each network with its own condition."""
    schedule, strong, weak = ScaledLinear(), Recording(1.0), Recording(0.6)
    z_0, eps = guide(classifier_free_guidance, strong, schedule, Eps(), cond(2.0), cond(3.0), 2.5, weak)(
        noisy(), torch.tensor(300.0)
    )
    ours = guide(classifier_free_guidance, Recording(1.0), schedule, Eps(), cond(2.0))(
        noisy(), torch.tensor(300.0)
    )
    theirs = guide(classifier_free_guidance, Recording(0.6), schedule, Eps(), cond(3.0))(
        noisy(), torch.tensor(300.0)
    )
    torch.testing.assert_close(z_0, theirs[0] + 2.5 * (ours[0] - theirs[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(eps, theirs[1] + 2.5 * (ours[1] - theirs[1]), rtol=1e-4, atol=1e-4)
    assert strong.calls == weak.calls == [2]


@pytest.mark.parametrize(
    ("scale", "image_scale", "samples"), [(7.5, 1.5, 6), (1.0, 1.5, 6), (7.5, 1.0, 4), (1.0, 1.0, 2)]
)
def test_image_and_text_have_a_scale_each(scale: float, image_scale: float, samples: int) -> None:
    """Brooks et al. (2023), eq. 3, written out; what it does not need is not computed."""
    image, nothing = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4)
    text, no_text = torch.full((2, 3, 4), 2.0), torch.zeros(2, 3, 4)
    both, null = (
        Conditioning(context=text, concat=image),
        Conditioning(context=no_text, concat=nothing),
    )
    network, at = Recording(), (ScaledLinear(), Eps())
    got = prediction(guide(instruct_pix2pix_cfg, network, *at, both, null, scale, image_scale=image_scale))
    y_null, y_image, y_both = (
        prediction(guide(classifier_free_guidance, Recording(), *at, c))
        for c in (null, Conditioning(context=no_text, concat=image), both)
    )
    want = y_null + image_scale * (y_image - y_null) + scale * (y_both - y_image)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert network.calls == [samples]


CHAIN = [cond(v) for v in (0.2, 0.5, 1.1, 2.0)]
"""The null, two conditions between, and all."""


def step_by_step(scales) -> torch.Tensor:  # noqa: ANN001
    """e(null) + sum_i s_i (e(c1..ci) - e(c1..c(i-1))), every term computed."""
    found = [
        prediction(guide(classifier_free_guidance, Recording(), ScaledLinear(), Eps(), c)) for c in CHAIN
    ]
    y = found[0]
    for scale, before, after in zip(scales, found[:-1], found[1:], strict=True):
        y = y + scale * (after - before)
    return y


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_nested_with_one_condition_is_classifier_free_guidance_to_the_last_digit(scale: float) -> None:
    at = (ScaledLinear(), Eps(), cond(2.0), cond(1.0), scale)
    one, plain = Recording(), Recording()
    assert torch.equal(
        prediction(guide(nested_cfg, one, *at)), prediction(guide(classifier_free_guidance, plain, *at))
    )
    assert one.calls == plain.calls
    assert torch.equal(
        prediction(guide(NestedCFG({}), Recording(), *at)),
        prediction(guide(classifier_free_guidance, Recording(), *at)),
    )


def test_nested_with_two_conditions_is_that_of_image_and_text() -> None:
    """Brooks et al. (2023), eq. 3: the image first, then the text."""
    image, nothing = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4)
    text, no_text = torch.full((2, 3, 4), 2.0), torch.zeros(2, 3, 4)
    both, null = (
        Conditioning(context=text, concat=image),
        Conditioning(context=no_text, concat=nothing),
    )
    at = (ScaledLinear(), Eps(), both, null, 7.5)
    theirs = prediction(guide(instruct_pix2pix_cfg, Recording(), *at, image_scale=1.5))
    ours = NestedCFG({"image": 1.5}).with_conditions([Conditioning(context=no_text, concat=image)])
    assert torch.equal(prediction(guide(ours, Recording(), *at)), theirs)


@pytest.mark.parametrize(
    ("scales", "passes"),
    [
        ((2.0, 3.0, 7.5), 4),
        ((2.0, 2.0, 7.5), 3),
        ((2.0, 2.0, 2.0), 2),
        ((1.0, 3.0, 7.5), 3),
        ((1.0, 1.0, 7.5), 2),
        ((1.0, 1.0, 1.0), 1),
        ((2.0, 1.0, 1.0), 3),
        ((0.0, 0.0, 1.0), 3),
    ],
)
def test_nested_leads_from_one_condition_to_the_next_and_makes_no_needless_pass(scales, passes) -> None:  # noqa: ANN001
    network = Recording()
    at = (ScaledLinear(), Eps(), CHAIN[-1], CHAIN[0], scales[-1])
    got = prediction(guide(nested_cfg, network, *at, intermediate=CHAIN[1:-1], scales=scales[:-1]))
    torch.testing.assert_close(got, step_by_step(scales), rtol=1e-4, atol=1e-5)
    assert network.calls == [2 * passes]


def test_nested_takes_its_first_prediction_from_a_weak_network() -> None:
    strong, weak = Recording(1.0), Recording(0.6)
    at = (ScaledLinear(), Eps(), CHAIN[-1], CHAIN[0])
    got = prediction(guide(nested_cfg, strong, *at, 3.0, weak, intermediate=CHAIN[1:2], scales=[2.0]))
    y = [
        prediction(guide(classifier_free_guidance, Recording(1.0), *at[:2], c)) for c in (CHAIN[1], CHAIN[-1])
    ]
    first = prediction(guide(classifier_free_guidance, Recording(0.6), *at[:2], CHAIN[0]))
    torch.testing.assert_close(got, first + 2 * (y[0] - first) + 3 * (y[1] - y[0]), rtol=1e-4, atol=1e-4)
    assert strong.calls == [4] and weak.calls == [2]
    led = guide(nested_cfg, strong, *at, 3.0, weak, intermediate=CHAIN[1:2], scales=[1.0])
    prediction(led)
    assert weak.calls == [2], "the null, and so the weak network, is not needed"


def test_nested_names_its_conditions_in_order() -> None:
    guidance = NestedCFG({"image": 1.5, "text": 3.0})
    assert guidance.subsets == [("image",), ("image", "text")]
    with pytest.raises(ValueError, match="a scale per intermediate condition, not 2 for 0"):
        guide(guidance, Recording(), ScaledLinear(), Eps(), cond(1.0), cond(0.0), 2.0)


def test_refuses_what_is_no_guidance() -> None:
    at = (Recording(), ScaledLinear(), Eps(), cond(1.0), cond(0.0), 2.0)
    with pytest.raises(ValueError, match=r"phi must be in 0\.\.1, not 1\.5"):
        guide(rescaled_cfg, *at, phi=1.5)
    with pytest.raises(ValueError, match=r"0 <= low < high, not 3, 2"):
        guide(interval_cfg, *at, low=3, high=2)
    with pytest.raises(ValueError, match="guidance=instruct_pix2pix needs .* guidance=cfg"):
        guide(instruct_pix2pix_cfg, *at)


def test_a_double_precision_time_does_not_change_the_latents_type() -> None:
    denoise = guide(classifier_free_guidance, Recording(), ScaledLinear(), Eps(), cond(1.0))
    z_0, eps = denoise(noisy(), torch.tensor(500.25, dtype=torch.float64))
    assert z_0.dtype == eps.dtype == torch.float32
    z_0, _ = denoise(noisy().double(), torch.tensor(500.25))
    assert z_0.dtype == torch.float64


def test_without_guidance_nested_needs_no_null() -> None:
    at = (ScaledLinear(), Eps(), cond(2.0), None, 1.0)
    same = prediction(guide(classifier_free_guidance, Recording(), *at))
    nested = guide(nested_cfg, Recording(), *at, intermediate=[cond(1.0)], scales=[1.0])
    assert torch.equal(prediction(nested), same)
