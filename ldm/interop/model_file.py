"""Model files: safetensors with the model's config in the header, written atomically."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.atomic import write_atomically
from ldm.errors import UserError

_FORMAT = "ldm"
"""Header key `format`: the program that wrote the file."""
_VERSION = "1"
"""Header key `ldm_format`: the version of the tensors' names and of the config."""


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: dict[str, Any],
    kind: str,
    extra: Mapping[str, str],
) -> None:
    """Write the tensors, with `config` and `extra` in the header, atomically. Raises WriteError.

    `kind` names what the file holds ("autoencoder", "latent_diffusion"); `load` refuses any other.
    """
    path = Path(path)
    # json keeps the order of keys: that of the conditions is the order of their channels
    config_text = json.dumps(config)
    header = {**extra, "format": _FORMAT, "ldm_format": _VERSION, "kind": kind, "config": config_text}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path, sync_folder=True) as temporary:
        try:
            save_file(plain, temporary, metadata=header)
        except SafetensorError as error:  # hides the OSError of a full disk
            if match := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
            raise


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Return the tensors on the CPU, the config, and the header's other keys.

    The config is untrusted data: build it with `ldm.interop.instantiate`. Raises UserError for a file that is
    missing, truncated, not safetensors, not written by ldm, of another format version or of another kind, and
    for one with a tensor that is not finite.
    """
    with _open(Path(path), kind) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    _check_finite(Path(path), tensors)
    config: dict[str, Any] = json.loads(header.pop("config"))
    return tensors, config, header


def read_header(path: str | Path, kind: str) -> dict[str, str]:
    """Return the header without the config, reading no tensors. Raises UserError as `load` does."""
    with _open(Path(path), kind) as (_, header):
        header.pop("config")
        return header


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a file's tensors into a module. UserError unless all names and shapes match."""
    own = module.state_dict()
    mismatched = sorted(
        name
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if mismatched:
        total = len(own.keys() | tensors.keys())
        raise UserError(
            f"{path} does not fit this config ({len(mismatched)} of {total} tensors differ, the first is"
            f" {mismatched[0]}): use the config groups and values of the run that wrote it"
        )
    module.load_state_dict(dict(tensors))


def content_hash(module: nn.Module) -> str:
    """Return the sha256 over names, shapes, dtypes and bytes of the module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _open(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield the open file and its checked header."""
    if not isfile(path):  # Path.is_file raises for a name that is too long
        raise UserError(f"there is no model file {path}: give the path of a .safetensors that train.py wrote")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            _check_header(path, header, kind)
            yield file, header
    except SafetensorError as error:
        raise UserError(_explain_unreadable(path)) from error


def _check_header(path: Path, header: Mapping[str, str], kind: str) -> None:
    """Raise UserError unless ldm wrote the file, in this version of the format, for this kind of model."""
    if header.get("format") != _FORMAT:
        raise UserError(
            f"{path} was not written by ldm (its header has no config): give a file that train.py wrote"
        )
    version = header.get("ldm_format")
    if version is None:
        raise UserError(
            f"{path} was written by an older version of ldm (no ldm_format): train or export it again with"
            " this version"
        )
    if version != _VERSION:
        raise UserError(
            f"{path} has ldm_format {version}, but this version of ldm reads ldm_format {_VERSION}: use the"
            " version that wrote it, or train or export it again with this one"
        )
    if header["kind"] != kind:
        raise UserError(
            f"{path} holds a model of kind '{header['kind']}' where one of kind '{kind}' is needed:"
            f" give the file that the {kind} stage wrote"
        )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for NaN or infinity in any tensor: images sampled with it would be black."""
    bad = sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))
    if bad:
        others = f" and {len(bad) - 1} other tensors" if len(bad) > 1 else ""
        raise UserError(
            f"{path} has NaN or infinity in {bad[0]}{others}: use an earlier model file, or train again with"
            " a lower optimizer.lr"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, reading each once: isfinite().all() makes copies."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    least, most = torch.aminmax(tensor)  # NaN if any value is
    return math.isfinite(least.item()) and math.isfinite(most.item())


def _explain_unreadable(path: Path) -> str:
    """Return the message for a truncated or a foreign file: safetensors begin with a length, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        first_byte = file.read(1)
    if size < 10 or first_byte == b"{":
        return (
            f"{path} is truncated or corrupt ({size:,} bytes, header of {length:,}): copy or write it again"
        )
    return f"{path} is not a safetensors file: give the path of a .safetensors that train.py wrote"
