import math

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ldm.networks.unet import UNet, sinusoid
from ldm.typing import Conditioning
from tests.networks.diffusers_names import unet_state


def build(
    in_channels: int = 4,
    out_channels: int = 4,
    model_channels: int = 32,
    channel_mult: tuple[int, ...] = (1, 2),
    num_res_blocks: int = 1,
    attention_levels: tuple[int, ...] = (0,),
    num_heads: int | None = 4,
    head_channels: int | None = None,
    context_channels: int | None = 12,
    vector_channels: int | None = None,
    transformer_depth: int = 1,
    scale_shift_norm: bool = False,
) -> UNet:
    return UNet(
        in_channels,
        out_channels,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention_levels,
        num_heads,
        head_channels,
        context_channels,
        vector_channels,
        transformer_depth,
        scale_shift_norm=scale_shift_norm,
    )


def shaken(model: nn.Module) -> nn.Module:
    """No parameter at a special value, zero-initialised ones above all."""
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


SD1 = {
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_levels": (0, 1, 2),
}
LDM4 = {"in_channels": 3, "out_channels": 3, "num_res_blocks": 2, "num_heads": None, "head_channels": 32}


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (859_520_964, SD1 | {"num_heads": 8, "context_channels": 768}),
        (872_300_484, SD1 | {"num_heads": 8, "context_channels": 1280}),
        (865_910_724, SD1 | {"num_heads": None, "head_channels": 64, "context_channels": 1024}),
        (
            870_173_124,
            SD1 | {"num_heads": None, "head_channels": 64, "context_channels": 1024, "vector_channels": 2048},
        ),
        (
            274_056_163,
            LDM4
            | {"model_channels": 224, "channel_mult": (1, 2, 3, 4), "attention_levels": (1, 2, 3)}
            | {"context_channels": None},
        ),
        (
            403_623_939,
            LDM4
            | {"model_channels": 192, "channel_mult": (1, 2, 3, 5), "attention_levels": (1, 2, 3)}
            | {"context_channels": 640},
        ),
        (
            113_622_563,
            LDM4
            | {"model_channels": 160, "channel_mult": (1, 2, 2, 4), "attention_levels": (3,)}
            | {"context_channels": None, "in_channels": 6},
        ),
        (
            215_229_315,
            LDM4
            | {"model_channels": 128, "channel_mult": (1, 4, 8), "attention_levels": ()}
            | {"context_channels": None, "in_channels": 6},
        ),
    ],
    ids=["sd1", "ldm-text-1.45b", "sd2", "sd2-unclip", "ldm4-faces", "ldm4-text", "ldm4-sr", "ldm4-semantic"],
)
def test_the_published_counts(count: int, numbers: dict) -> None:
    with torch.device("meta"):
        model = build(**numbers)
    assert sum(p.numel() for p in model.parameters()) == count


def test_it_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        y = build()(torch.ones(2, 4, 8, 8), torch.ones(2), Conditioning(context=torch.ones(2, 5, 12)))
    assert y.is_meta and y.shape == (2, 4, 8, 8)


def both(ours: UNet, theirs: nn.Module, z_t: Tensor, cond: Conditioning) -> None:
    """The same output and the same gradients of every input, on the same random weights."""
    state = unet_state(shaken(theirs).state_dict())
    ours.load_state_dict(state)
    t = torch.tensor([3.0, 731.0])[: len(z_t)]
    direction = torch.randn(len(z_t), 4, *z_t.shape[-2:])
    results = []
    for model in (ours, theirs):
        model.requires_grad_(False)
        z = z_t.clone().requires_grad_()
        inputs = [None if x is None else x.clone().requires_grad_() for x in (cond.context, cond.vector)]
        if model is ours:
            y = ours(z, t, Conditioning(*inputs))
        elif inputs[0] is None:
            y = theirs(z, t).sample
        else:
            y = theirs(z, t, inputs[0], class_labels=inputs[1]).sample
        y.backward(direction)
        results.append([y, z.grad, *(x.grad for x in inputs if x is not None)])
    for mine, other in zip(*results, strict=True):
        assert relative_error(mine, other) < 1e-4


@pytest.mark.parametrize("linear", [False, True], ids=["conv projection", "linear projection"])
def test_it_equals_diffusers(linear: bool) -> None:
    theirs = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=12,
        attention_head_dim=4,
        transformer_layers_per_block=2,
        use_linear_projection=linear,
    )
    ours = build(
        channel_mult=(1, 2, 2), num_res_blocks=2, attention_levels=(1, 2), num_heads=4, transformer_depth=2
    )
    both(ours, theirs, torch.randn(2, 4, 8, 12), Conditioning(context=torch.randn(2, 5, 12)))


def test_it_equals_diffusers_with_a_vector_and_scale_shift() -> None:
    theirs = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=10,
        resnet_time_scale_shift="scale_shift",
    )
    ours = build(num_heads=None, head_channels=16, vector_channels=10, scale_shift_norm=True)
    cond = Conditioning(context=torch.randn(2, 5, 12), vector=torch.randn(2, 10))
    both(ours, theirs, torch.randn(2, 4, 8, 8), cond)


