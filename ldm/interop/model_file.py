"""Our weight files: safetensors with the config in the header, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.errors import UserError

_FORMAT = "ldm"


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: dict[str, Any],
    kind: str,
    extra: Mapping[str, str],
) -> None:
    """Writes the tensors with `config` and `extra` in the header; `path` is always a whole file.

    `kind` names what the file is ("autoencoder", "latent_diffusion"); `load` refuses another.
    """
    path = Path(path)
    # the keys' order is kept: that of the conditions is the order of their channels
    header = {**extra, "format": _FORMAT, "kind": kind, "config": json.dumps(config)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(plain, draft, metadata=header)
        draft.chmod(0o666 & ~_umask())  # the library writes for the owner alone
        _sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """The tensors on the CPU, the config, and the header's other entries.

    The config is data from a file: build it with nothing that trusts it. Raises UserError for a file that is
    missing, cut, not safetensors, not ours, or of another kind.
    """
    with _opened(Path(path), kind) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config: dict[str, Any] = json.loads(header.pop("config"))
    return tensors, config, header


def read_header(path: str | Path, kind: str) -> dict[str, str]:
    """The header's entries beside the config, without the tensors. Raises UserError as `load` does."""
    with _opened(Path(path), kind) as (_, header):
        header.pop("config")
        return header


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a file's tensors into a module, every one of them. UserError where names or shapes differ."""
    own = module.state_dict()
    odd = sorted(
        name
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if odd:
        raise UserError(
            f"{path} does not fit this configuration: {len(odd)} of {len(own)} tensors differ,"
            f" {odd[0]} first; compose the run with the groups and numbers that the file was trained with"
        )
    module.load_state_dict(dict(tensors))


def content_hash(module: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of the module's state: equal where the weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its header, both checked."""
    if not path.is_file():
        raise UserError(
            f"there is no weight file {path}: give the path of a .safetensors that train.py wrote"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            _check(path, header, kind)
            yield file, header
    except SafetensorError as error:
        raise UserError(_unreadable(path)) from error


def _check(path: Path, header: Mapping[str, str], kind: str) -> None:
    if header.get("format") != _FORMAT:
        raise UserError(
            f"{path} was not written by ldm (its header has no config): give a file that train.py wrote"
        )
    if header["kind"] != kind:
        raise UserError(
            f"{path} holds a model of kind '{header['kind']}' where one of kind '{kind}' is needed:"
            f" give the file that the {kind} stage wrote"
        )


def _unreadable(path: Path) -> str:
    """Tells a cut file from a foreign one: 8 bytes of header length, the JSON header, the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        opening = file.read(1)
    if size < 10 or opening == b"{":
        return f"{path} is cut or damaged ({size:,} bytes, header of {length:,}): copy or write it again"
    return f"{path} is not a safetensors file: give the path of a .safetensors that train.py wrote"


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Waits until the disk has the file, or the folder's list of names."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
