import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ldm.networks.denoiser import sinusoidal_embedding
from ldm.networks.unet import UNet
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


def perturb(model: nn.Module) -> nn.Module:
    """Move every parameter away from special values, above all from zero initialisation."""
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_it_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        y = build()(torch.ones(2, 4, 8, 8), torch.ones(2), Conditioning(context=torch.ones(2, 5, 12)))
    assert y.is_meta and y.shape == (2, 4, 8, 8)


def call_peer(
    theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor | None, vector: Tensor | None
) -> Tensor:
    """Return the output of a diffusers network."""
    if context is None:
        return theirs(z_t, t).sample
    return theirs(z_t, t, context, class_labels=vector).sample


def assert_parity(
    ours: UNet,
    theirs: nn.Module,
    z_t: Tensor,
    cond: Conditioning,
    call_peer: Any = call_peer,
    vector_columns: int = 99,
    weights: bool = True,
) -> None:
    """Assert equal outputs and gradients of every input and weight, with the same random weights.

    `vector_columns`: leading columns of the vector with a gradient in diffusers. `weights`: whether to check
    gradients of the weights; false saves memory.
    """
    state = unet_state(perturb(theirs).state_dict())
    ours.load_state_dict(state)
    t = torch.tensor([3.0, 731.0])[: len(z_t)]
    direction = torch.randn(len(z_t), 4, *z_t.shape[-2:])
    results = []
    for model in (ours, theirs):
        model.requires_grad_(weights)
        z = z_t.clone().requires_grad_()
        inputs = [None if x is None else x.clone().requires_grad_() for x in (cond.context, cond.vector)]
        named = dict(zip(("context", "vector"), inputs, strict=True))
        y = ours(z, t, Conditioning(**named)) if model is ours else call_peer(theirs, z, t, *inputs)
        y.backward(direction)
        gradients = [x.grad[:, :vector_columns] for x in inputs if x is not None and x.grad is not None]
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
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 12), Conditioning(context=torch.randn(2, 5, 12)))


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
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 8), cond)


def test_it_equals_diffusers_with_heads_of_one_width() -> None:
    """Stable Diffusion 2: linear projections, and more heads of the same width in wider levels."""
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
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning(context=torch.randn(2, 5, 12)))


def test_it_equals_diffusers_sdxl() -> None:
    """A different depth per level; pooled text and the sinusoidal embeddings of six sizes in the vector."""
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

    def call_sdxl(theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        added = {"text_embeds": vector[:, :10], "time_ids": sizes}
        return theirs(z_t, t, context, added_cond_kwargs=added).sample

    vector = torch.cat([torch.randn(2, 10), sinusoidal_embedding(sizes.flatten(), 8).view(2, 48)], dim=1)
    cond = Conditioning(context=torch.randn(2, 5, 12), vector=vector)
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 8), cond, call_sdxl, vector_columns=10)


def test_it_equals_diffusers_upscaler() -> None:
    """The vector is a noise-level label, and the outer levels attend only to the text."""
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

    def call_labelled(theirs: nn.Module, z_t: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        return theirs(z_t, t, context, class_labels=vector[:, 0].long()).sample

    assert_parity(
        ours,
        theirs,
        torch.randn(2, 7, 8, 8),
        Conditioning(context=torch.randn(2, 5, 12), vector=labels),
        call_labelled,
    )


def test_it_equals_diffusers_with_resampling_in_blocks() -> None:
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
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning())


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
    assert_parity(ours, theirs, torch.randn(2, 4, 8, 8), Conditioning())


@pytest.mark.slow
def test_it_equals_diffusers_at_full_size() -> None:
    theirs = UNet2DConditionModel(cross_attention_dim=768)
    with torch.device("meta"):
        ours = build(
            model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2, attention_levels=(0, 1, 2),
            num_heads=8, context_channels=768,
        )  # fmt: skip
    ours.to_empty(device="cpu")
    assert_parity(
        ours, theirs, torch.randn(1, 4, 32, 32), Conditioning(context=torch.randn(1, 77, 768)), weights=False
    )


