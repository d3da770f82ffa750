"""The folder of sample.py's images: inputs are not overwritten, samples of different settings not mixed."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli.sampling.folder import SampleFolder, read_settings
from ldm.errors import UserError
from tests.support.sampling_models import sample_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a model file, `c`, and an input image."""
    monkeypatch.chdir(tmp_path)
    Path("c").write_text("weights")
    Path("photo.png").write_text("a photo")
    return tmp_path


def folder(*overrides: str) -> SampleFolder:
    return SampleFolder(sample_config(*overrides))


def fill(*overrides: str) -> SampleFolder:
    """Return the folder of these settings with two samples and a grid."""
    filled = folder(*overrides)
    filled.claim()
    for name in ("0000_000000", "0000_000001", "grid"):
        (filled.path / f"{name}.png").write_text(" ".join(overrides))
    return filled


def test_each_setting_has_a_default_folder_of_its_own():
    assert fill().path == Path("samples")
    assert fill("scale=2").path == Path("samples-2")
    assert fill("prompts=[q]").path == Path("samples-3")
    assert (folder().path, folder("scale=2").path) == (Path("samples"), Path("samples-2")), "continued there"
    for file in Path("samples").iterdir():
        file.unlink()
    assert folder("scale=2").path == Path("samples-2"), "although samples is free again"
    assert folder("scale=3").path == Path("samples")


def test_a_default_folder_of_other_files_is_left_alone():
    Path("samples").touch()
    Path("samples-2").mkdir()
    Path("samples-2/0000_000000.png").touch()
    Path("samples-03").mkdir()
    assert folder().path == Path("samples-3")


CHANGES = {
    "scale": ["scale=2"],
    "seed": ["seed=1"],
    "n": ["n=3"],
    "prompts": ["prompts=[q]"],
    "negative": ["negative=q"],
    "sampler._target_": ["sampler=euler"],
    "task.strength": ["task=img2img", "task.image=photo.png", "task.strength=0.5"],
    "prompt_weights": ["prompt_weights=true"],
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_folder_of_other_settings_is_refused_by_key(key):
    words = ["out=here", "task=img2img", "task.image=photo.png"] if key.startswith("task") else ["out=here"]
    fill(*words)
    with pytest.raises(UserError, match=rf"out=here holds samples of other settings \(.*{key}.*\): choose"):
        folder(*words, *CHANGES[key])
    assert folder(*words).path == Path("here")


@pytest.mark.parametrize("word", ["batch_size=3", "device=cpu", "tile=64", "grid_scale=2"])
def test_what_does_not_change_the_images_may_change(word):
    fill("out=here")
    assert folder("out=here", word).settings == read_settings(Path("here"))


@pytest.mark.parametrize(
    ("file", "words"),
    [("c", []), ("photo.png", ["task=img2img", "task.image=photo.png"]), ("p.txt", ["prompts=p.txt"])],
)
def test_the_content_of_an_input_counts_and_not_its_path(file, words, here):
    Path("p.txt").write_text("a red circle")
    fill("out=here", *words)
    moved = [word.replace(f"={file}", f"={here / file}") for word in [*words, "ckpt=c"]]
    assert folder("out=here", *moved).path == Path("here")
    Path(file).write_text("other content")
    key = words[-1].partition("=")[0] if words else "ckpt"
    with pytest.raises(UserError, match=f"other settings .({key})"):
        folder("out=here", *words)


def test_overwrite_deletes_the_samples_of_other_settings_only():
    fill("out=here")
    for name in ("photo.png", "0000.png", "0000_000000.jpg"):
        Path("here", name).touch()
    same = folder("out=here", "overwrite=true")
    same.claim()
    assert Path("here/0000_000000.png").exists(), "the same settings continue"
    other = folder("out=here", "overwrite=true", "scale=2")
    assert Path("here/0000_000000.png").exists(), "nothing is deleted before there is something to write"
    other.claim()
    assert {p.name for p in Path("here").iterdir()} == {
        "samples.json", "photo.png", "0000.png", "0000_000000.jpg"
    }  # fmt: skip
    assert read_settings(Path("here")) == other.settings


@pytest.mark.parametrize("name", ["0000_000001.png", "grid.png"])
def test_an_input_is_never_deleted(name, here):
    fill("out=here")
    Path("link.png").symlink_to(here / "here" / name)
    for path in (f"here/{name}", str(here / "here" / name), f"./here/../here/{name}", "link.png"):
        words = ["out=here", "overwrite=true", "task=img2img", f"task.image={path}"]
        with pytest.raises(UserError, match="task.image=.* is one of the samples that overwrite"):
            folder(*words)
    assert Path("here", name).exists()


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_images_of_unknown_origin_are_kept(content, overwrite):
    Path("here").mkdir()
    Image.new("RGB", (8, 8)).save("here/0012_000345.png")
    if content is not None:
        Path("here/samples.json").write_text(content)
    with pytest.raises(UserError, match="out=here (has images, but no samples.json|holds samples of other)"):
        folder("out=here", f"overwrite={overwrite}")
    assert Path("here/0012_000345.png").exists()


def test_samples_of_an_older_version_can_be_overwritten():
    """They have their settings in the PNG, but no samples.json beside them."""
    Path("here").mkdir()
    info = PngInfo()
    info.add_text("parameters", "{}")
    Image.new("RGB", (8, 8)).save("here/0012_000345.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save("here/grid.png")
    with pytest.raises(UserError, match="out=here has images, but no samples.json"):
        folder("out=here")
    folder("out=here", "overwrite=true").claim()
    assert [path.name for path in Path("here").iterdir()] == ["samples.json"]


def test_a_folder_of_other_images_can_be_used():
    Path("here").mkdir()
    for name in ("photo.png", "a_000000.png", "0000_000000.jpg", "0000_2.500.png"):
        Path("here", name).touch()
    fill("out=here")
    assert folder("out=here").settings == json.loads(Path("here/samples.json").read_text())


def test_overwrite_needs_a_folder():
    with pytest.raises(UserError, match="overwrite=true needs out=FOLDER"):
        folder("overwrite=true")


def test_two_commands_that_begin_at_once_do_not_share_a_folder():
    first, second = folder("scale=2"), folder("scale=3")
    assert first.path == second.path == Path("samples")
    first.claim()
    second.claim()
    assert (first.path, second.path) == (Path("samples"), Path("samples-2"))
    assert (read_settings(first.path), read_settings(second.path)) == (first.settings, second.settings)
    third, fourth = folder("scale=4", "out=here"), folder("scale=5", "out=here")
    third.claim()
    with pytest.raises(UserError, match="out=here holds samples of other settings"):
        fourth.claim()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work():
    for out, phrase in (("c/x", "is a file"), ("/proc/x", "not writable"), ("''", "out is empty")):
        with pytest.raises(UserError, match=phrase):
            folder(f"out={out}")
