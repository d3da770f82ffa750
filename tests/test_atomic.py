from pathlib import Path

import pytest

from ldm.atomic import replacing


def test_a_file_is_replaced_and_whoever_reads_it_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new and longer")
        assert path.read_text() == "old"
    with open(path) as reader:
        with replacing(path) as temporary:
            temporary.write_text("newest")
        assert reader.read() == "new and longer"
    assert path.read_text() == "newest" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
