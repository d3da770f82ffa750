"""The frozen CLIP image tower: parity with transformers on the same weights."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ldm.conditioning import clip_tower
from ldm.conditioning.base import Compose
from ldm.conditioning.clip_image import ClipImage
from ldm.errors import UserError

VISION = {"image_size": 16, "layers": 2, "width": 64, "head_width": 32, "patch_size": 4}
RENAMED = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2", "attn": "self_attn"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> open_clip.CLIP:
    """A whole tiny CLIP, registered with open_clip as `tiny-eyes`."""
    config = {
        "embed_dim": 8,
        "vision_cfg": VISION,
        "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
    }
    path = tmp_path_factory.mktemp("configs") / "tiny-eyes.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def weights(clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights folder with `clip` as the tag `own`."""
    folder = tmp_path_factory.mktemp("weights")
    save_file({k: v.clone() for k, v in clip.state_dict().items()}, folder / "tiny-eyes.own.safetensors")
    return str(folder)


def tower(weights: str, **options: bool) -> ClipImage:
    model = ClipImage("tiny-eyes", "own", dropout=0.1, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_WEIGHTS", weights)
        model.load_pretrained()
    return model


def transformers_twin(clip: open_clip.CLIP) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, projection_dim=8, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=4, hidden_act="gelu",
    )  # fmt: skip
    twin, visual = CLIPVisionModelWithProjection(config).eval(), clip.visual
    theirs = {
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "visual_projection.weight": visual.proj.T,
    }
    for ours, other in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for name, tensor in getattr(visual, ours).state_dict().items():
            theirs[f"vision_model.{other}.{name}"] = tensor
    for name, tensor in visual.transformer.resblocks.state_dict().items():
        for ours, other in RENAMED.items():
            name = name.replace(ours, other)
        if "in_proj_" in name:
            for part, piece in zip(("q_proj.", "k_proj.", "v_proj."), tensor.chunk(3), strict=True):
                theirs[f"vision_model.encoder.layers.{name.replace('in_proj_', part)}"] = piece
        else:
            theirs[f"vision_model.encoder.layers.{name}"] = tensor
    twin.load_state_dict(theirs)
    return twin


def images(size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)


def test_the_embedding_equals_transformers(clip: open_clip.CLIP, weights: str) -> None:
    model, x = tower(weights, vector=True), images()
    with torch.no_grad():
        theirs = transformers_twin(clip)(model.preprocess(x)).image_embeds
    torch.testing.assert_close(model(x).context[:, 0], theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x).vector, theirs, rtol=1e-4, atol=1e-4)
    assert model.null(3).context.shape == (3, 1, 8) and not model.null(3).vector.any()


def test_the_patch_tokens_equal_transformers_last_states(clip: open_clip.CLIP, weights: str) -> None:
    model, x = tower(weights, patches=True), images()
    with torch.no_grad():
        twin = transformers_twin(clip)
        states = twin.vision_model.post_layernorm(twin(model.preprocess(x)).last_hidden_state[:, 1:])
    torch.testing.assert_close(model(x).context, states, rtol=1e-4, atol=1e-4)
    assert model.null(2).context.shape == (2, 16, 64) and model(x).vector is None


def test_images_are_uint8_of_any_size(weights: str) -> None:
    model = tower(weights)
    grey = torch.full((1, 3, 40, 24), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor(model.mean)) / torch.tensor(model.std)
    torch.testing.assert_close(model.preprocess(grey), expected.view(1, 3, 1, 1).expand(1, 3, 16, 16))


def test_it_is_frozen_and_left_out_of_checkpoints(weights: str) -> None:
    model = tower(weights)
    assert Compose({"image": model}).state_dict() == {} and not model.train().tower.training
    assert not model(images()).context.requires_grad
    assert model.describe_frozen_weights() == {"name": "tiny-eyes", "weights": "own"}, (
        "open_clip's tags have no hash"
    )


def test_unknown_weights_and_models_are_refused(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_WEIGHTS", weights)
    with pytest.raises(UserError, match="tiny-eyes has no weights 'other': .*clip_vit_l14"):
        ClipImage("tiny-eyes", "other", dropout=0.1).load_pretrained()
    with pytest.raises(ValueError, match="open_clip .* 'ViT-Z'"):
        ClipImage("ViT-Z", "own", dropout=0.1)
    for name in ("roberta-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP2", "ViT-L-14-worldwide"):
        with pytest.raises(ValueError, match=f"tower of {name} is not .*: choose ViT-L-14"):
            clip_tower.build_text_tower(name, projected=False)
    with pytest.raises(ValueError, match="the image tower of RN50 .*patches=false"):
        clip_tower.build_image_tower("RN50", patches=True)


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setenv("LDM_WEIGHTS", "/nowhere")
    monkeypatch.setattr(clip_tower, "download_pretrained", fail)
    message = "laion2b_s32b_b79k of ViT-H-14 .*no network.* /nowhere/ViT-H-14.laion2b_s32b_b79k.safetensors"
    with pytest.raises(UserError, match=message):
        clip_tower.find_weights("ViT-H-14", "laion2b_s32b_b79k")


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_pickles_are_read_without_running_code(tmp_path, wrapped: bool) -> None:
    state = {"module.text.weight": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "w.bin")
    assert list(clip_tower.read_weights(tmp_path / "w.bin")) == ["text.weight"]