def test_sinusoidal_embedding_is_cos_then_sin() -> None:
    e = sinusoidal_embedding(torch.tensor([0.0, 7.0]), 8)
    assert e[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(e[1, 5], torch.tensor(math.sin(7 * 10000 ** (-1 / 4))))


def test_it_starts_at_zero() -> None:
    y = build()(torch.randn(2, 4, 8, 8), torch.rand(2), Conditioning(context=torch.randn(2, 5, 12)))
    assert torch.equal(y, torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize("slot", ["t", "context", "vector", "concat"])
def test_every_slot_reaches_the_output_of_its_own_sample(slot: str) -> None:
    model = perturb(build(in_channels=7, vector_channels=10))
    inputs = {
        "z_t": torch.randn(2, 4, 8, 8),
        "t": torch.tensor([10.0, 10.0]),
        "context": torch.randn(2, 5, 12),
        "vector": torch.randn(2, 10),
        "concat": torch.randn(2, 3, 8, 8),
    }

    def output(inputs: dict[str, Tensor]) -> Tensor:
        return model(
            inputs["z_t"],
            inputs["t"],
            Conditioning(**{k: inputs[k] for k in ("context", "vector", "concat")}),
        )

    changed = {k: v.clone() for k, v in inputs.items()}
    changed[slot][1] += 1
    before, after = output(inputs), output(changed)
    assert torch.allclose(before[0], after[0], atol=1e-6) and not torch.allclose(
        before[1], after[1], atol=1e-3
    )


def test_concat_comes_after_z_t() -> None:
    model, z, extra = perturb(build(in_channels=7)), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8, 8)
    model.conv_in.weight.data[:, 4:] = 0
    t, context = torch.ones(1), torch.randn(1, 5, 12)
    assert torch.equal(
        model(z, t, Conditioning(context=context, concat=extra)),
        model(z, t, Conditioning(context=context, concat=-extra)),
    )


def test_gradients_reach_every_parameter() -> None:
    model = perturb(build(in_channels=7, vector_channels=10))
    cond = Conditioning(
        context=torch.randn(2, 5, 12), vector=torch.randn(2, 10), concat=torch.randn(2, 3, 8, 8)
    )
    model(torch.randn(2, 4, 8, 8), torch.rand(2), cond).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_activations_stay_bf16_under_autocast() -> None:
    model, dtypes = build(), set()
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, y: dtypes.add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 4, 8, 8), torch.rand(2), Conditioning(context=torch.randn(2, 5, 12)))
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize(
    ("size", "cond", "message"),
    [
        ((4, 8, 7), Conditioning(context=torch.ones(1, 5, 12)), r"latents of \(8, 7\): .* 2"),
        ((3, 8, 8), Conditioning(context=torch.ones(1, 5, 12)), "have 3 channels, .* 4"),
        ((4, 8, 8), Conditioning(), "cond.context has None channels, .* 12"),
        ((4, 8, 8), Conditioning(context=torch.ones(1, 5, 13)), "cond.context has 13 channels, .* 12"),
        (
            (4, 8, 8),
            Conditioning(context=torch.ones(1, 5, 12), vector=torch.ones(1, 3)),
            "cond.vector has 3 channels, .* None",
        ),
        (
            (2, 8, 8),
            Conditioning(context=torch.ones(1, 5, 12), concat=torch.ones(1, 2, 4, 4)),
            r"cond.concat of \(4, 4\) .* \(8, 8\)",
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
        ({"num_heads": 4, "head_channels": 8}, "num_heads=4 and head_channels=8"),
        ({"num_heads": None, "head_channels": None}, "num_heads=None and head_channels=None"),
        ({"num_heads": None, "head_channels": 24}, "head_channels=24 for (64|32) channels"),
        ({"num_heads": 5}, "32 channels .* 5 attention heads"),
        ({"attention_levels": (2,)}, r"attention levels \[2\]: .* 0\.\.1"),
    ],
)
def test_wrong_numbers_are_refused(numbers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**numbers)


def test_recomputing_blocks_changes_no_gradient() -> None:
    cond, z_t = (
        Conditioning(context=torch.randn(2, 5, 12), vector=torch.randn(2, 10)),
        torch.randn(2, 4, 8, 8),
    )
    plain = perturb(build(vector_channels=10, dropout=0.5))
    recomputed = build(vector_channels=10, dropout=0.5, activation_checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    passes = []
    recomputed.middle[0].residual.register_forward_hook(lambda *_: passes.append(1))
    for model in (plain, recomputed):
        torch.manual_seed(7)
        model(z_t, torch.ones(2), cond).square().mean().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert len(passes) == 2
    with torch.no_grad():
        recomputed(z_t, torch.ones(2), cond)
    assert len(passes) == 3


def test_one_depth_per_level_and_one_kind_of_vector() -> None:
    with pytest.raises(ValueError, match="transformer_depth has 3 .* 2 levels"):
        build(transformer_depth=(1, 2, 3))
    with pytest.raises(ValueError, match="vector_channels=8 and num_labels=9"):
        build(vector_channels=8, num_labels=9)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_hold_a_sine_and_a_cosine_of_the_time(channels):
    with pytest.raises(ValueError, match=f"model_channels={channels} must be even"):
        UNet(4, 4, channels, (1, 2), 1, (), 1, None, None)