def test_it_equals_diffusers_unconditional() -> None:
    theirs = UNet2DModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=16,
    )
    ours = build(attention_levels=(1,), num_heads=None, head_channels=16, context_channels=None)
    both(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning())


@pytest.mark.slow
def test_it_equals_diffusers_at_full_size() -> None:
    theirs = UNet2DConditionModel(cross_attention_dim=768)
    with torch.device("meta"):
        ours = build(**SD1, num_heads=8, context_channels=768)
    ours.to_empty(device="cpu")
    both(ours, theirs, torch.randn(1, 4, 32, 32), Conditioning(context=torch.randn(1, 77, 768)))


def test_sinusoid_is_cos_then_sin() -> None:
    e = sinusoid(torch.tensor([0.0, 7.0]), 8)
    assert e[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(e[1, 5], torch.tensor(math.sin(7 * 10000 ** (-1 / 4))))


def test_it_starts_at_zero() -> None:
    y = build()(torch.randn(2, 4, 8, 8), torch.rand(2), Conditioning(context=torch.randn(2, 5, 12)))
    assert torch.equal(y, torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize("slot", ["t", "context", "vector", "concat"])
def test_every_slot_reaches_the_output_of_its_own_sample(slot: str) -> None:
    model = shaken(build(in_channels=7, vector_channels=10))
    inputs = {
        "z_t": torch.randn(2, 4, 8, 8),
        "t": torch.tensor([10.0, 10.0]),
        "context": torch.randn(2, 5, 12),
        "vector": torch.randn(2, 10),
        "concat": torch.randn(2, 3, 8, 8),
    }

    def output(inputs: dict[str, Tensor]) -> Tensor:
        return model(
            inputs["z_t"], inputs["t"], Conditioning(*(inputs[k] for k in ("context", "vector", "concat")))
        )

    changed = {k: v.clone() for k, v in inputs.items()}
    changed[slot][1] += 1
    before, after = output(inputs), output(changed)
    assert torch.allclose(before[0], after[0], atol=1e-6) and not torch.allclose(
        before[1], after[1], atol=1e-3
    )


def test_concat_follows_z_t() -> None:
    model, z, extra = shaken(build(in_channels=7)), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8, 8)
    model.conv_in.weight.data[:, 4:] = 0
    t, context = torch.ones(1), torch.randn(1, 5, 12)
    assert torch.equal(
        model(z, t, Conditioning(context, concat=extra)), model(z, t, Conditioning(context, concat=-extra))
    )


def test_gradients_reach_every_parameter() -> None:
    model = shaken(build(in_channels=7, vector_channels=10))
    cond = Conditioning(torch.randn(2, 5, 12), torch.randn(2, 10), torch.randn(2, 3, 8, 8))
    model(torch.randn(2, 4, 8, 8), torch.rand(2), cond).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_stream_stays_bf16_under_autocast() -> None:
    model, seen = build(), set()
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, y: seen.add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 4, 8, 8), torch.rand(2), Conditioning(context=torch.randn(2, 5, 12)))
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize(
    ("size", "cond", "message"),
    [
        ((4, 8, 7), Conditioning(torch.ones(1, 5, 12)), r"latents of \(8, 7\) do not divide by .* factor 2"),
        ((3, 8, 8), Conditioning(torch.ones(1, 5, 12)), "have 3 channels, the U-Net takes 4"),
        ((4, 8, 8), Conditioning(), "cond.context has None channels, the U-Net takes 12"),
        ((4, 8, 8), Conditioning(torch.ones(1, 5, 13)), "cond.context has 13 channels, the U-Net takes 12"),
        (
            (4, 8, 8),
            Conditioning(torch.ones(1, 5, 12), torch.ones(1, 3)),
            "cond.vector has 3 channels, the U-Net takes None",
        ),
        (
            (2, 8, 8),
            Conditioning(torch.ones(1, 5, 12), concat=torch.ones(1, 2, 4, 4)),
            r"cond.concat of \(4, 4\) beside latents of \(8, 8\)",
        ),
    ],
)
def test_wrong_inputs_are_refused_with_their_numbers(
    size: tuple[int, int, int], cond: Conditioning, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()(torch.ones(1, *size), torch.ones(1), cond)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_heads": 4, "head_channels": 8}, "either num_heads or head_channels"),
        ({"num_heads": None, "head_channels": None}, "either num_heads or head_channels"),
        ({"num_heads": None, "head_channels": 24}, "64 channels need|32 channels need"),
        ({"num_heads": 5}, "32 channels do not divide into 5 attention heads"),
        ({"attention_levels": (2,)}, r"attention levels \[2\] are not all among 0..1"),
    ],
)
def test_wrong_numbers_are_refused(numbers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**numbers)
