"""The halves of open_clip's models: built by name, filled from published files."""

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
from ldm.conditioning.tokenizer import VOCABULARY
from ldm.errors import InvalidValue, UserError


def architecture(name: str) -> dict:
    """open_clip's numbers of a model; ValueError for a name that it does not know."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise InvalidValue(f"open_clip knows no model {name!r}: open_clip.list_models() names them")
    return config


def text_tower(name: str, projected: bool) -> TextTransformer:
    """A model's transformer over tokens, with the projection into the joint space if asked for.

    ValueError for a text tower of another library, one of other tokens than CLIP's byte pairs, or one that
    reads a token of its own behind the text.
    """
    config = architecture(name)
    text = CLIPTextCfg(**config["text_cfg"])
    if text.hf_model_name or text.embed_cls or text.vocab_size != VOCABULARY:
        raise InvalidValue(
            f"the text tower of {name} is not a plain transformer over CLIP's {VOCABULARY} tokens: choose a "
            "model whose is, such as ViT-L-14, ViT-H-14, ViT-bigG-14 or EVA02-L-14 (not SigLIP, CLIPA, CoCa, "
            "nor those on RoBERTa, mT5, NLLB or for many languages: docs/networks.md)"
        )
    projection = text.proj_type if projected else "none"
    text = replace(text, proj_type=projection, pool_type="none", output_tokens=False)
    return _build_text_tower(config["embed_dim"], text, config.get("quick_gelu", False))


def image_tower(name: str, patches: bool) -> nn.Module:
    """A model's image half, which gives its patches' tokens beside the embedding if asked for."""
    config = architecture(name)
    vision = CLIPVisionCfg(**config["vision_cfg"])
    if patches and (vision.timm_model_name or not isinstance(vision.layers, int)):
        raise InvalidValue(f"the image tower of {name} is not a transformer of patches: patches=false")
    return _build_vision_tower(
        config["embed_dim"], replace(vision, output_tokens=patches), config.get("quick_gelu", False)
    )


def load_tower(tower: nn.Module, name: str, weights: str, half: str) -> None:
    """Loads a tower of the model `name`; UserError where the weights are missing.

    Args:
        weights: a name of `ldm.pretrained`, or one of open_clip's tags of the model.
        half: "text" or "visual", as files name the tower where both halves have names.
    """
    known = weights in pretrained.WEIGHTS
    published = read_weights(pretrained.find(weights) if known else find_weights(name, weights))
    prefix = f"{half}." if any(key.startswith(f"{half}.") for key in published) else ""
    tower.load_state_dict({key: published[prefix + key] for key in tower.state_dict()})


def identity(name: str, weights: str) -> dict[str, str]:
    """What a checkpoint says of a tower that it leaves out; open_clip's tags come without a hash."""
    named = {"name": name, "weights": weights}
    return named | ({"sha256": pretrained.WEIGHTS[weights].sha256} if weights in pretrained.WEIGHTS else {})


def find_weights(name: str, tag: str) -> Path:
    """The file of one of open_clip's tags: NAME.TAG.safetensors in the weights' folder, or downloaded."""
    place = pretrained.folder() / f"{name}.{tag}.safetensors"
    if place.is_file():
        return place
    published = get_pretrained_cfg(name, tag)
    if not published:
        tags = ", ".join([*pretrained.WEIGHTS, *list_pretrained_tags_by_model(name)])
        raise UserError(f"there are no weights {tag!r} of {name}: choose one of {tags}")
    try:
        return Path(download_pretrained(published))
    except Exception as error:  # of whichever client open_clip chose
        raise UserError(
            f"the weights {tag} of {name} are not on this machine and cannot be downloaded ({error}): build "
            f"the model once where there is a network, or put its state as safetensors at {place}"
        ) from error


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """A published state: safetensors, OpenAI's TorchScript, or a pickle of tensors alone."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        state: Mapping[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
        return state
    pickled = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix("module."): value for key, value in pickled.get("state_dict", pickled).items()}


def is_torchscript(path: Path) -> bool:
    """Whether a file holds a program beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())
