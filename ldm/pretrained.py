"""Weights of others: where each file comes from, its hash and its licence; found, or else downloaded."""

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
    """One published file."""

    title: str
    url: str
    sha256: str
    licence: str
    cache: str
    """Where the package that publishes it keeps its downloads, under the url's name or its hash."""
    name: str = ""
    """The file's, where the url's says too little."""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.name or self.url.rsplit("/", 1)[-1]


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
        name="ViT-H-14.laion2b_s32b_b79k.bin",
    ),
    "clip_vit_bigg14": Weights(
        title="LAION's CLIP ViT-bigG/14 (10.2 GB)",
        url="https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k/resolve/main/open_clip_pytorch_model.bin",
        sha256="0d5318839ad03607c48055c45897c655a14c0276a79f6b867934ddd073760e39",
        licence="MIT",
        cache="~/.cache/huggingface/hub/models--laion--CLIP-ViT-bigG-14-laion2B-39B-b160k/blobs",
        name="ViT-bigG-14.laion2b_s39b_b160k.bin",
    ),
    "vgg16": Weights(
        title="torchvision's VGG-16 (0.6 GB)",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        licence="BSD-3-Clause",
        cache="~/.cache/torch/hub/checkpoints",
    ),
}


def folder() -> Path:
    """Where weights are looked for first and downloaded to: $LDM_WEIGHTS, or ~/.cache/ldm/weights."""
    return Path(os.environ.get("LDM_WEIGHTS", "~/.cache/ldm/weights")).expanduser()


def find(name: str) -> Path:
    """The file of the weights `name`, its hash checked; downloaded where it is nowhere.

    UserError: it is missing and there is no network, or the file is another than the published one.
    """
    weights = WEIGHTS[name]
    cache = Path(weights.cache).expanduser()
    for path in (folder() / weights.file, cache / weights.file, cache / weights.sha256):
        if path.is_file():
            return _checked(path, weights)
    return _downloaded(weights, folder() / weights.file)


def _checked(path: Path, weights: Weights) -> Path:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != weights.sha256:
        raise UserError(
            f"{path} is not {weights.title}: its sha256 starts with {digest.hexdigest()[:12]} and should "
            f"start with {weights.sha256[:12]}, so delete it with `rm {path}` and run this again"
        )
    return path


def _downloaded(weights: Weights, path: Path) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}")  # one a process: several ranks may start at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(weights.url, timeout=20) as source, part.open("wb") as file:
            total = int(source.headers.get("Content-Length", 0))
            title = f"{weights.title}, licence {weights.licence}"
            with tqdm(total=total, unit="B", unit_scale=True, desc=title) as bar:
                while chunk := source.read(1 << 20):
                    bar.update(file.write(chunk))
        if part.stat().st_size < total:
            raise OSError(f"the connection closed after {part.stat().st_size} of {total} bytes")
        return _checked(part, weights).replace(path)
    except OSError as error:
        raise UserError(
            f"the weights of {weights.title} are neither in {path.parent} nor in {weights.cache} and cannot "
            f"be downloaded ({error}): run `curl -L --create-dirs -o {path} {weights.url}` where there is a "
            f"network, or let the variable LDM_WEIGHTS name a folder that holds {weights.file}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def keep_out_of_checkpoints(module: nn.Module, child: str) -> None:
    """Leaves the frozen `module.<child>` out of state dicts without making strict loading miss it.

    Checkpoints name such weights by their hash. Loading a state dict keeps those that the child has.
    """
    module.register_state_dict_post_hook(partial(_drop, child))
    module.register_load_state_dict_pre_hook(partial(_keep, child))


def _drop(child: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}{child}.")]:
        del state[key]


def _keep(child: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own: OrderedDict[str, Any] = getattr(module, child).state_dict(prefix=f"{prefix}{child}.")
    for key, value in own.items():
        state.setdefault(key, value)
