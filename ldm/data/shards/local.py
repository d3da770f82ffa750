"""Find the shards in local folders, and the folders of their indexes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from braceexpand import braceexpand

from ldm.data.shards.index import INDEX_COMMAND
from ldm.data.shards.manifest import ShardNames, file_names, listed_names, read_manifest
from ldm.errors import UserError

PACK_COMMAND = "`python -m ldm.cli.pack source=folder source.path=IMAGES out=FOLDER`"

IndexFolder: TypeAlias = str | Path | Sequence[str | Path | None] | None
"""Folder of the indexes, if they are not beside the shards; of a list of shards, one for each item."""


def find_local_shards(spec: str) -> Sequence[Path]:
    """Return the paths of the shards in a folder or of a brace pattern; UserError if one is missing."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and name[0] != ".")
        if not names:
            raise UserError(f"there are no shards (*.tar) in {spec}: write some with {PACK_COMMAND}")
        if missing := sorted(set(listed_names(folder)) - set(names)):
            raise UserError(
                f"{len(missing)} shards of {spec} are missing, the first is {missing[0]}: fetch them, or "
                f"index the folder again with {INDEX_COMMAND}"
            )
        return ShardNames.from_names(folder, names)
    paths = [Path(path).expanduser() for path in braceexpand(spec)]
    folder_of_all = common_folder(paths)
    if folder_of_all and read_manifest(folder_of_all, file_names(paths)) is not None:
        # a stat per shard would cost more than all else
        return ShardNames.from_names(folder_of_all, file_names(paths))
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no shard {path}: fix data.shards, or write shards with {PACK_COMMAND}")
    return paths


def common_folder(paths: Sequence[Path]) -> Path | None:
    """Return the folder that contains all paths; None if they are in several."""
    if isinstance(paths, ShardNames):
        return paths.folder
    folders = {path.parent for path in paths}
    return folders.pop() if len(folders) == 1 else None


def pair_with_indexes(spec: str | Sequence[str], index_folder: IndexFolder) -> list[tuple[str, Path | None]]:
    """Return each item of a list of shards with the folder of its indexes; UserError if numbers differ."""
    items = [spec] if isinstance(spec, str) else list(spec)
    if index_folder is None:
        return [(item, None) for item in items]
    folders = [index_folder] if isinstance(index_folder, str | Path) else list(index_folder)
    if len(folders) != len(items):
        raise UserError(
            f"data.index has {len(folders)} folders for {len(items)} items of data.shards: give one for "
            "each, [FOLDER,FOLDER], with null for indexes that are beside the shards"
        )
    paths = [None if folder is None else Path(folder).expanduser() for folder in folders]
    return list(zip(items, paths, strict=True))
