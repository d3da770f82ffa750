import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ldm.networks.unet import UNet, sinusoid
from ldm.typing import Conditioning
from tests.support.diffusers_names import unet_state
from tests.support.gradients import assert_same_gradients


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
    transformer_depth: int | tuple[int, ...] = 1,
    **options: Any,
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
        **options,
    )


def shaken(model: nn.Module) -> nn.Module:
    """No parameter at a special value, zero-initialised ones above all."""
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_it_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        y = build()(torch.ones(2, 4, 8, 8), torch.ones(2), Conditioning(context=torch.ones(2, 5, 12)))
    assert y.is_meta and y.shape == (2, 4, 8, 8)


def ask(theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor | None, vector: Tensor | None) -> Tensor:
    """The peer's output."""
    if context is None:
        return theirs(z_t, t).sample
    return theirs(z_t, t, context, class_labels=vector).sample


def both(
    ours: UNet,
    theirs: nn.Module,
    z_t: Tensor,
    cond: Conditioning,
    ask: Any = ask,
    heard: int = 99,
    weights: bool = True,
) -> None:
    """The same output and the same gradients of every input and weight, on the same random weights.

    `heard`: columns of the vector that the peer takes as they are. `weights`: false saves memory.
    """
    state = unet_state(shaken(theirs).state_dict())
    ours.load_state_dict(state)
    t = torch.tensor([3.0, 731.0])[: len(z_t)]
    direction = torch.randn(len(z_t), 4, *z_t.shape[-2:])
    results = []
    for model in (ours, theirs):
        model.requires_grad_(weights)
        z = z_t.clone().requires_grad_()
        inputs = [None if x is None else x.clone().requires_grad_() for x in (cond.context, cond.vector)]
        y = ours(z, t, Conditioning(*inputs)) if model is ours else ask(theirs, z, t, *inputs)
        y.backward(direction)
        gradients = [x.grad[:, :heard] for x in inputs if x is not None and x.grad is not None]
        results.append([y, z.grad, *gradients])
    for mine, other in zip(*results, strict=True):
        assert relative_error(mine, other) < 1e-4
    if weights:
        assert_same_gradients(ours, unet_state({name: p.grad for name, p in theirs.named_parameters()}))


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


def test_it_equals_diffusers_with_heads_of_one_width() -> None:
    """Stable Diffusion 2: linear projections, and a wider level has more heads of the same channels."""
    theirs = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )
    ours = build(num_heads=None, head_channels=16)
    both(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning(context=torch.randn(2, 5, 12)))


def test_it_equals_diffusers_sdxl() -> None:
    """Another depth at each level, and pooled text beside the sinusoids of six sizes in the vector."""
    theirs = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(2, 4, 6),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=10 + 6 * 8,
    )
    ours = build(
        channel_mult=(1, 2, 3), attention_levels=(1, 2), num_heads=None, head_channels=16, vector_channels=58,
        transformer_depth=(1, 2, 3),
    )  # fmt: skip
    sizes = torch.tensor([[1024.0, 768, 0, 12, 1024, 1024], [512, 512, 7, 0, 1024, 896]])

    def ask_sdxl(theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        added = {"text_embeds": vector[:, :10], "time_ids": sizes}
        return theirs(z_t, t, context, added_cond_kwargs=added).sample

    vector = torch.cat([torch.randn(2, 10), sinusoid(sizes.flatten(), 8).view(2, 48)], dim=1)
    cond = Conditioning(torch.randn(2, 5, 12), vector)
    both(ours, theirs, torch.randn(2, 4, 8, 8), cond, ask_sdxl, heard=10)


def test_it_equals_diffusers_upscaler() -> None:
    """The vector is a noise level's label, and outer levels attend to the text alone."""
    theirs = UNet2DConditionModel(
        in_channels=7,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        only_cross_attention=(True, False),
        num_class_embeds=9,
    )
    ours = build(in_channels=7, attention_levels=(0, 1), num_labels=9, cross_only_levels=(0,))
    labels = torch.tensor([[2.0], [7.0]])

    def ask_labelled(theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        return theirs(z_t, t, context, class_labels=vector[:, 0].long()).sample

    both(ours, theirs, torch.randn(2, 7, 8, 8), Conditioning(torch.randn(2, 5, 12), labels), ask_labelled)


def test_it_equals_diffusers_where_blocks_change_the_size() -> None:
    theirs = UNet2DModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        attention_head_dim=8,
        downsample_type="resnet",
        upsample_type="resnet",
    )
    ours = build(
        channel_mult=(1, 2, 2), attention_levels=(0, 2), num_heads=None, head_channels=8,
        context_channels=None, resample_in_blocks=True,
    )  # fmt: skip
    both(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning())


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
        ours = build(
            model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2, attention_levels=(0, 1, 2),
            num_heads=8, context_channels=768,
        )  # fmt: skip
    ours.to_empty(device="cpu")
    both(
        ours, theirs, torch.randn(1, 4, 32, 32), Conditioning(context=torch.randn(1, 77, 768)), weights=False
    )


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


def test_recomputing_blocks_changes_no_gradient() -> None:
    cond, z_t = Conditioning(torch.randn(2, 5, 12), torch.randn(2, 10)), torch.randn(2, 4, 8, 8)
    kept = shaken(build(vector_channels=10, dropout=0.5))
    recomputed = build(vector_channels=10, dropout=0.5, activation_checkpointing=True)
    recomputed.load_state_dict(kept.state_dict())
    passes = []
    recomputed.middle[0].residual.register_forward_hook(lambda *_: passes.append(1))
    for model in (kept, recomputed):
        torch.manual_seed(7)
        model(z_t, torch.ones(2), cond).square().mean().backward()
    for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert len(passes) == 2
    with torch.no_grad():
        recomputed(z_t, torch.ones(2), cond)
    assert len(passes) == 3


def test_one_depth_a_level_and_one_kind_of_vector() -> None:
    with pytest.raises(ValueError, match="3 transformer depths for 2 levels"):
        build(transformer_depth=(1, 2, 3))
    with pytest.raises(ValueError, match="the vector has 8 channels or is one of 9 labels, not both"):
        build(vector_channels=8, num_labels=9)
