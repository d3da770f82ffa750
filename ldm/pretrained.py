"""Pretrained weights: each file's source, hash and licence; files that are not on disk are downloaded."""

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from torch import nn
from tqdm.auto import tqdm

from ldm.errors import UserError


@dataclass(frozen=True)
class Weights:
    """A published weights file."""

    title: str
    url: str
    sha256: str
    licence: str
    cache: str
    """Download cache of the publisher's library, where the file is named as in `url` or by its sha256."""
    local_name: str = ""
    """File name in the weights folder, if the one in `url` is not descriptive."""

    @property
    def file_name(self) -> str:
        """The file name in the weights folder."""
        return self.local_name or self.url.rsplit("/", 1)[-1]


WEIGHTS = {
    "clip_vit_l14": Weights(
        title="OpenAI's CLIP ViT-L/14 (0.9 GB)",
        url="https://openaipublic.azureedge.net/clip/models/"
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        licence="MIT",
        cache="~/.cache/clip",
    ),
    "clip_vit_h14": Weights(
        title="LAION's CLIP ViT-H/14 (3.9 GB)",
        url="https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K/resolve/main/open_clip_pytorch_model.bin",
        sha256="9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
        licence="MIT",
        cache="~/.cache/huggingface/hub/models--laion--CLIP-ViT-H-14-laion2B-s32B-b79K/blobs",
        local_name="ViT-H-14.laion2b_s32b_b79k.bin",
    ),
    "clip_vit_bigg14": Weights(
        title="LAION's CLIP ViT-bigG/14 (10.2 GB)",
        url="https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k/resolve/main/open_clip_pytorch_model.bin",
        sha256="0d5318839ad03607c48055c45897c655a14c0276a79f6b867934ddd073760e39",
        licence="MIT",
        cache="~/.cache/huggingface/hub/models--laion--CLIP-ViT-bigG-14-laion2B-39B-b160k/blobs",
        local_name="ViT-bigG-14.laion2b_s39b_b160k.bin",
    ),
    "vgg16": Weights(
        title="torchvision's VGG-16 (0.6 GB)",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        licence="BSD-3-Clause",
        cache="~/.cache/torch/hub/checkpoints",
    ),
}


def weights_folder() -> Path:
    """Return the folder to search first and to download to: $LDM_WEIGHTS, or ~/.cache/ldm/weights."""
    folder = os.environ.get("LDM_WEIGHTS", "~/.cache/ldm/weights")
    if "://" in folder:
        raise UserError(f"LDM_WEIGHTS={folder} is a URL: set it to a folder of this machine")
    return Path(folder).expanduser()


def find_or_download(name: str) -> Path:
    """Return the path of the weights `name`, with a verified hash; download the file if it is not on disk.

    Raises UserError if it cannot be downloaded, or if its hash differs from the published one.
    """
    weights = WEIGHTS[name]
    cache = Path(weights.cache).expanduser()
    for path in (weights_folder() / weights.file_name, cache / weights.file_name, cache / weights.sha256):
        if path.is_file():
            return _verify(path, weights, str(path), f"delete it with `rm {path}` and run the command again")
    return _download(weights, weights_folder() / weights.file_name)


def _verify(path: Path, weights: Weights, source: str, advice: str) -> Path:
    """Return the path; UserError, with `advice`, if the file from `source` has another hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != weights.sha256:
        raise UserError(
            f"{source} is not {weights.title} (its sha256 starts with {digest.hexdigest()[:12]}, not "
            f"{weights.sha256[:12]}): {advice}"
        )
    return path


def _download(weights: Weights, path: Path) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}")  # per process: all ranks may download
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(weights.url, timeout=20) as source, part.open("wb") as file:
            total = int(source.headers.get("Content-Length", 0))
            title = f"{weights.title}, licence {weights.licence}"
            with tqdm(total=total, unit="B", unit_scale=True, desc=title) as progress:
                while chunk := source.read(1 << 20):
                    progress.update(file.write(chunk))
        if part.stat().st_size < total:
            raise OSError(f"the connection closed after {part.stat().st_size} of {total} bytes")
        return _verify(part, weights, weights.url, f"copy the published file to {path}").replace(path)
    except OSError as error:
        raise UserError(
            f"the weights of {weights.title} are neither in {path.parent} nor in {weights.cache}, and cannot "
            f"be downloaded ({error}): run `curl -L --create-dirs -o {path} {weights.url}` on a machine with "
            f"network access, or set LDM_WEIGHTS to a folder that contains {weights.file_name}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def exclude_from_state_dict(module: nn.Module, child: str) -> None:
    """Exclude the frozen `module.<child>` from state dicts; strict loading still works.

    Loading a state dict leaves the child's weights unchanged.
    """
    module.register_state_dict_post_hook(partial(_remove_child, child))
    module.register_load_state_dict_pre_hook(partial(_add_child, child))


def _remove_child(child: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}{child}.")]:
        del state[key]


def _add_child(child: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if getattr(module, child) is None:  # not loaded yet
        return
    current: OrderedDict[str, Any] = getattr(module, child).state_dict(prefix=f"{prefix}{child}.")
    for key, value in current.items():
        state.setdefault(key, value)
