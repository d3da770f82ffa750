"""Text encoders of `transformers`, tiny ones with random weights."""

import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForTextEncoding,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ldm.conditioning.base import Compose
from ldm.conditioning.pretrained_text import PretrainedText
from ldm.errors import InvalidValue, UserError

WORDS = ["<pad>", "</s>", "<unk>", "[CLS]", "a", "red", "green", "circle", "square", "left", "of"]
TEXTS = ["a red circle left of a green square", "red", ""]


def write_encoder(folder: Path, kind: str = "t5") -> Path:
    """Write a tiny encoder with its tokenizer, as `save_pretrained` does."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A </s>" if kind == "t5" else "[CLS] $A </s>"
    words.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("</s>", 1), ("[CLS]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", cls_token="[CLS]"
    )
    tokenizer.save_pretrained(folder)
    if kind == "t5":
        config = T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        model = T5EncoderModel(config)
    else:
        model = BertModel(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=24,
            )
        )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["t5", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp(request.param), request.param)


def load(folder: Path, length: int = 12, **options: object) -> PretrainedText:
    model = PretrainedText(str(folder), 16, length, **{"bf16": False, **options})
    model.load_pretrained()
    return model


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PretrainedText:
    return load(folder)


def test_the_states_are_the_encoders_without_padding(folder: Path, loaded: PretrainedText) -> None:
    peer = AutoModelForTextEncoding.from_pretrained(folder).eval()
    cond = loaded(TEXTS)
    assert cond.context is not None and cond.context_mask is not None and cond.context.shape == (3, 12, 16)
    for text, states, mask in zip(TEXTS, cond.context, cond.context_mask, strict=True):
        ids = loaded.tokenizer.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = peer(input_ids=ids).last_hidden_state[0]
        assert mask.tolist() == [True] * len(expected) + [False] * (12 - len(expected))
        torch.testing.assert_close(states[mask], expected, rtol=0, atol=1e-6)
        assert not states[~mask].any()


def test_more_padding_changes_nothing(folder: Path, loaded: PretrainedText) -> None:
    longer = load(folder, 20)
    a, b = loaded(TEXTS), longer(TEXTS)
    assert a.context is not None and b.context is not None and a.context_mask is not None
    torch.testing.assert_close(b.context[:, :12], a.context, rtol=0, atol=1e-6)
    assert b.context_mask is not None and torch.equal(b.context_mask[:, :12], a.context_mask)
    assert not b.context_mask[:, 12:].any()


def test_the_null_is_the_encoding_of_the_empty_text(loaded: PretrainedText) -> None:
    null, empty = loaded.null(2), loaded(["", ""])
    for name in ("context", "context_mask"):
        assert torch.equal(getattr(null, name), getattr(empty, name))


def test_dropped_texts_are_those_of_the_null(loaded: PretrainedText) -> None:
    cond = Compose({"text": loaded})({"caption": TEXTS[:2]}, torch.tensor([[0.0], [0.5]]))
    assert cond.context is not None and cond.context_mask is not None
    assert torch.equal(cond.context[0], loaded.empty) and torch.equal(cond.context_mask[0], loaded.empty_mask)
    assert cond.context_mask[1].sum() == loaded(["red"]).context_mask.sum()  # type: ignore[union-attr]


def test_model_files_hold_the_null_alone_and_load_before_and_after_the_encoder(folder: Path, loaded) -> None:
    state = loaded.state_dict()
    assert state.keys() == {"empty", "empty_mask"}
    for model in (PretrainedText(str(folder), 16, 12), load(folder)):
        model.load_state_dict(state)
        assert torch.equal(model.null(1).context[0], loaded.empty)
    assert loaded.describe_frozen_weights() == {"encoder": f"{folder} main"}


def test_it_is_frozen(loaded: PretrainedText) -> None:
    loaded.train()
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.encoder.training
    assert not loaded(TEXTS).context.requires_grad


def test_bf16_is_close(folder: Path, loaded: PretrainedText) -> None:
    half = load(folder, bf16=True)
    assert {p.dtype for p in half.encoder.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half(TEXTS).context, loaded(TEXTS).context, rtol=0.1, atol=0.1)
    assert half(TEXTS).context.dtype == torch.float32


def test_cached_states_are_used_as_they_are(loaded: PretrainedText) -> None:
    fresh = loaded(TEXTS)
    batch = {"caption": ["ignored"] * 3, "text": fresh.context.half(), "text_mask": fresh.context_mask.half()}
    cached = loaded(loaded.read(batch, None))
    assert torch.equal(cached.context, fresh.context.half().float())
    assert torch.equal(cached.context_mask, fresh.context_mask)


def test_a_long_text_is_cut_off_with_a_warning(folder: Path) -> None:
    model = load(folder, 5)
    room = model.tokenizer.max_tokens
    assert room == 5 - model.tokenizer.tokenizer.num_special_tokens_to_add()
    with pytest.warns(
        UserWarning, match="longer than 5 tokens, and its end '.*of a green square' was cut off"
    ):
        cut = model(TEXTS[:1])
    assert cut.context_mask.all()
    assert torch.equal(cut.context, model([" ".join(TEXTS[0].split()[:room])]).context)
    assert model.tokenizer.cut_off(TEXTS[0]) == " ".join(TEXTS[0].split()[room:])
    assert model.tokenizer.cut_off("red") == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(TEXTS[:1])  # reported once


def test_weights_change_the_tokens_of_their_words_only(folder: Path) -> None:
    model = load(folder)
    plain, first = model(["a red circle"]), 0 if model.tokenizer.max_tokens == 11 else 1
    model.uses_weights = True
    weighted = model(["a (red:1.5) circle"])
    expected = plain.context.clone()
    expected[:, first + 1] = model.empty[first + 1] + 1.5 * (
        plain.context[:, first + 1] - model.empty[first + 1]
    )
    torch.testing.assert_close(weighted.context, expected)
    assert torch.equal(model(["a red circle"]).context, plain.context)


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"16 channels, not 32: set the conditioner's width=16 and denoiser"):
        PretrainedText(str(folder), 32, 12).load_pretrained()
    with pytest.raises(UserError, match=r"the text encoder .*/nowhere cannot be loaded \(.*\): give a name"):
        PretrainedText(str(tmp_path / "nowhere"), 16, 12).load_pretrained()
    with pytest.raises(InvalidValue, match="prompt_chunks=2, but .* one chunk of up to"):
        load(folder).set_chunks(2)
    assert load(folder).set_chunks(1) is None


def test_nothing_is_read_before_load_pretrained() -> None:
    with torch.device("meta"):
        model = PretrainedText("google/t5-v1_1-xxl", 4096)
    assert model.null(2).context.shape == (2, 120, 4096) and model.null(2).context_mask.shape == (2, 120)
