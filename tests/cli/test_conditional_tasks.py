"""Tasks of models trained for them: what each draws by, what it keeps, and mistakes in one sentence."""

import json
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import sample
from ldm.cli import tasks
from ldm.cli.build import build
from ldm.cli.composition import compose
from ldm.errors import UserError
from ldm.interop import safetensors
from tests.cli.test_sampling import TINY

BARE = ["denoiser.context_channels=null"]
MODELS = {
    "class": ["conditioner=demo_class", "denoiser.in_channels=6", "conditioner.conditioners.label.width=8",
        "+denoiser.vector_channels=8"],
    "layout": [
        "conditioner=demo_layout", "denoiser.in_channels=6",
        "conditioner.conditioners.boxes.width=8",
    ],
    "semantic": ["conditioner=demo_semantic", "denoiser.in_channels=20", *BARE],
    "depth": ["conditioner=demo_depth", "denoiser.in_channels=68", *BARE],
    "inpaint_model": ["conditioner=demo_inpainting_ldm", "denoiser.in_channels=9", *BARE],
    "super_resolution": ["conditioner=demo_super_resolution", "denoiser.in_channels=16", *BARE],
    "unconditional": BARE,
}  # fmt: skip
"""A tiny U-Net of each, on a first stage of factor 8."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A sampling file of each model, random weights, and the maps that they draw by, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, words in MODELS.items():
        base = [w for w in TINY if "channel_mult" not in w]
        size = ["autoencoder.encoder.channel_mult=[1,1,2,2]", "autoencoder.decoder.channel_mult=[1,1,2,2]"]
        cfg = compose("train", [*base, *size, *words])
        if name == "unconditional":
            cfg.stage.model.conditioner.conditioners = {}
        if name.startswith("inpaint"):
            cfg.stage.model.conditioner.conditioners.masked.channels = 4
        torch.manual_seed(0)
        config = OmegaConf.to_container(cfg.stage.model, resolve=True)
        model = build(config)
        for p in model.parameters():  # also those that begin at zero, so that conditions are heard
            torch.nn.init.normal_(p, std=0.2)
        made[name] = str(folder / f"{name}.safetensors")
        safetensors.save(
            made[name], model.state_dict(), config, "latent_diffusion", {"size": "32", "step": "0"}
        )
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24] = 5
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for name, array in (
        ("labels", labels),
        ("grey", grey),
        ("colours", colours),
        ("wide", np.tile(labels, 2)),
    ):
        made[name] = str(folder / f"{name}.png")
        Image.fromarray(array).save(made[name])
    made["other"], made["mask"], made["bad"] = (str(folder / f"{n}.png") for n in ("other", "mask", "bad"))
    Image.fromarray(labels.T[::-1] + 2).save(made["other"])
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(made["mask"])
    Image.fromarray(labels + 90).save(made["bad"])
    made["boxes"] = str(folder / "boxes.json")
    (folder / "boxes.json").write_text(json.dumps([[3, 0.1, 0.1, 0.5, 0.5]]))
    return made


@pytest.fixture
def shell(monkeypatch, capsys, files, tmp_path):
    """Runs sample.py with a model; answers (exit status, stderr, the pictures by name)."""

    def run(model: str, *words: str):
        for old in tmp_path.glob("*.png"):
            old.unlink()
        settings = [f"ckpt={files[model]}", f"out={tmp_path}", "n=2", "steps=2", "device=cpu", "scale=1"]
        given = [word.format(**files) for word in words]
        monkeypatch.setattr(sys, "argv", ["sample.py", *settings, *given])
        status = 0
        try:
            sample.main()
        except SystemExit as error:
            status = int(error.code or 0)
        pictures = sorted(p for p in tmp_path.glob("*.png") if p.name[0].isdigit())
        return status, capsys.readouterr().err, {p.name: np.array(Image.open(p)) for p in pictures}

    return run


DRAWN = {
    "class": (["task=class", "task.labels=[3]"], ["task=class", "task.labels=[4]"]),
    "layout": (["task=layout", "task.boxes={boxes}"], None),
    "semantic": (["task=semantic", "task.map={labels}"], ["task=semantic", "task.map={other}"]),
    "depth": (["task=depth", "task.map={grey}"], ["task=depth", "task.map={labels}"]),
    "super_resolution": (
        ["task=super_resolution", "task.image={colours}"],
        ["task=super_resolution", "task.image={grey}"],
    ),
    "unconditional": (["task=unconditional"], None),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_draws_one_picture_and_another_condition_another(shell, name) -> None:
    words, other = DRAWN[name]
    status, err, first = shell(name, *words)
    assert status == 0, err
    assert list(first) == ["0000_000000.png", "0000_000001.png"]
    assert not np.array_equal(*first.values()), "each seed draws its own"
    again = shell(name, *words, "batch_size=1")[2]
    for key in first:
        assert np.abs(first[key].astype(int) - again[key]).max() <= 1, "the same seed, the same picture"
    if other is not None:
        status, err, changed = shell(name, *other)
        assert status == 0, err
        assert not np.array_equal(first["0000_000000.png"], changed["0000_000000.png"])


def test_classes_are_rows(shell) -> None:
    status, err, drawn = shell("class", "task=class", "task.labels=[3,4]")
    assert status == 0, err
    assert list(drawn) == [f"000{row}_00000{seed}.png" for row in (0, 1) for seed in (0, 1)]


def test_outside_the_mask_every_byte_stays(shell, files) -> None:
    words = ("task=inpaint_model", "task.image={colours}", "task.mask={mask}", "task.fill=-1")
    status, err, drawn = shell("inpaint_model", *words)
    assert status == 0, err
    own, mask = np.array(Image.open(files["colours"])), np.array(Image.open(files["mask"])) > 0
    for picture in drawn.values():
        assert np.array_equal(picture[~mask], own[~mask]) and not np.array_equal(picture[mask], own[mask])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unconditional", ["task=unconditional"]),
        ("class", ["task=class", "task.labels=[1]"]),
        ("semantic", ["task=semantic", "task.map={wide}"]),
    ],
)
def test_larger_and_wider_than_trained(shell, name, words) -> None:
    status, err, drawn = shell(name, *words, "size=[32,64]")
    assert status == 0, err
    assert all(picture.shape == (32, 64, 3) for picture in drawn.values())


MISTAKES = [
    (
        "class",
        ["task=class", "task.labels=[12]"],
        "holds 12, and the model's classes are 0 to 11",
    ),
    ("class", ["task=class", "task.labels=[]"], "task.labels is empty"),
    ("class", ["task=semantic", "task.map={labels}"], "no condition of it reads segmentation, it has"),
    (
        "semantic",
        ["task=semantic", "task.map={wide}"],
        "is 64x32 (width x height) and the pictures",
    ),
    ("semantic", ["task=semantic", "task.map={colours}"], "has mode RGB, and a map of labels is grey"),
    ("semantic", ["task=semantic", "task.map={bad}"], "holds the label 95, and the model knows 0 to 12"),
    ("semantic", ["task=semantic", "task.map=/no.png"], "there is no map task.map=/no.png"),
    ("depth", ["task=depth", "task.map={colours}"], "has mode RGB, and such a map is grey of 8 or 16 bits"),
    ("depth", ["task=edges", "task.map={grey}"], "no condition of it reads edges"),
    ("layout", ["task=layout", "task.boxes=/no.json"], "there is no file task.boxes=/no.json"),
    ("layout", ["task=layout", "task.boxes={grey}"], "cannot be read"),
    ("inpaint_model", ["task=inpaint_model", "task.image={colours}", "task.mask={wide}"], "is 64x32 and"),
    (
        "inpaint_model",
        ["task=inpaint_model", "task.image={colours}", "task.mask={mask}", "task.fill=1"],
        "task.fill is 0 or -1, as the model was trained with, not 1",
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={colours}", "size=[512,512]"],
        "is 32x32, and pictures of 512x512 are drawn from 128x128",
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={grey}", "task.noise_level=5"],
        "no noise: give 0",
    ),
]


@pytest.mark.parametrize(("name", "words", "sentence"), MISTAKES, ids=[s for _, _, s in MISTAKES])
def test_a_mistake_is_one_sentence(shell, name, words, sentence) -> None:
    status, err, _ = shell(name, *words)
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and sentence in err, err


BOXES = [
    ([[12, 0, 0, 1, 1]], "has the labels 12, and the model knows 0 to 11"),
    ([[1, 0.5, 0, 0.2, 1]], "has a box that is not left < right"),
    ([[1, 0, 0, 1, 2]], "has a box that is not left < right"),
    ([[1, 0, 0, 1]], "is no list of boxes of 5 numbers"),
    ([[1, 0, 0, 1, 1]] * 3, "has 3 boxes, and the model takes at most 2"),
]


@pytest.mark.parametrize(("boxes", "sentence"), BOXES, ids=[s for _, s in BOXES])
def test_boxes_that_are_none(tmp_path, boxes, sentence) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="task.boxes=") as error:
        tasks.files.read_boxes(str(path), 12, 2)
    assert sentence in str(error.value)


def test_sixteen_bits_reach_from_black_to_white(tmp_path) -> None:
    path = tmp_path / "d.png"
    Image.fromarray(np.array([[0, 65535], [32768, 65535]], np.uint16)).save(path)
    found = tasks.files.read_numbers(str(path), "map", (2, 2))
    torch.testing.assert_close(found[0, 0], torch.tensor([[-1.0, 1.0], [0.0, 1.0]]), atol=1e-4, rtol=0)
