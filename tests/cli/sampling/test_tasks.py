"""sample.py's tasks on a text-to-image model: what each keeps of its input, and error messages."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.config.compose import CONFIGS
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import (
    SampleSpec,
    SamplingContext,
    Txt2Img,
    encode_image,
    output_size,
    sample_images,
)
from ldm.cli.sampling.tasks.inputs import read_image
from ldm.errors import UserError
from ldm.grid import to_pil
from tests.support import tiny
from tests.support.command_line import check_error
from tests.support.sampling_models import sample_config
from tests.test_readme import commands


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    """A file of 16x20 pixels, of which the middle 16x16 are used."""
    path = tmp_path_factory.mktemp("image") / "p.png"
    x = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    to_pil(x).save(path)
    return str(path)


@pytest.fixture(scope="module")
def mask(tmp_path_factory) -> str:
    """A mask of `image`, white in the left half of the pixels that are used."""
    path = tmp_path_factory.mktemp("mask") / "m.png"
    x = torch.full((3, 16, 20), -1.0)
    x[..., :10] = 1
    to_pil(x).save(path)
    return str(path)


@pytest.fixture
def run_task(run_sample, trained):
    """Return a function that runs sample.py on the trained model, with one prompt by default."""

    def run(*overrides: str):
        defaults = ["n=3", "steps=4", "batch_size=2"]
        if not any(override.startswith("prompts=") for override in overrides):
            defaults.append("prompts=['a red square']")
        return run_sample(trained[2], *defaults, *overrides)

    return run


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return an image of bytes in [-1, 1], channels first."""
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def test_txt2img_saves_what_sample_images_returns(run_task, trained) -> None:
    status, err, images = run_task()
    assert status == 0, err
    model, _ = load_model(trained[2], "cpu")
    cfg = sample_config("steps=4", "scale=1", "device=cpu")
    times = instantiate(cfg.timestep_spacing)(model.schedule, 4)
    context = SamplingContext(model, [Txt2Img()], sampling_options(cfg), (16, 16))
    specs = [SampleSpec("a red square", seed) for seed in range(3)]
    expected = sample_images(context, specs, sampler=instantiate(cfg.sampler), times=times)
    for (name, pixels), x in zip(images.items(), expected, strict=True):
        assert pixels.tobytes() == to_pil(x).tobytes(), name
    assert list(images) == ["0000_000000.png", "0000_000001.png", "0000_000002.png"]


def test_img2img_stays_closer_with_less_strength(run_task, image, trained, tmp_path) -> None:
    model, _ = load_model(trained[2], "cpu")
    x = read_image(image, (16, 16), 3)
    with torch.no_grad():
        reconstruction = model.first_stage.decode(encode_image(model, x))[0].clamp(-1, 1)
    distances = []
    for strength in ("0.25", "1.0"):
        status, err, images = run_task("task=img2img", f"task.image={image}", f"task.strength={strength}")
        assert status == 0, err
        samples = torch.stack([to_tensor(pixels) for pixels in images.values()])
        distances.append((samples - reconstruction).square().mean().item())
    assert distances[0] < distances[1]
    metadata = Image.open(tmp_path / "samples" / "0000_000000.png").text
    assert json.loads(metadata["parameters"])["task"] == {
        "_target_": "ldm.cli.sampling.tasks.img2img.Img2Img",
        "image": image,
        "strength": 1.0,
    }


