"""The PNGs that sample.py writes: as they are made, complete, and the same after an interruption."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import sample
from ldm.cli.sampling import save
from ldm.cli.sampling.folder import SampleFolder
from ldm.cli.sampling.plan import SamplingPlan
from ldm.cli.sampling.save import save_samples
from ldm.conditioning.transformer_text import TransformerText
from ldm.errors import UserError
from ldm.grid import to_pil
from ldm.model import LatentDiffusion
from tests.support.command_line import check_error, run_command
from tests.support.sampling_models import sample_config


class LatentsAreImages(LatentDiffusion):
    """A model whose latents are its images, up to a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.denoiser, self.factor = nn.Linear(1, 1), factor

    def decode(self, z_0: torch.Tensor) -> torch.Tensor:
        return z_0 * self.factor


def plan_for(images: torch.Tensor, titles: list[str] | None = None, postprocess=lambda x: x) -> SamplingPlan:
    """Return the plan of these images, one seed each, which takes two steps."""

    def trajectory(part: slice) -> Iterator[torch.Tensor]:
        yield from (torch.zeros_like(images[part]), images[part], images[part] + 0)

    titles = titles or ["a"] * len(images)
    names = [f"{i:04d}_{i:06d}" for i in range(len(images))]
    return SamplingPlan(list(zip(titles, range(len(images)), strict=True)), names, 2, trajectory, postprocess)


def write(plan: SamplingPlan, out: Path, *overrides: str) -> Path:
    cfg = sample_config(f"out={out}", "batch_size=3", *overrides)
    save_samples(plan, LatentsAreImages(), SampleFolder(cfg), cfg, {"step": "3000", "size": "8"})
    return out


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def random_images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_images_carry_their_settings(tmp_path):
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    titles = ["a red square, on grey", "a red square, on grey", "ü", "ü"]
    write(plan_for(images, titles), tmp_path, "scale=3.5", "steps=7", "ckpt=runs/x.safetensors")
    names = [f"{i:04d}_{i:06d}.png" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "grid.png", "samples.json"]
    for seed, (name, image, title) in enumerate(zip(names, images, titles, strict=True)):
        saved = Image.open(tmp_path / name)
        assert saved.tobytes() == to_pil(image).tobytes()
        assert saved.text["prompt"] == title
        assert json.loads(saved.text["parameters"]) == {
            "prompt": title,
            "negative": None,
            "seed": seed,
            "steps": 7,
            "scale": 3.5,
            "guidance": "ldm.diffusion.guidance.classifier_free_guidance",
            "weak": None,
            "sampler": "ldm.diffusion.samplers.ddim.ddim",
            "task": {"_target_": "ldm.cli.sampling.tasks.base.Txt2Img"},
            "also": {},
            "original_size": None,
            "crop": [0, 0],
            "aesthetic": 6.0,
            "negative_aesthetic": None,
            "prompt_chunks": None,
            "prompt_weights": False,
            "ckpt": "runs/x.safetensors",
            "trained_steps": "3000",
        }


def test_at_most_two_batches_are_in_memory(tmp_path):
    alive: list[weakref.ref] = []
    most = 0

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        x = x + 0
        alive.append(weakref.ref(x))
        most = max(most, sum(ref() is not None for ref in alive))
        return x

    write(plan_for(random_images(30), postprocess=count), tmp_path)
    assert len(alive) == 10 and most <= 2
    assert len(pngs(tmp_path)) == 31


def test_a_batch_is_written_before_the_next_is_sampled(tmp_path):
    counts = []

    def look(x: torch.Tensor) -> torch.Tensor:
        counts.append(len(pngs(tmp_path)))
        return x

    write(plan_for(random_images(7), postprocess=look), tmp_path)
    assert counts == [0, 3, 6]


