"""The frozen CLIP text tower: parity with published code, at a small size and on random weights."""

import json
import warnings

import open_clip
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm import pretrained
from ldm.conditioning.base import Compose
from ldm.conditioning.clip_text import ClipText, ClipTexts
from ldm.conditioning.tokenizer import ClipTokenizer

WIDTH, DEPTH, HEADS = 32, 2, 4
TEXT = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": DEPTH}
RENAMED = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2", "attn": "self_attn"}
TEXTS = ["a red circle left of a blue square", "", "crème brûlée"]


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> open_clip.CLIP:
    """A whole tiny CLIP, image tower included, registered with open_clip as `tiny-clip`.

    OpenAI's towers use the quick GELU, Stable Diffusion 2's and SDXL's second the exact one.
    """
    config = {
        "embed_dim": 8,
        "quick_gelu": request.param,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4},
        "text_cfg": TEXT,
    }
    path = tmp_path_factory.mktemp("configs") / "tiny-clip.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def loaded(clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> ClipText:
    """A ClipText that loaded `clip` from a TorchScript file, like OpenAI's."""
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        inputs = torch.zeros(1, 3, 8, 8), torch.zeros(1, 77, dtype=torch.int64)
        torch.jit.trace(clip, inputs, check_trace=False).save(path)
    model = ClipText(ClipTokenizer(77, 49407), "tiny-clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "find_or_download", {"clip_vit_l14": path}.__getitem__)
        model.load_pretrained()
    return model


def transformers_twin(clip: open_clip.CLIP, projected: bool = False) -> CLIPTextModel:
    """Return the same weights in transformers' implementation."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        max_position_embeddings=77,
        hidden_act="quick_gelu" if open_clip.get_model_config("tiny-clip")["quick_gelu"] else "gelu",
        projection_dim=8,
        eos_token_id=49407,
    )
    twin = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    theirs = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for name, tensor in clip.transformer.resblocks.state_dict().items():
        for ours, other in RENAMED.items():
            name = name.replace(ours, other)
        if "in_proj_" in name:
            for part, piece in zip(("q_proj.", "k_proj.", "v_proj."), tensor.chunk(3), strict=True):
                theirs[f"encoder.layers.{name.replace('in_proj_', part)}"] = piece
        else:
            theirs[f"encoder.layers.{name}"] = tensor
    prefix = "text_model." if any(key.startswith("text_model.") for key in twin.state_dict()) else ""
    state = {prefix + key: tensor for key, tensor in theirs.items()}
    if projected:
        state["text_projection.weight"] = clip.text_projection.T
    twin.load_state_dict(state)
    return twin


def tower(clip: open_clip.CLIP, pad_token: int = 49407, chunks: int = 1, **options: int | bool) -> ClipText:
    """Return a ClipText with the weights of `clip`."""
    model = ClipText(ClipTokenizer(77, pad_token, chunks=chunks), "tiny-clip", **options)
    state = clip.state_dict()
    model.tower.load_state_dict({name: state[name] for name in model.tower.state_dict()})
    return model


def test_the_context_equals_transformers_last_hidden_state(clip: open_clip.CLIP, loaded: ClipText) -> None:
    with torch.no_grad():
        theirs = transformers_twin(clip)(loaded.tokenizer(TEXTS)).last_hidden_state
    torch.testing.assert_close(loaded(TEXTS).context, theirs, rtol=1e-4, atol=1e-4)


def test_the_projected_end_token_equals_open_clips_encoding(clip: open_clip.CLIP, loaded: ClipText) -> None:
    tokens = loaded.tokenizer(TEXTS)
    ends = loaded(TEXTS).context[torch.arange(3), tokens.argmax(1)]
    with torch.no_grad():
        ours, theirs = ends @ clip.text_projection, clip.encode_text(tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_null_is_the_empty_prompts_encoding(loaded: ClipText) -> None:
    assert loaded.empty.abs().sum() > 0
    torch.testing.assert_close(loaded.null(2).context, loaded(["", ""]).context)


def test_checkpoints_contain_only_the_null(loaded: ClipText) -> None:
    state = Compose({"text": loaded}).state_dict()
    assert list(state) == ["conditioners.text.empty"]
    fresh = ClipText(ClipTokenizer(77, 49407), "tiny-clip")
    weight = fresh.tower.ln_final.weight.clone()
    Compose({"text": fresh}).load_state_dict(state)
    assert torch.equal(fresh.empty, loaded.empty) and torch.equal(fresh.tower.ln_final.weight, weight)
    with pytest.raises(RuntimeError, match="empty"):
        fresh.load_state_dict({})


def test_its_identity_has_the_hash(loaded: ClipText) -> None:
    identity = loaded.describe_frozen_weights()
    assert identity["name"] == "tiny-clip" and identity["weights"] == "clip_vit_l14"
    assert identity["sha256"].startswith("b8cca3fd41ae")


def test_it_is_frozen(loaded: ClipText) -> None:
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.train().tower.training
    assert not loaded(["red"]).context.requires_grad


def test_the_full_size_has_the_published_count_and_no_image_tower() -> None:
    with torch.device("meta"):
        model = ClipText(ClipTokenizer(77, 49407))
    assert sum(p.numel() for p in model.parameters()) == 123_060_480
    assert not any("visual" in name or "projection" in name for name, _ in model.named_parameters())
    assert model.empty.shape == (77, 768)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="76 of 49408: .*length=77 .*words"):
        with torch.device("meta"):
            ClipText(ClipTokenizer(76, 49407))


@pytest.mark.parametrize("pad_token", [0, 49407])
def test_earlier_hidden_states_equal_transformers(clip: open_clip.CLIP, pad_token: int) -> None:
    """SDXL's first tower uses the states before the last block as they are, Stable Diffusion 2 normed."""
    bare = tower(clip, pad_token, skip_layers=1, final_norm=False)
    normed = tower(clip, pad_token, skip_layers=1)
    tokens = bare.tokenizer(TEXTS)
    with torch.no_grad():
        states = transformers_twin(clip)(tokens, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(bare(TEXTS).context, states, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(normed(TEXTS).context, clip.ln_final(states), rtol=1e-4, atol=1e-4)
    assert len(bare.tower.transformer.resblocks) == 1, "an unused block is removed"


@pytest.mark.parametrize("pad_token", [0, 49407])
def test_the_pooled_end_token_equals_transformers(clip: open_clip.CLIP, pad_token: int) -> None:
    """SDXL's second tower: the states before the last block, and the projected end token after it."""
    model = tower(clip, pad_token, skip_layers=1, final_norm=False, pooled=True)
    with torch.no_grad():
        theirs = transformers_twin(clip, projected=True)(model.tokenizer(TEXTS), output_hidden_states=True)
    cond = model(TEXTS)
    torch.testing.assert_close(cond.vector, theirs.text_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cond.context, theirs.hidden_states[-2], rtol=1e-4, atol=1e-4)


def test_a_long_text_is_encoded_in_chunks(clip: open_clip.CLIP) -> None:
    whole = tower(clip, chunks=2, pooled=True)
    words = ["red", "green", "blue", "square", "circle"] * 20
    long, short = whole([" ".join(words), "red"]).context
    single = tower(clip)
    torch.testing.assert_close(long[:77], single([" ".join(words[:75])]).context[0])
    torch.testing.assert_close(long[77:], single([" ".join(words[75:])]).context[0])
    torch.testing.assert_close(short[77:], single([""]).context[0])
    pooled = tower(clip, pooled=True)([" ".join(words[:75])]).vector
    torch.testing.assert_close(whole([" ".join(words)]).vector, pooled)
    assert whole.null(3).context.shape == (3, 154, WIDTH) and whole.null(3).vector.shape == (3, 8)


def test_two_towers_are_concatenated(clip: open_clip.CLIP) -> None:
    first, second = tower(clip, skip_layers=1, final_norm=False), tower(clip, 0, pooled=True)
    both = ClipTexts([first, second])
    cond, null = both(TEXTS), both.null(2)
    torch.testing.assert_close(cond.context, torch.cat([first(TEXTS).context, second(TEXTS).context], dim=2))
    torch.testing.assert_close(cond.vector, second(TEXTS).vector)
    assert null.context.shape == (2, 77, 2 * WIDTH) and not null.context.any() and not null.vector.any()
    assert both.describe_frozen_weights()["1.weights"] == "clip_vit_l14"
    state = Compose({"text": both}).state_dict()
    assert not [name for name in state if "tower." in name]
    with pytest.raises(ValueError, match=r"same number of tokens, not \[77, 154\]"):
        ClipTexts([first, tower(clip, chunks=2)])


def test_skip_layers_is_checked() -> None:
    with pytest.raises(ValueError, match="skip_layers is in 0..11 for ViT-L-14-quickgelu, got 12"):
        with torch.device("meta"):
            ClipText(ClipTokenizer(77, 49407), skip_layers=12)


def with_null(model: ClipText) -> ClipText:
    """Return the model with the null that `load_pretrained` would compute."""
    empty = model([""])
    model.empty.copy_(empty.context[0])
    if model.empty_vector is not None:
        model.empty_vector.copy_(empty.vector[0])
    return model


@pytest.mark.parametrize("trained", [1, 2])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_the_chunks_of_sampling_are_encoded_as_those_of_training(clip, trained: int, chunks: int) -> None:
    """Texts of unequal length, the null and the vector, as by a tower built for that number of chunks."""
    texts = ["red", " ".join(["green", "square"] * 40), " ".join(["blue"] * 160)]
    changed = with_null(tower(clip, chunks=trained, pooled=True))
    changed.set_chunks(chunks)
    changed.tokenizer.warns = False
    built = with_null(tower(clip, chunks=chunks, pooled=True))
    built.tokenizer.warns = False
    for ours, theirs in ((changed(texts), built(texts)), (changed.null(2), built.null(2))):
        assert ours.context.shape[1] == 77 * chunks
        torch.testing.assert_close(ours.context, theirs.context)
        torch.testing.assert_close(ours.vector, theirs.vector)
    both = ClipTexts([changed, changed])
    assert both.null(2).context.shape == both(texts[:2]).context.shape == (2, 77 * chunks, 2 * WIDTH)


def test_weights_change_the_tokens_of_their_words_only(clip) -> None:
    model = with_null(tower(clip, chunks=2, pooled=True))
    words = ["red"] * 80
    plain = model(["a red circle", " ".join(words)])
    model.uses_weights = True
    assert torch.equal(model(["a (red:1.0) circle", "(" + " ".join(words) + ":1)"]).context, plain.context)
    words[77] = "(red:2)"
    weighed = model(["a (red:0) (circle:1.5)", " ".join(words)])
    empty, changed = (
        model.empty,
        [(weighed.context != plain.context).any(2)[i].nonzero().flatten() for i in (0, 1)],
    )
    assert changed[0].tolist() == [2, 3] and changed[1].tolist() == [77 + 1 + 2], "the third word of chunk 2"
    assert torch.equal(weighed.context[0, 2], empty[2])
    expected = empty[3] + 1.5 * (plain.context[0, 3] - empty[3])
    torch.testing.assert_close(weighed.context[0, 3], expected)
    torch.testing.assert_close(weighed.context[1, 80], 2 * plain.context[1, 80] - empty[80])
    assert torch.equal(weighed.vector, plain.vector), "the pooled vector has no tokens to weigh"
    assert torch.equal(model.null(1).context[0], empty)
