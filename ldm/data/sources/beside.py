"""What lies beside a picture file under its name: `cat.cls`, `cat.seg.png`, `cat.json`, ... of `cat.jpg`."""

import json
from pathlib import Path
from typing import Any

from ldm.data.sources.record import MAPS, Unusable


def is_map(file: Path) -> bool:
    """Whether a picture file is another's semantic map, mask or depth."""
    return file.name.lower().endswith(tuple(f".{kind}" for kind in MAPS))


def beside(picture: Path, name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(what the picture's .json says, its .cls and maps by kind); Unusable where the .json is no object."""
    files = {kind: picture.with_suffix(f".{kind}") for kind in ("cls", *MAPS)}
    members = {kind: file.read_bytes() for kind, file in files.items() if file.is_file()}
    told = picture.with_suffix(".json")
    if not told.is_file():
        return {}, members
    try:
        known = dict(json.loads(told.read_text("utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise Unusable("with a .json that is no JSON object", f"{name} ({error})") from error
    known.pop("key", None)  # of another shard
    return known, members