def test_missing_and_incomplete_images_are_made_and_others_left_alone(tmp_path, capsys):
    plan = plan_for(random_images(7))
    expected = pngs(write(plan, tmp_path))
    names = list(expected)
    (tmp_path / names[1]).unlink()
    (tmp_path / names[2]).write_bytes(expected[names[2]][:-5])
    (tmp_path / names[6]).write_bytes(b"")
    (tmp_path / "grid.png").unlink()
    untouched = {name: (tmp_path / name).stat().st_mtime_ns for name in (names[0], names[3], names[5])}
    capsys.readouterr()
    assert pngs(write(plan, tmp_path)) == expected
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in untouched} == untouched
    assert (
        f"wrote 3 of 7 images (the other 4 were there) to {tmp_path}, and grid.png" in capsys.readouterr().out
    )
    write(plan, tmp_path)
    assert "wrote 0 of 7 images (the other 7 were there)" in capsys.readouterr().out


def test_only_the_batches_with_missing_images_are_sampled_and_as_a_whole(tmp_path):
    """The rounding of an image may depend on its batch, so a batch is sampled as in an uninterrupted run."""
    images = random_images(8)
    write(plan_for(images), tmp_path)
    (tmp_path / "0004_000004.png").unlink()
    sampled = []

    def look(x: torch.Tensor) -> torch.Tensor:
        sampled.append(len(x))
        return x

    write(plan_for(images, postprocess=look), tmp_path)
    assert sampled == [3]


@pytest.mark.parametrize(
    ("n", "titles", "shown", "size"),
    [
        (40, ["a"] * 40, " with the first 32 of 40 images per prompt", (8, 4)),
        (300, [f"p{i}" for i in range(300)], " with the first 256 of 300 prompts", (1, 256)),
        (
            400,
            [f"p{i // 40}" for i in range(400)],
            " with the first 32 of 40 images per prompt and the first 8 of 10 prompts",
            (8, 32),
        ),
        (4, ["a", "b", "a", "b"], "", (2, 2)),
        (11, ["a"] * 9 + ["b"] * 2, "", (8, 3)),
    ],
)  # fmt: skip
def test_the_grid_shows_a_bounded_number_of_images(tmp_path, capsys, n, titles, shown, size):
    write(plan_for(random_images(n), titles), tmp_path, "batch_size=400")
    assert capsys.readouterr().out == f"wrote {n} of {n} images to {tmp_path}, and grid.png{shown}\n"
    width, height = Image.open(tmp_path / "grid.png").size
    assert (width - 190, height - 4) == (size[0] * 12, size[1] * 12)


def test_the_grid_states_a_title_beside_the_first_of_its_rows(tmp_path):
    write(plan_for(random_images(10)), tmp_path, "grid_scale=3")
    grid = Image.open(tmp_path / "grid.png")
    first, second = (grid.crop((0, top, 190, top + 24)) for top in (4, 4 + 28))
    assert len(first.getcolors()) > 1 and len(second.getcolors()) == 1


def test_the_images_of_a_large_grid_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "GRID_PIXELS", 4 * 6 * 6)
    write(plan_for(random_images(4)), tmp_path, "grid_scale=5")
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (190 + 4 * (6 + 4), 6 + 8), "6x6 pixels each"


def test_a_grid_can_be_left_out(tmp_path, capsys):
    write(plan_for(random_images(2)), tmp_path, "grid_scale=0")
    assert not (tmp_path / "grid.png").exists()
    assert capsys.readouterr().out == f"wrote 2 of 2 images to {tmp_path}\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_image_that_is_not_finite_is_named_and_not_written(tmp_path, value):
    images = random_images(7)
    images[4, 1, 2, 3] = value
    with pytest.raises(UserError, match="the sampler gave NaN or infinity for image 5: use a lower scale"):
        write(plan_for(images), tmp_path)
    assert len(pngs(tmp_path)) == 3, "the batches before are kept"
    broken = LatentsAreImages(float("nan"))
    cfg = sample_config(f"out={tmp_path / 'b'}")
    with pytest.raises(UserError, match="the first stage decoded NaN or infinity for image 1"):
        save_samples(plan_for(random_images(2)), broken, SampleFolder(cfg), cfg, {})
    assert not (tmp_path / "b").exists(), "nothing is created before there is an image"


def test_a_full_disk_ends_with_one_sentence_and_no_broken_file(tmp_path, monkeypatch):
    written = []

    def fail(image: Image.Image, path: Path, *args: object, **kwargs: object) -> None:
        written.append(path)
        if len(written) == 5:
            Path(path).write_bytes(b"\x89PNG half of it")
            raise OSError(28, "No space left on device")
        original(image, path, *args, **kwargs)

    original = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="0004_000004.png cannot be written .No space left on device.: "):
        write(plan_for(random_images(7)), tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"{i:04d}_{i:06d}.png" for i in range(4)),
        "samples.json",
    ]


