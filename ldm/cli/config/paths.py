"""Refuse URLs where a path of this machine is needed: only shards are read from elsewhere."""

from typing import Any

from ldm.data.shards.transfer import is_remote
from ldm.errors import UserError

OUTPUTS = ("run", "out", "folder", "--out")
INPUTS = ("boxes", "ckpt", "first_stage", "font", "image", "index", "init", "map", "mask", "path", "resume",
    "snapshots", "val_index", "weak")  # fmt: skip
"""Last part of every key whose value is the path of a file or folder."""


def check_local_paths(config: Any, prefix: str = "") -> None:
    """Raise UserError for a URL as the path of anything but shards, in a config of plain types."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_local_paths(value, f"{prefix}{key}.")
        elif key in (*INPUTS, *OUTPUTS):
            for item in value if isinstance(value, list) else [value]:
                check_local_path(f"{prefix}{key}", item)


def check_local_path(key: str, path: object) -> None:
    """Raise UserError if the path given for a key is a URL."""
    if not isinstance(path, str) or not is_remote(path):
        return
    if key.rpartition(".")[2] in OUTPUTS:
        raise UserError(
            f"{key}={path} is a URL, but files are only written to this machine's folders: give a local or "
            "mounted folder, and upload it afterwards"
        )
    raise UserError(
        f"{key}={path} is a URL, but only shards are read from URLs: copy the file to this machine and give "
        "its path"
    )
