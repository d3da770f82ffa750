"""Text and image towers of open_clip's models: built by name, loaded from published files."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm import pretrained
from ldm.conditioning.tokenizer import VOCAB_SIZE
from ldm.errors import InvalidValue, UserError


def model_config(name: str) -> dict:
    """Return open_clip's config of a model; InvalidValue for an unknown name."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise InvalidValue(f"open_clip has no model {name!r}: see open_clip.list_models()")
    return config


def build_text_tower(name: str, projected: bool) -> TextTransformer:
    """Build a model's text transformer, with or without the projection into the joint embedding space.

    InvalidValue for a tower from another library, without CLIP's byte-pair vocabulary, or with a learned
    class token appended to the text.
    """
    config = model_config(name)
    text = CLIPTextCfg(**config["text_cfg"])
    if text.hf_model_name or text.embed_cls or text.vocab_size != VOCAB_SIZE:
        raise InvalidValue(
            f"the text tower of {name} is not a plain transformer over CLIP's {VOCAB_SIZE} tokens: choose "
            "ViT-L-14, ViT-H-14, ViT-bigG-14, EVA02-L-14 or another model with such a tower (not SigLIP, "
            "CLIPA, CoCa, a multilingual model, or one based on RoBERTa, mT5 or NLLB; see "
            "docs/guide/networks.md)"
        )
    projection = text.proj_type if projected else "none"
    text = replace(text, proj_type=projection, pool_type="none", output_tokens=False)
    return _build_text_tower(config["embed_dim"], text, config.get("quick_gelu", False))


def build_image_tower(name: str, patches: bool) -> nn.Module:
    """Build a model's image tower; with `patches`, the tower also returns the patch tokens."""
    config = model_config(name)
    vision = CLIPVisionCfg(**config["vision_cfg"])
    if patches and (vision.timm_model_name or not isinstance(vision.layers, int)):
        raise InvalidValue(f"the image tower of {name} is not a vision transformer: set patches=false")
    return _build_vision_tower(
        config["embed_dim"], replace(vision, output_tokens=patches), config.get("quick_gelu", False)
    )


def load_tower(tower: nn.Module, name: str, weights: str, prefix: str) -> None:
    """Load a tower of the model `name`; UserError if the weights are missing.

    Args:
        weights: a name in `ldm.pretrained`, or one of open_clip's tags of the model.
        prefix: "text" or "visual", the prefix of the tower's keys in files that hold both towers.
    """
    has_hash = weights in pretrained.WEIGHTS
    state = read_weights(pretrained.find_or_download(weights) if has_hash else find_weights(name, weights))
    prefix = f"{prefix}." if any(key.startswith(f"{prefix}.") for key in state) else ""
    tower.load_state_dict({key: state[prefix + key] for key in tower.state_dict()})


def describe_weights(name: str, weights: str) -> dict[str, str]:
    """Return what a checkpoint stores instead of a tower: name, weights and, if known, their hash."""
    names = {"name": name, "weights": weights}
    return names | ({"sha256": pretrained.WEIGHTS[weights].sha256} if weights in pretrained.WEIGHTS else {})


def find_weights(name: str, tag: str) -> Path:
    """Return the file of an open_clip tag: NAME.TAG.safetensors in the weights folder, else a download."""
    path = pretrained.weights_folder() / f"{name}.{tag}.safetensors"
    if path.is_file():
        return path
    config = get_pretrained_cfg(name, tag)
    if not config:
        tags = ", ".join([*pretrained.WEIGHTS, *list_pretrained_tags_by_model(name)])
        raise UserError(f"{name} has no weights {tag!r}: choose one of {tags}")
    try:
        return Path(download_pretrained(config))
    except Exception as error:  # the type depends on the client that open_clip uses
        raise UserError(
            f"the weights {tag} of {name} are not on this machine and cannot be downloaded ({error}): build "
            f"the model once on a machine with network access, or save its state dict as {path}"
        ) from error


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read a published state dict: safetensors, OpenAI's TorchScript, or a pickle of tensors only."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        state: Mapping[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
        return state
    pickled = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix("module."): value for key, value in pickled.get("state_dict", pickled).items()}


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())
