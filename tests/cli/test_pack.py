import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.pack import main
from ldm.data.shards.index import load_index
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
        Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(folder / f"{name}.jpg")
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


def test_columns_do_not_replace_what_pack_measured(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    columns = "width,height,original_width,original_height,key,name,sha256,url,status,aesthetic,boxes"
    cells = '4000,3000,1,2,5,six,abc,http://x,success,5.5,"[[0,0.1,0.2,0.3,0.4]]"'
    table = f"path,caption,{columns}\na.jpg,teal,{cells}\n"
    (images / "t.csv").write_text(table)
    out = images.parent / "shards"
    assert pack(monkeypatch, "source=table", f"source.path={images}/t.csv", f"out={out}") == 0
    rows = load_index(out / "00000.tar").rows
    assert (rows["width"].tolist(), rows["height"].tolist()) == ([40], [30])
    assert json.loads(open_shards(str(out))[0].sample(0).read("json")) == {
        **{"key": "000000000", "caption": "teal", "name": "a.jpg"},
        **{"width": 40, "height": 30, "original_width": 40, "original_height": 30},
        **{"source_width": 4000, "source_height": 3000, "source_original_width": 1},
        **{"source_original_height": 2, "source_key": 5, "source_name": "six"},
        **{"sha256": "abc", "url": "http://x", "status": "success"},
        **{"aesthetic": 5.5, "boxes": [[0, 0.1, 0.2, 0.3, 0.4]]},
    }


def test_links_suffixes_and_hidden_files(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = images.parent / "other"
    other.mkdir()
    for name in ("d.jfif", "E.JPE", "f.AVIF"):
        Image.new("RGB", (9, 8), "teal").save(other / name)
        (other / Path(name).with_suffix(".TXT")).write_text(f"other {name}")
    (images / "link").symlink_to(other)
    (other / "back").symlink_to(images)
    (images / ".ipynb_checkpoints").mkdir()
    (images / ".ipynb_checkpoints" / "a-checkpoint.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "x.psd").touch()
    (images / "lost.txt").touch()
    out = images.parent / "shards"
    assert pack(monkeypatch, f"source.path={images}", f"out={out}") == 0
    shard = open_shards(str(out))[0]
    captions = [shard.sample(row).read("txt").decode() for row in range(len(shard))]
    assert captions == ["teal a", "teal b", "other E.JPE", "other d.jfif", "other f.AVIF"]
    printed = capsys.readouterr().out
    assert "packing 6 images" in printed and "1 without a caption file (.txt): c.jpg" in printed
    ignored = printed[printed.index("ignored") : printed.index("the report is in")]
    assert ignored.splitlines() == [
        "ignored 5:",
        "  1 .csv: captions.csv",
        "  1 .psd: x.psd",
        "  1 captions, metadata or maps that belong to no image: lost.txt",
        "  1 hidden: .ipynb_checkpoints",
        "  1 links to folders that are packed already: link/back/",
    ]


def test_captions_that_are_fixed_clear_the_error(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "shards"
    for name in ("a", "b"):
        (images / f"{name}.txt").write_text("")
    assert pack(monkeypatch, f"source.path={images}", f"out={out}") == 2
    assert "nothing was packed" in capsys.readouterr().err
    (images / "a.txt").write_text("filled in")
    assert pack(monkeypatch, f"source.path={images}", f"out={out}") == 0
    assert open_shards(str(out))[0].sample(0).read("txt") == b"filled in"
    assert "shards packed again, because their files or rows have changed: 1" in capsys.readouterr().out
    (images / "a.txt").write_text("edited")
    assert pack(monkeypatch, f"source.path={images}", f"out={out}") == 0
    assert open_shards(str(out))[0].sample(0).read("txt") == b"edited"


def test_a_caption_with_an_unquoted_comma_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "t.csv").write_text("path,caption\na.jpg,a red circle, left of a blue square\n")
    out = images.parent / "shards"
    assert pack(monkeypatch, "source=table", f"source.path={images}/t.csv", f"out={out}") == 2
    assert not out.exists()
    assert capsys.readouterr().err == (
        f"error: line 2 of {images}/t.csv has 3 cells and the header 2: put quotes around a text that "
        'contains a comma, as in "a circle, left of a square"\n'
    )
