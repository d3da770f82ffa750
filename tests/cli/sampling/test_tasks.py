"""sample.py's tasks on a model that has learned little: what each keeps, and mistakes in one sentence."""

import json
import shlex

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.callbacks.export import Export
from ldm.cli.config.compose import CONFIGS, compose
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
from tests.cli.sampling.test_load import TINY, settings
from tests.support import command_line, tiny
from tests.test_readme import commands


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    cfg = compose("train", TINY)
    stage = tiny.second_stage(instantiate(cfg.stage.model))
    config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    saver = Export(str(folder / "m.safetensors"), config, "latent_diffusion", 10)
    tiny.trainer(2, [saver]).fit(stage, tiny.data(folder / "shards", 2))
    return str(folder / "m.safetensors")


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    """20 x 16, of which the middle 16 x 16 is used."""
    path = tmp_path_factory.mktemp("image") / "p.png"
    x = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    to_pil(x).save(path)
    return str(path)


@pytest.fixture(scope="module")
def mask(tmp_path_factory) -> str:
    """White at the left half of what is used."""
    path = tmp_path_factory.mktemp("mask") / "m.png"
    x = torch.full((3, 16, 20), -1.0)
    x[..., :10] = 1
    to_pil(x).save(path)
    return str(path)


@pytest.fixture
def shell(monkeypatch, capsys, model_file, tmp_path):
    """Runs sample.py; answers (exit status, stderr, the folder of its images)."""

    def run(*words: str):
        given = [
            f"ckpt={model_file}",
            f"out={tmp_path}",
            "n=3",
            "steps=4",
            "device=cpu",
            "scale=1",
            "batch_size=2",
        ]
        given += [] if any(w.startswith("prompts=") for w in words) else ["prompts=['a red square']"]
        status = command_line.sample_py(monkeypatch, *given, *words)
        return status, capsys.readouterr().err, tmp_path

    return run


def saved_images(folder) -> dict[str, torch.Tensor]:
    """The pixels of each image by its file's name."""
    paths = sorted(p for p in folder.glob("*.png") if p.name[0].isdigit())
    return {p.name: torch.from_numpy(np.array(Image.open(p))) for p in paths}


def test_txt2img_saves_what_sample_images_returns(shell, model_file) -> None:
    status, err, out = shell()
    assert status == 0, err
    model, _ = load_model(model_file, "cpu")
    cfg = compose("sample", [f"ckpt={model_file}", "prompts=[p]", "steps=4", "scale=1", "device=cpu"])
    times = instantiate(cfg.timestep_spacing)(model.schedule, 4)
    context = SamplingContext(model, [Txt2Img()], sampling_options(cfg), (16, 16))
    specs = [SampleSpec("a red square", seed) for seed in range(3)]
    expected = sample_images(context, specs, sampler=instantiate(cfg.sampler), times=times)
    for (name, got), x in zip(saved_images(out).items(), expected, strict=True):
        assert got.numpy().tobytes() == to_pil(x).tobytes(), name
    assert list(saved_images(out)) == ["0000_000000.png", "0000_000001.png", "0000_000002.png"]


def test_img2img_stays_nearer_with_less_strength(shell, image, model_file) -> None:
    model, _ = load_model(model_file, "cpu")
    x = read_image(image, (16, 16), 3)
    with torch.no_grad():
        own = model.first_stage.decode(encode_image(model, x))[0].clamp(-1, 1)
    gaps = []
    for strength in ("0.25", "1.0"):
        status, err, out = shell("task=img2img", f"task.image={image}", f"task.strength={strength}")
        assert status == 0, err
        images = torch.stack([p.permute(2, 0, 1) / 127.5 - 1 for p in saved_images(out).values()])
        gaps.append((images - own).square().mean().item())
    assert gaps[0] < gaps[1]
    making = json.loads(Image.open(out / "0000_000000.png").text["parameters"])
    assert making["task"] == {
        "_target_": "ldm.cli.sampling.tasks.img2img.Img2Img",
        "image": image,
        "strength": 1.0,
    }