WORDS = [
    "n=2",
    "steps=2",
    "device=cpu",
    "scale=1",
    "batch_size=3",
    "prompts=[a red square,a blue circle,b,c]",
]


def interrupt(monkeypatch, where: object, name: str, call: int) -> None:
    """Let the given call of a function raise KeyboardInterrupt, as Ctrl-C does."""
    original, calls = getattr(where, name), []

    def stop(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, stop)


MOMENTS = {
    "while loading": (LatentDiffusion, "describe_frozen_weights", 1, None),
    "in the first batch": (LatentDiffusion, "trajectory", 1, 0),
    "in the second batch": (LatentDiffusion, "decode", 2, 3),
    "while writing": (Image.Image, "save", 5, 4),
    "before the grid": (save, "labelled_grid", 1, None),
}


SLOW = [m for m in MOMENTS if m not in ("in the second batch", "while writing")]


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else []) for m in MOMENTS]
)
def test_an_interrupted_command_continues_bit_for_bit(model_files, tmp_path, monkeypatch, moment):
    words = [f"ckpt={model_files['text']}", *WORDS]
    where, name, call, written = MOMENTS[moment]
    with monkeypatch.context() as patch:
        interrupt(patch, where, name, call)
        status, out, err = run_command(sample.main, *words, f"out={tmp_path / 'a'}")
    assert status == 130 and err.splitlines()[-1] == "stopped by Ctrl-C"
    if written is not None:
        assert f"{written} of 8 images are in {tmp_path / 'a'}: the same command makes the rest\n" in out
        assert len(pngs(tmp_path / "a")) == written
    assert run_command(sample.main, *words, f"out={tmp_path / 'a'}")[0] == 0
    assert run_command(sample.main, *words, f"out={tmp_path / 'b'}")[0] == 0
    assert len(pngs(tmp_path / "a")) == 9 and pngs(tmp_path / "a") == pngs(tmp_path / "b")


def test_a_line_of_the_readme_does_not_overwrite_its_input(model_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"ckpt={model_files['text']}", *WORDS[:-1], "prompts=[a red square]"]
    assert run_command(sample.main, *words)[0] == 0
    before = pngs(Path("samples"))
    variation = [*words, "task=img2img", "task.image=samples/0000_000000.png", "task.strength=0.6"]
    for _ in range(2):
        status, out, err = run_command(sample.main, *variation)
        assert status == 0 and "to samples-2, and grid.png" in out, err
        assert pngs(Path("samples")) == before and len(pngs(Path("samples-2"))) == 3
    status, _, err = run_command(sample.main, *variation, "out=samples")
    check_error(status, err, ["out=samples holds samples of other settings", "out=FOLDER", "overwrite=true"])
    status, _, err = run_command(sample.main, *variation, "out=samples", "overwrite=true")
    check_error(status, err, ["task.image=samples/0000_000000.png", "overwrite=true deletes"])
    assert pngs(Path("samples")) == before


def test_prompts_are_encoded_batch_by_batch(model_files, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"a {word} square" for word in ["red", "blue", "green", "yellow", "white"] * 4))
    lengths, original = [], TransformerText.forward

    def forward(self, values):
        lengths.append(len(values))
        return original(self, values)

    monkeypatch.setattr(TransformerText, "forward", forward)
    words = [f"ckpt={model_files['text']}", *WORDS[:-1], "n=1", f"prompts={file}", f"out={tmp_path / 'a'}"]
    status, _, err = run_command(sample.main, *words)
    assert status == 0, err
    assert len(pngs(tmp_path / "a")) == 21 and max(lengths) == 3


def test_a_mistake_that_shows_while_sampling_leaves_no_folder(model_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"ckpt={model_files['unconditional']}", "task=unconditional", *WORDS[:-1], "scale=3"]
    check_error(*[run_command(sample.main, *words)[i] for i in (0, 2)], ["scale=3", "use scale=1"])
    assert list(tmp_path.iterdir()) == []
