import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.pack import main
from ldm.data.shards.reader import open_shards


def pack(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pack", "workers=0", *overrides])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 30), "teal").save(folder / f"{name}.jpg")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"teal {name}")
    (folder / "captions.csv").write_text("path,caption\nc.jpg,the last\n")
    return folder


def test_a_folder_is_packed_and_reported(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "shards"
    for _ in range(2):  # the second time nothing is left to pack
        assert pack(monkeypatch, "source=folder", f"source.path={images}", f"out={out}", "size=15") == 0
        printed = capsys.readouterr().out
        assert f"packing 3 images into {out}" in printed
        assert "packed 2, skipped 1\n  1 without a caption file (.txt): c.jpg\n" in printed
        assert f"data.shards={out}" in printed
    assert open_shards(str(out))[0].sample(1).read("txt") == b"teal b"


def test_a_table_is_packed(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    out = images.parent / "shards"
    assert pack(monkeypatch, "source=table", f"source.path={images}/captions.csv", f"out={out}") == 0
    assert open_shards(str(out))[0].sample(0).read("txt") == b"the last"


def test_the_demo_is_packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pack(monkeypatch, "source=demo", "source.count=7", "shard_size=4", f"out={tmp_path}/out") == 0
    assert open_shards(f"{tmp_path}/out").counts.tolist() == [4, 3]


def test_a_mistake_prints_one_sentence(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (images / f"{name}.txt").unlink()
    out = images.parent / "shards"
    assert pack(monkeypatch, f"source.path={images}", f"out={out}") == 2
    assert "nothing was packed" in capsys.readouterr().err
    assert pack(monkeypatch, f"source.path={images}/nowhere", f"out={out}") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert pack(monkeypatch, f"out={out}") == 2
    assert "source.path=..." in capsys.readouterr().err
