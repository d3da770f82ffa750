"""The jointly trained text encoder: what its output depends on, and what not."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from ldm.conditioning.base import Compose
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.conditioning.transformer_text import TransformerText
from ldm.data.demo.scenes import caption, every_scene
from ldm.errors import UserError

WORDS = ["a", "red", "green", "circle", "square", "left", "of"]
TEXTS = ["a red circle left of a green square", "red", ""]


def encoder(length: int = 12, pad_token: int = 49407, pooled: bool = False) -> TransformerText:
    torch.manual_seed(0)
    tokenizer = ClipTokenizer(length, pad_token, WORDS)
    return TransformerText(tokenizer, width=16, depth=2, num_heads=4, pooled=pooled)


def loss(context: torch.Tensor) -> torch.Tensor:
    """Return a scalar that the final layer norm does not make constant."""
    return context.square().mul(torch.arange(16)).sum()


def test_more_padding_changes_nothing() -> None:
    short, long = encoder(12, pooled=True), encoder(20, pooled=True)
    weights = short.state_dict()
    positions = torch.cat([weights["position_embedding"], torch.randn(8, 16)])
    long.load_state_dict({**weights, "position_embedding": positions})
    a, b = short(TEXTS), long(TEXTS)
    torch.testing.assert_close(a.context, b.context[:, :12])
    torch.testing.assert_close(a.vector, b.vector)


def test_the_padding_token_changes_nothing() -> None:
    end, zero = encoder(), encoder(pad_token=0)
    weights = end.state_dict()
    embedding = torch.cat([torch.randn(1, 16), weights["token_embedding.weight"]])  # 0 ranks before all words
    zero.load_state_dict({**weights, "token_embedding.weight": embedding})
    torch.testing.assert_close(end(TEXTS).context, zero(TEXTS).context)


def test_only_the_padding_is_zero() -> None:
    is_nonzero = encoder()(TEXTS).context.abs().sum(2) > 0
    assert is_nonzero.sum(1).tolist() == [10, 3, 2]
    assert is_nonzero[1].tolist() == [True] * 3 + [False] * 9


def test_every_token_depends_on_the_whole_text_and_its_order() -> None:
    model = encoder()
    a, b, c = model(["a red circle left of a green square", "a red circle left of a green circle",
                     "a green square left of a red circle"]).context  # fmt: skip
    assert (
        a[0] - b[0]
    ).abs().max() > 1e-4  # the first token depends on the last word: attention is bidirectional
    assert (a.sum(0) - c.sum(0)).abs().max() > 1e-3


def test_a_text_does_not_depend_on_its_batch() -> None:
    model = encoder()
    torch.testing.assert_close(model(TEXTS).context[1], model([TEXTS[1]]).context[0])


def test_the_vector_is_the_mean_without_padding() -> None:
    cond = encoder(pooled=True)(TEXTS)
    torch.testing.assert_close(cond.vector[1], cond.context[1, :3].mean(0))
    assert encoder()(TEXTS).vector is None


def test_the_null_is_the_empty_text_and_is_learned() -> None:
    model = encoder(pooled=True)
    null, empty = model.null(2), model(["", ""])
    torch.testing.assert_close(null.context, empty.context)
    torch.testing.assert_close(null.vector, empty.vector)
    dropped = Compose({"text": model})({"caption": ["red"]}, torch.zeros(1, 1))
    loss(dropped.context).backward()
    has_gradient = model.token_embedding.weight.grad.abs().sum(1) > 0
    begin, red, end = model.tokenizer(["red"])[0, :3]
    assert has_gradient[begin] and has_gradient[end] and not has_gradient[red]


def test_every_weight_gets_a_gradient() -> None:
    model = encoder()
    loss(model(["a red green circle square left of"]).context).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_width_divides_by_heads() -> None:
    with pytest.raises(ValueError, match="width 16 .* num_heads 3"):
        TransformerText(ClipTokenizer(12, 0), width=16, depth=1, num_heads=3)


def test_the_demos_words_and_length_fit_its_captions() -> None:
    config = Path(__file__).parents[2] / "configs" / "conditioner" / "demo" / "text.yaml"
    tokenizer = instantiate(yaml.safe_load(config.read_text())).conditioners["text"].tokenizer
    captions = [caption(scene) for held_out in (False, True) for scene in every_scene(held_out)]
    words = {word for text in captions for word in text.split()}
    assert words == set(tokenizer.words)
    assert max(len(text.split()) for text in captions) + 2 == tokenizer.length
    assert tokenizer([captions[0]]).max() < tokenizer.vocab_size


def test_the_published_size() -> None:
    """581,994,042 are ours, but with BERT's 30,522 word pieces, and an unused layer of logits."""
    with torch.device("meta"):
        model = TransformerText(ClipTokenizer(77, 49407), 1280, 32, 8, head_channels=64, bias=False)
    ours = sum(p.numel() for p in model.parameters())
    word_pieces, logits = 30_522, 1280 * 30_522 + 30_522
    assert ours - 1280 * (49_408 - word_pieces) + logits == 581_994_042


def test_head_channels_may_differ_from_the_width_per_head() -> None:
    model = TransformerText(ClipTokenizer(12, 49407, WORDS), 16, 1, 3, head_channels=4, bias=False)
    assert model.blocks[0].qkv.weight.shape == (36, 16) and model.blocks[0].qkv.bias is None
    assert model(TEXTS).context.shape == (3, 12, 16)


def test_several_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="1 chunk, not 2: .*tokenizer.length"):
        TransformerText(ClipTokenizer(12, 49407, WORDS, chunks=2), 16, 1, 4)


def test_weights_change_the_tokens_of_their_words_only() -> None:
    model = encoder(pooled=True)
    plain, empty = model(["a red circle"]), model([""])
    with pytest.raises(UserError, match="'.' in 'a .red:2. circle' is not one of the 7 words"):
        model(["a (red:2) circle"])  # brackets are text, as in training
    model.uses_weights = True
    assert torch.equal(model(["(a red circle:1)"]).context, plain.context)
    weighed = model(["a (red:2) circle"])
    assert (weighed.context != plain.context).any(2)[0].nonzero().flatten().tolist() == [2]
    expected = 2 * plain.context[0, 2] - empty.context[0, 2]
    torch.testing.assert_close(weighed.context[0, 2], expected)
    assert torch.equal(weighed.vector, plain.vector)
    assert torch.equal(model.null(1).context, empty.context)


def test_it_takes_no_chunks() -> None:
    model = encoder(length=12)
    model.set_chunks(1)
    with pytest.raises(ValueError, match="prompt_chunks=2, .* up to 10 tokens: use prompt_chunks=null"):
        model.set_chunks(2)
