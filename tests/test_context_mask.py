"""Padded text gives the same prediction as unpadded text: in networks, training, guidance and conditions."""

import pytest
import torch
from torch import Tensor, nn

from ldm.conditioning.base import Compose
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.conditioning.transformer_text import TransformerText
from ldm.diffusion import guidance
from ldm.diffusion.guidance import Prediction
from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.diffusion.tasks.interpolate import interpolate_conditions
from ldm.diffusion.times import UniformTimes
from ldm.diffusion.weighting import Uniform
from ldm.model import LatentDiffusion
from ldm.networks.dit import DiT
from ldm.networks.unet import UNet
from ldm.typing import Conditioning
from tests.networks.test_unet import perturb
from tests.support import tiny

SCHEDULE = Cosine(100)
TEXTS, NEGATIVE = ["a red circle left of a green square", "red"], ["green", "a red square"]
WORDS = ["a", "red", "green", "circle", "square", "left", "of"]
SHORT, LONG = 10, 17
NETWORKS = {
    "U-Net": lambda: UNet(4, 4, 16, (1, 2), 1, (0, 1), 2, None, 8, None),
    "U-Net without self-attention": lambda: UNet(
        4, 4, 16, (1, 2), 1, (0, 1), 2, None, 8, None, cross_only_levels=(0, 1)
    ),
    "DiT": lambda: DiT(4, 4, 2, 32, 2, 4, context_channels=8),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return perturb(NETWORKS[request.param]())


def pad(context: Tensor, length: int) -> Conditioning:
    """Return a context with this many tokens, those that are added large and masked."""
    b, tokens, d = context.shape
    padding = 10 * torch.randn(b, length - tokens, d)
    mask = torch.arange(length).expand(b, -1) < tokens
    return Conditioning(context=torch.cat([context, padding], 1), context_mask=mask)


def assert_close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Compare to 1e-6 of the largest value; guidance adds up `2 scale - 1` times the rounding."""
    largest = max(1.0, a.abs().max().item())
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * largest * (2 * scale - 1))


def test_padding_changes_neither_prediction_nor_gradient(network: nn.Module) -> None:
    z_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 50.0]), torch.randn(2, 5, 8)
    results = []
    for cond in (Conditioning(context=context), pad(context, 5), pad(context, 9)):
        assert cond.context is not None
        cond.context.requires_grad_()
        y = network(z_t, t, cond)
        (gradient,) = torch.autograd.grad(y.square().sum(), cond.context)
        assert not gradient[:, 5:].any()
        results.append((y, gradient[:, :5]))
    for y, gradient in results[1:]:
        assert_close(y, results[0][0])
        assert_close(gradient / gradient.abs().max(), results[0][1] / gradient.abs().max())


def test_each_sample_has_its_own_mask(network: nn.Module) -> None:
    z_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 50.0]), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    y = network(z_t, t, Conditioning(context=context, context_mask=mask))
    assert_close(y[0], network(z_t, t, Conditioning(context=context))[0])
    assert_close(y[1], network(z_t, t, Conditioning(context=context[:, [0, 2]]))[1])


def test_in_bf16_a_mask_excludes_exactly(network: nn.Module) -> None:
    """There training on the CPU uses another kernel."""
    z_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 50.0]), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = [network(z_t, t, cond) for cond in (Conditioning(context=context), pad(context, 9))]
    torch.testing.assert_close(y[0], y[1], rtol=0.02, atol=0.02)


def test_training(network: nn.Module) -> None:
    z_0, eps, u, context = *torch.randn(2, 2, 4, 8, 8), torch.rand(2), torch.randn(2, 5, 8)
    losses = [
        diffusion_loss(network, z_0, cond, eps, u, SCHEDULE, V(), Uniform(), UniformTimes(SCHEDULE.num_steps))
        for cond in (Conditioning(context=context), pad(context, 9))
    ]
    assert_close(losses[1], losses[0])


GUIDANCES = {
    "cfg": guidance.classifier_free_guidance,
    "rescaled": guidance.rescaled_cfg,
    "interval": lambda prediction, scale: guidance.interval_cfg(prediction, scale, 0.0, 1e6),
    "nested": guidance.NestedCFG(None),
}


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("weak", [False, True])
def test_guidance(network: nn.Module, name: str, weak: bool) -> None:
    context, null, z_t = torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.randn(2, 4, 8, 8)
    weak_network = perturb(NETWORKS["DiT"]()) if weak else None

    def denoise(cond: Conditioning, null_cond: Conditioning) -> Tensor:
        prediction = Prediction(network, SCHEDULE, V(), cond, null_cond, weak_network)
        return GUIDANCES[name](prediction, 3.0)(z_t, torch.tensor(50.0))[0]

    # Stacked conditions need one length: the same padding, as if each had been predicted on its own.
    own_length = denoise(pad(context, 5), pad(null, 5))
    assert_close(denoise(pad(context, 12), pad(null, 12)), own_length)
    assert (
        denoise(
            pad(context, 5), Conditioning(context=pad(null, 5).context, context_mask=torch.ones(2, 5).bool())
        )
        - own_length
    ).abs().max() > 1e-3, "the test has no padding that matters"


def test_interpolated_texts() -> None:
    a, b = pad(torch.randn(3, 2, 8), 6), pad(torch.randn(3, 4, 8), 6)
    mask = interpolate_conditions(a, b, torch.tensor([0.0, 0.5, 1.0])).context_mask
    assert mask is not None and mask.sum(1).tolist() == [2, 4, 4]
    mask = interpolate_conditions(b, a, torch.tensor([0.0, 0.5, 1.0])).context_mask
    assert mask is not None and mask.sum(1).tolist() == [4, 4, 2]


def text_model(length: int, **options: bool) -> LatentDiffusion:
    """Return a model of texts and classes whose weights do not depend on the length of the padding."""
    text = TransformerText(ClipTokenizer(length, 49407, WORDS), 8, 1, 2, dropout=0.5, **options)
    conditioner = Compose({"text": text, "class": ClassLabel(3, 8, 0.5)})
    denoiser = UNet(4, 4, 16, (1, 2), 1, (1,), 2, None, 8, None)
    model = LatentDiffusion(denoiser, tiny.autoencoder(), conditioner, SCHEDULE, V()).eval()
    for i, (name, p) in enumerate(model.named_parameters()):
        torch.manual_seed(i)
        rows = torch.randn(LONG, 8)[:length] if "position" in name else torch.randn_like(p)
        p.data = 1.0 * ("norm" in name and "weight" in name) + 0.2 * rows
    return model


def predict(model: LatentDiffusion, scale: float, negative: list[str] | None) -> Tensor:
    batch = {"caption": TEXTS, "label": torch.tensor([0, 2])}
    denoise = model.denoise(batch, scale=scale, negative=negative and {"caption": negative})
    torch.manual_seed(0)
    return denoise(torch.randn(2, 4, 8, 8), torch.tensor(50.0))[0]


@pytest.mark.parametrize(
    ("scale", "negative"), [(1.0, None), (4.0, None), (4.0, NEGATIVE)], ids=["cond", "null", "negative"]
)
def test_denoising(scale: float, negative: list[str] | None) -> None:
    """Texts, their null and a negative prompt, beside a condition without a mask."""
    with torch.no_grad():
        short = predict(text_model(SHORT, mask_padding=True), scale, negative)
        assert_close(predict(text_model(LONG, mask_padding=True), scale, negative), short, scale)
        assert (predict(text_model(LONG), scale, negative) - short).abs().max() > 1e-4


def test_condition_dropout() -> None:
    """Dropped samples get the mask of the null."""
    batch = {"caption": TEXTS, "label": torch.tensor([0, 2])}
    conditions: list[Conditioning] = []
    for length in (SHORT, LONG):
        cond = text_model(length, mask_padding=True).condition(batch, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        assert cond.context_mask is not None
        assert cond.context_mask.sum(1).tolist() == [10 + 1, 2 + 1], "begin and end, and the class"
        conditions.append(cond)
    network = perturb(NETWORKS["DiT"]())
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 50.0])
    assert_close(network(z_t, t, conditions[1]), network(z_t, t, conditions[0]))
