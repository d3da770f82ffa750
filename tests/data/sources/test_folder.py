from pathlib import Path

import pytest

from ldm.data.sources import SkippedRecord
from ldm.data.sources.folder import Folder
from ldm.errors import UserError


def test_images_are_sorted_and_captioned_by_their_sidecar_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two.PNG", "a.jpg", "c.webp", "notes.md"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("\ufeffein Käse", "utf-8")
    (tmp_path / "b" / "two.txt").write_text("two")
    folder = Folder(str(tmp_path))
    assert len(folder) == 3
    assert folder[0].caption == "ein Käse" and folder[0].image == b"a.jpg"
    assert folder[1].metadata == {"name": "b/two.PNG"}
    with pytest.raises(SkippedRecord) as skipped:
        folder[2]
    assert (skipped.value.reason, skipped.value.name) == ("without a caption file (.txt)", "c.webp")


def test_a_folder_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        len(Folder(str(tmp_path)))
    with pytest.raises(UserError, match="no folder .*nowhere"):
        len(Folder(str(tmp_path / "nowhere")))