@pytest.mark.parametrize("words", [[], ["task.repeats=2", "task.jump=2"], ["sampler=dpmpp_2m"]], ids=str)
def test_inpainting_keeps_every_pixel_outside_the_mask(shell, image, mask, words) -> None:
    status, err, out = shell("task=inpaint", f"task.image={image}", f"task.mask={mask}", *words)
    assert status == 0, err
    x = ((read_image(image, (16, 16), 3)[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    images = list(saved_images(out).values())
    assert len(images) == 3
    for p in images:
        assert torch.equal(p[:, 8:], x[:, 8:]) and not torch.equal(p[:, :8], x[:, :8])
    assert not torch.equal(images[0], images[1]), "each seed draws its own"


def test_inversion_gives_the_image_back(shell, image, model_file) -> None:
    words = (
        "task=invert",
        f"task.image={image}",
        "task.prompt=a red square",
        "task.refinements=12",
        "steps=6",
    )
    status, err, out = shell(*words, "prompts=['a red square','a blue square']")
    assert status == 0, err
    model, _ = load_model(model_file, "cpu")
    with torch.no_grad():
        own = model.first_stage.decode(encode_image(model, read_image(image, (16, 16), 3)))[0]
    same, other = saved_images(out).values()
    assert list(saved_images(out)) == ["0000_000000.png", "0001_000000.png"]
    gap = (same.permute(2, 0, 1) / 127.5 - 1 - own.clamp(-1, 1)).abs().max()
    assert gap < 0.02, "two grey levels of 256"


def test_interpolation_begins_and_ends_with_its_prompts(shell) -> None:
    prompts = "prompts=['a red square','a blue square']"
    status, err, out = shell("task=interpolate", prompts, "n=5")
    assert status == 0, err
    frames = saved_images(out)
    assert list(frames) == [
        f"000{i}_{share}.png" for i, share in enumerate(("0.000", "0.250", "0.500", "0.750", "1.000"))
    ]
    ends = [frames["0000_0.000.png"].int(), frames["0004_1.000.png"].int()]
    for p in out.glob("*.png"):
        p.unlink()
    assert shell(prompts, "n=2")[0] == 0
    single = saved_images(out)
    assert (single["0000_000000.png"].int() - ends[0]).abs().max() <= 1
    assert (single["0001_000001.png"].int() - ends[1]).abs().max() <= 1


def test_the_size_is_the_trained_one_unless_given():
    model, header = tiny.diffusion(), {"size": "64"}
    for words, size in (([], (64, 64)), (["size=[32,48]"], (32, 48)), (["size=40"], (40, 40))):
        assert output_size([Txt2Img()], model, settings(*words).size, header) == size
    message = r"size=\[36,60\]: .* multiples of 8 .* size=\[32,64\]"
    with pytest.raises(UserError, match=message):  # 4 divides both, and the U-Net halves once
        output_size([Txt2Img()], model, settings("size=[36,60]").size, header)


MISTAKES = [
    (["task=img2img", "task.image=/nowhere.png"], "no image task.image=/nowhere.png"),
    (["task=img2img", "task.image={text}"], "cannot read task.image="),
    (
        ["task=img2img", "task.image={image}", "task.strength=0"],
        "task.strength=0 must be a fraction of the steps, in (0, 1]",
    ),
    (["task=img2img"], "task.image is required"),
    (["task=inpaint", "task.image={image}", "task.mask=/no.png"], "no image task.mask=/no.png"),
    (
        ["task=inpaint", "task.image={image}", "task.mask={small}"],
        "is 8x8, but task.image is 20x16",
    ),
    (["task=inpaint", "task.image={image}", "task.mask={black}"], "has no white pixels"),
    (
        ["task=inpaint", "task.image={image}", "task.mask={mask}", "task.jump=0"],
        "task.jump must be 1 or more, not 0",
    ),
    (
        ["task=invert", "task.image={image}", "task.prompt=a", "task.refinements=-1"],
        "task.refinements must be 0 or more",
    ),
    (["task=invert", "task.image={image}"], "task.prompt is required"),
    (["task=interpolate", "prompts=[a,b,c]"], "not 3 prompts and n=3"),
    (["task=interpolate", "n=1"], "not 1 prompts and n=1"),
    (["task=paint"], "no task 'paint'"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence(shell, image, mask, tmp_path, words, sentence) -> None:
    files = {name: str(tmp_path / f"{name}.png") for name in ("small", "black", "text")}
    Image.new("RGB", (8, 8), "white").save(files["small"])
    Image.new("RGB", (20, 16), "black").save(files["black"])
    (tmp_path / "text.png").write_text("no image")
    status, err, _ = shell(*(word.format(image=image, mask=mask, **files) for word in words))
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and sentence in err, err


def test_the_page_about_sampling_composes_and_has_every_task_and_guidance() -> None:
    page = CONFIGS.parent / "docs" / "guide" / "sampling.md"
    typed_words = [shlex.split(command)[2:] for command in commands(page)]
    for words in typed_words:
        compose("sample", words)
    tasks_, guidances = (sorted(p.stem for p in (CONFIGS / g).glob("*.yaml")) for g in ("task", "guidance"))
    said = page.read_text()
    assert [name for name in tasks_ if f"| `{name}`" not in said and f"`{name}` |" not in said] == []
    assert [name for name in guidances if f"guidance={name}`" not in said and f"`{name}`" not in said] == []
    assert {w for words in typed_words for w in words} >= {f"task={t}" for t in tasks_ if t != "txt2img"}