@pytest.mark.parametrize("overrides", [[], ["task.repeats=2", "task.jump=2"], ["sampler=dpmpp_2m"]], ids=str)
def test_inpainting_keeps_every_pixel_outside_the_mask(run_task, image, mask, overrides) -> None:
    status, err, images = run_task("task=inpaint", f"task.image={image}", f"task.mask={mask}", *overrides)
    assert status == 0, err
    original = ((read_image(image, (16, 16), 3)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert len(images) == 3
    for pixels in images.values():
        assert np.array_equal(pixels[:, 8:], original[:, 8:])
        assert not np.array_equal(pixels[:, :8], original[:, :8])
    first, second, _ = images.values()
    assert not np.array_equal(first, second), "each seed gives its own image"


def test_inversion_reconstructs_the_image(run_task, image, trained) -> None:
    overrides = (
        "task=invert",
        f"task.image={image}",
        "task.prompt=a red square",
        "task.refinements=12",
        "steps=6",
    )
    status, err, images = run_task(*overrides, "prompts=['a red square','a blue square']")
    assert status == 0, err
    model, _ = load_model(trained[2], "cpu")
    with torch.no_grad():
        reconstruction = model.first_stage.decode(encode_image(model, read_image(image, (16, 16), 3)))[0]
    assert list(images) == ["0000_000000.png", "0001_000000.png"]
    distance = (to_tensor(images["0000_000000.png"]) - reconstruction.clamp(-1, 1)).abs().max()
    assert distance < 0.02, "two grey levels of 256"


def test_interpolation_begins_and_ends_with_its_prompts(run_task) -> None:
    prompts = "prompts=['a red square','a blue square']"
    status, err, frames = run_task("task=interpolate", prompts, "n=5")
    assert status == 0, err
    assert list(frames) == [
        f"000{i}_{weight}.png" for i, weight in enumerate(("0.000", "0.250", "0.500", "0.750", "1.000"))
    ]
    status, _, images = run_task(prompts, "n=2")
    assert status == 0
    for image, frame in (("0000_000000.png", "0000_0.000.png"), ("0001_000001.png", "0004_1.000.png")):
        assert np.abs(images[image].astype(int) - frames[frame]).max() <= 1


def test_the_size_is_that_of_training_by_default():
    model, header = tiny.diffusion(), {"size": "64"}
    for overrides, size in (([], (64, 64)), (["size=[32,48]"], (32, 48)), (["size=40"], (40, 40))):
        assert output_size([Txt2Img()], model, sample_config(*overrides).size, header) == size
    message = r"size=\[36,60\]: .* multiples of 8 .* size=\[32,64\]"
    with pytest.raises(UserError, match=message):  # factor 4, and the U-Net downsamples once
        output_size([Txt2Img()], model, sample_config("size=[36,60]").size, header)


MISTAKES = [
    (["task=img2img", "task.image=/nowhere.png"], ["no image task.image=/nowhere.png"]),
    (["task=img2img", "task.image={text}"], ["cannot read task.image="]),
    (
        ["task=img2img", "task.image={image}", "task.strength=0"],
        ["task.strength must be a number in", "not 0"],
    ),
    (["task=img2img"], ["task.image is required"]),
    (["task=inpaint", "task.image={image}", "task.mask=/no.png"], ["no file task.mask=/no.png"]),
    (
        ["task=inpaint", "task.image={image}", "task.mask={square}"],
        ["task.mask=", "8x8", "task.image is 20x16"],
    ),
    (["task=inpaint", "task.image={image}", "task.mask={black}"], ["task.mask=", "no white pixels"]),
    (
        ["task=inpaint", "task.image={image}", "task.mask={mask}", "task.jump=0"],
        ["task.jump must be a whole number in 1..", "not 0"],
    ),
    (
        ["task=invert", "task.image={image}", "task.prompt=a", "task.refinements=-1"],
        ["task.refinements must be a whole number in 0..", "not -1"],
    ),
    (["task=invert", "task.image={image}"], ["task.prompt is required"]),
    (["task=interpolate", "prompts=[a,b,c]"], ["task=interpolate", "3 prompts and n=3"]),
    (["task=interpolate", "n=1"], ["task=interpolate", "1 prompts and n=1"]),
    (["task=paint"], ["no task 'paint'"]),
]


@pytest.mark.parametrize(("overrides", "phrases"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_mistake_ends_with_one_error_line(run_task, image, mask, tmp_path, overrides, phrases) -> None:
    paths = {name: str(tmp_path / f"{name}.png") for name in ("square", "black", "text")}
    Image.new("RGB", (8, 8), "white").save(paths["square"])
    Image.new("RGB", (20, 16), "black").save(paths["black"])
    (tmp_path / "text.png").write_text("no image")
    status, err, _ = run_task(*(override.format(image=image, mask=mask, **paths) for override in overrides))
    check_error(status, err, phrases)


def test_the_guide_to_sampling_lists_every_task_and_guidance() -> None:
    """test_readme.py composes the page's commands."""
    page = CONFIGS.parent / "docs" / "guide" / "sampling.md"
    tasks, guidances = (sorted(p.stem for p in (CONFIGS / g).glob("*.yaml")) for g in ("task", "guidance"))
    text = page.read_text()
    assert [name for name in tasks if f"| `{name}`" not in text and f"`{name}` |" not in text] == []
    assert [name for name in guidances if f"guidance={name}`" not in text and f"`{name}`" not in text] == []
    overrides = {override for command in commands(page) for override in shlex.split(command)[2:]}
    assert overrides >= {f"task={name}" for name in tasks if name != "txt2img"}
