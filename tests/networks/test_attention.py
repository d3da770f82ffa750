import pytest
import torch
from torch import Tensor

from ldm.networks.attention import AttentionBlock, CrossAttention, SelfAttention, SpatialTransformer, attend


def naive_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v written out, heads concatenated."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def test_attend_is_the_equation() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(attend(q, k, v), naive_attention(q, k, v))


def test_masked_keys_are_not_attended_to() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    key_mask = torch.arange(7).expand(2, 7) < 4
    torch.testing.assert_close(attend(q, k, v, key_mask), naive_attention(q, k[:, :, :4], v[:, :, :4]))


@pytest.mark.parametrize("last", [7, 4])
def test_training_in_bf16_on_a_cpu_gives_the_same_attention_and_gradients(last: int) -> None:
    key_mask = torch.arange(7).expand(2, 7) < last
    inputs = [torch.randn(2, 3, size, 8) for size in (5, 7, 7)]
    low = [x.bfloat16().requires_grad_() for x in inputs]
    high = [x.detach().float().requires_grad_() for x in low]
    for y in (attend(*low, key_mask), attend(*high, key_mask)):
        y.square().sum().backward()
    torch.testing.assert_close(attend(*low, key_mask).float(), attend(*high, key_mask), atol=0.02, rtol=0.02)
    for a, b in zip(low, high, strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, atol=0.05, rtol=0.05)


def test_self_attention_splits_its_product_into_q_k_v_and_heads() -> None:
    layer, x = SelfAttention(12, num_heads=3), torch.randn(2, 5, 12)
    q, k, v = ((x @ w.T).view(2, 5, 3, 4).transpose(1, 2) for w in layer.qkv.weight.chunk(3))
    torch.testing.assert_close(layer(x), layer.out(naive_attention(q, k, v)))


def test_cross_attention_ignores_the_order_of_its_context() -> None:
    layer, x, context = CrossAttention(12, 6, num_heads=2), torch.randn(2, 5, 12), torch.randn(2, 7, 6)
    torch.testing.assert_close(layer(x, context), layer(x, context.flip(1)))
    assert not torch.allclose(layer(x, context), layer(x, context + 1))


def test_spatial_transformer_starts_as_the_identity_and_is_equivariant_to_flips() -> None:
    layer = SpatialTransformer(16, 6, num_heads=2, depth=2)
    x, context = torch.randn(2, 16, 3, 5), torch.randn(2, 7, 6)
    assert torch.equal(layer(x, context), x)
    torch.nn.init.normal_(layer.proj_out.weight)
    flipped = layer(x.flip(2), context)
    torch.testing.assert_close(flipped, layer(x, context).flip(2), atol=1e-4, rtol=1e-4)


def test_attention_block_is_residual() -> None:
    block, x = AttentionBlock(16, num_heads=2), torch.randn(2, 16, 3, 5)
    tokens = block.attention(block.norm(x).flatten(2).mT)
    torch.testing.assert_close(block(x), x + tokens.mT.unflatten(2, (3, 5)))


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_channels(heads: int) -> None:
    with pytest.raises(ValueError, match=f"12 channels .* {heads} attention heads"):
        SelfAttention(12, heads)
