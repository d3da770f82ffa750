"""DiT: parity with the published network, and the same interface as the U-Net."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion.parameterization import V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine
from ldm.diffusion.times import trailing
from ldm.model import LatentDiffusion
from ldm.networks.dit import DiT, sincos_positions
from ldm.typing import Conditioning
from tests.support import tiny
from tests.support.diffusers_names import dit_state
from tests.support.gradients import assert_same_gradients


def perturb(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def small(in_channels: int = 4, **conditions: int | bool | None) -> DiT:
    return DiT(in_channels, 4, patch=2, channels=32, depth=2, num_heads=2, **conditions)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def sum_embedding_gradients(theirs: nn.Module) -> dict[str, Tensor]:
    """Return diffusers' gradients, summed over its blocks' copies of the embeddings that our blocks share."""
    gradients = {name: p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}
    for name in list(gradients):
        _, separator, rest = name.partition(".norm1.emb.")
        first = f"transformer_blocks.0{separator}{rest}"
        if separator and name != first:
            gradients[first] += gradients[name]
    return gradients


def test_it_equals_diffusers_with_its_gradients() -> None:
    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()
    perturb(theirs)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
        # Diffusers has 10000^(-i/127), the paper and the published weights 10000^(-i/128).
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    ours = DiT(4, 8, patch=2, channels=32, depth=2, num_heads=2, num_labels=11)
    ours.load_state_dict(dit_state(theirs.state_dict()))
    t, labels = torch.tensor([3.0, 731.0]), torch.tensor([[4.0], [10.0]])
    z_t, direction, results = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8), []
    for model in (ours, theirs):
        z = z_t.clone().requires_grad_()
        y = (
            ours(z, t, Conditioning(vector=labels))
            if model is ours
            else theirs(z, t, labels[:, 0].long()).sample
        )
        y.backward(direction)
        results.append([y, z.grad])
    for mine, other in zip(*results, strict=True):
        assert relative_error(mine, other) < 1e-4
    assert_same_gradients(ours, dit_state(sum_embedding_gradients(theirs)))


def test_xl_2_has_the_published_cost() -> None:
    """118.6 G multiplications at 256 tokens and 675 M parameters (Peebles & Xie 2023, table 4)."""
    with torch.device("meta"):
        model = DiT(4, 8, patch=2, channels=1152, depth=28, num_heads=16, num_labels=1001)
        with FlopCounterMode(display=False) as counter:
            model(torch.ones(1, 4, 32, 32), torch.ones(1), Conditioning(vector=torch.ones(1, 1)))
    assert (
        sum(p.numel() for p in model.parameters()) == 674_834_720
    )  # they also count 294,912 fixed positions
    assert counter.get_total_flops() / 2e9 == pytest.approx(118.6, abs=0.1)


def test_it_starts_at_zero_and_every_block_as_the_identity() -> None:
    model = small(context_channels=12, vector_channels=10)
    x = torch.randn(2, 16, 32)
    assert torch.equal(model.blocks[0](x, torch.randn(2, 32), torch.randn(2, 5, 12)), x)
    y = model(
        torch.randn(2, 4, 8, 8),
        torch.ones(2),
        Conditioning(context=torch.randn(2, 5, 12), vector=torch.randn(2, 10)),
    )
    assert torch.equal(y, torch.zeros(2, 4, 8, 8))


def test_its_initialisation_is_the_published_one() -> None:
    """Xavier weights, also of the patch convolution, zero biases, N(0, 0.02²) for time and vector."""
    model = small(context_channels=12, vector_channels=10)
    block, xavier = model.blocks[1], {}
    for layer in (model.patches_in, block.self_attention.qkv, block.self_attention.out, block.fc1):
        xavier[layer] = (2 / sum(layer.weight.flatten(1).shape)) ** 0.5
    xavier |= {block.fc2: (2 / 160) ** 0.5, block.cross_attention.kv: (2 / (12 + 64)) ** 0.5}
    embeddings = (model.time_embedding, model.vector_embedding)
    normal = {layer: 0.02 for embed in embeddings for layer in (embed.linear_in, embed.linear_out)}
    for layer, std in (xavier | normal).items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.15)
        assert layer.weight.mean().abs() < 0.2 * std and (layer.bias is None or not layer.bias.any())
        limit = 3**0.5 * std if layer in xavier else torch.inf
        assert layer.weight.abs().max() <= limit
    for layer in (block.modulation, block.cross_attention.out, model.modulation_out, model.patches_out):
        assert not any(p.any() for p in layer.parameters())


def test_every_position_has_its_own_embedding() -> None:
    table = sincos_positions(3, 5, 32, torch.device("cpu"))
    assert torch.cdist(table, table).add(torch.eye(15)).min() > 0.1
    assert torch.equal(table.view(3, 5, 32)[0, :, :16], table.view(3, 5, 32)[2, :, :16]), (
        "the first half encodes the column"
    )


@pytest.mark.parametrize("slot", ["t", "context", "vector", "concat"])
def test_every_slot_reaches_the_output_of_its_own_sample(slot: str) -> None:
    model = perturb(small(in_channels=7, context_channels=12, vector_channels=10))
    inputs = {
        "t": torch.tensor([10.0, 10.0]),
        "context": torch.randn(2, 5, 12),
        "vector": torch.randn(2, 10),
        "concat": torch.randn(2, 3, 8, 4),
    }
    z_t = torch.randn(2, 4, 8, 4)
    changed = {k: v.clone() for k, v in inputs.items()}
    changed[slot][1] += 1
    before, after = (
        model(
            z_t,
            values["t"],
            Conditioning(context=values["context"], vector=values["vector"], concat=values["concat"]),
        )
        for values in (inputs, changed)
    )
    assert torch.allclose(before[0], after[0], atol=1e-5) and not torch.allclose(
        before[1], after[1], atol=1e-3
    )


def test_recomputing_blocks_changes_no_gradient() -> None:
    plain = perturb(small(num_labels=3))
    recomputed = small(num_labels=3, activation_checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    z_t, cond = torch.randn(2, 4, 8, 8), Conditioning(vector=torch.tensor([[0.0], [2.0]]))
    for model in (plain, recomputed):
        model(z_t, torch.ones(2), cond).square().mean().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_it_trains_and_samples_in_place_of_a_unet() -> None:
    dit = DiT(4, 4, patch=2, channels=32, depth=2, num_heads=2, context_channels=8, vector_channels=8)
    conditioner = tiny.diffusion().conditioner
    model = LatentDiffusion(dit, tiny.autoencoder(), conditioner, Cosine(100, 0.008, 0.999), V())
    before = tiny.snapshot(model)
    tiny.fit(tiny.second_stage(model), [tiny.batch(4)] * 4)
    changed = tiny.changed_names(model, before)
    for name in ("patches_in", "blocks.0.self_attention.qkv", "blocks.1.cross_attention.kv"):
        assert f"denoiser.{name}.weight" in changed, name
    assert not any(name.startswith("first_stage.") for name in changed)
    samples = model.generate(
        {"caption": ["a red square"]},
        [0],
        (16, 16),
        sampler=ddim,
        times=trailing(model.schedule, 2),
        scale=2.0,
    )
    assert samples.shape == (1, 3, 16, 16) and samples.isfinite().all()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of \(8, 7\): the DiT .* 2"):
        small()(torch.ones(1, 4, 8, 7), torch.ones(1), Conditioning())
    with pytest.raises(ValueError, match="channels=34: .* multiple of 4"):
        DiT(4, 4, patch=2, channels=34, depth=1, num_heads=2)
