"""Tasks of models trained for them: what each draws by, what it keeps, and mistakes in one sentence."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.cli.sampling.tasks import inputs
from ldm.cli.sampling.tasks.conditional import require_conditioner
from ldm.cli.training.model_checks import check_masks
from ldm.conditioning.boxes import BoxTokens
from ldm.conditioning.class_label import ClassLabel, ClassNumber
from ldm.data.fields import spatial
from ldm.data.fields.image import ImageField
from ldm.data.fields.masks import MaskedImage
from ldm.data.shards.reader import Sample
from ldm.errors import UserError
from ldm.interop import model_file
from tests.cli.sampling.test_load import TINY
from tests.data.fields.test_decode import header_of_a_png
from tests.support import command_line

BARE = ["denoiser.context_channels=null"]
MODELS = {
    "class": ["conditioner=demo/class", "denoiser.in_channels=6", "conditioner.conditioners.label.width=8",
        "+denoiser.vector_channels=8"],
    "layout": [
        "conditioner=demo/layout", "denoiser.in_channels=6",
        "conditioner.conditioners.boxes.width=8",
    ],
    "semantic": ["conditioner=demo/semantic", "denoiser.in_channels=20", *BARE],
    "depth": ["conditioner=demo/depth", "denoiser.in_channels=68", *BARE],
    "inpaint_model": ["conditioner=demo/inpainting_ldm", "denoiser.in_channels=9", *BARE],
    "inpaint_model_sd": ["conditioner=demo/inpainting", "denoiser.in_channels=72",
        "conditioner.conditioners.text.width=8", "+denoiser.vector_channels=8"],
    "super_resolution": ["conditioner=demo/super_resolution", "denoiser.in_channels=16", *BARE],
    "upscaler": ["conditioner=demo/upscaler", "conditioner.conditioners.text.width=8",
        "denoiser.in_channels=16", "+denoiser.vector_channels=136"],
    "variation": ["conditioner=demo/image", "conditioner.conditioners.image.width=8",
        "denoiser.in_channels=6", "+denoiser.vector_channels=8"],
    "edges": ["conditioner=demo/edges", "denoiser.in_channels=68", *BARE],
    "dit": ["conditioner=class_number", "conditioner.conditioners.label.num_classes=12", "denoiser=dit_b2",
        "~denoiser.model_channels", "denoiser.num_labels=13", "denoiser.channels=16", "denoiser.depth=1",
        "denoiser.num_heads=2", *BARE],
    "unconditional": BARE,
    "one_band": [*BARE, "autoencoder.encoder.in_channels=1", "autoencoder.decoder.out_channels=1"],
    "five_bands": [*BARE, "autoencoder.encoder.in_channels=5", "autoencoder.decoder.out_channels=5"],
}  # fmt: skip
"""A tiny U-Net of each, on a first stage of factor 8."""


def save(path: str, config, condition_std: float = 0.2) -> str:
    """A model file of random weights, those of conditions by a spread of their own; 32 pixels."""
    torch.manual_seed(0)
    model = instantiate(config)
    for name, p in model.named_parameters():  # also those that begin at zero, so that conditions matter
        own = name.startswith("conditioner") or "cross_attention" in name
        torch.nn.init.normal_(p, std=condition_std if own else 0.2)
    model_file.save(path, model.state_dict(), config, "latent_diffusion", {"size": "32", "step": "0"})
    return path


def composed(*words: str):
    """The model's node of the tiny experiment on a first stage of factor 8."""
    base = [w for w in TINY if "channel_mult" not in w]
    size = ["autoencoder.encoder.channel_mult=[1,1,2,2]", "autoencoder.decoder.channel_mult=[1,1,2,2]"]
    return compose("train", [*base, *size, *words]).stage.model


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A model file of each model, random weights, and the maps that they draw by, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, words in MODELS.items():
        node = composed(*words)
        if name in ("unconditional", "one_band", "five_bands"):
            node.conditioner.conditioners = {}
        if name.startswith("inpaint"):
            node.conditioner.conditioners.masked.channels = 4
        made[name] = save(str(folder / f"{name}.safetensors"), OmegaConf.to_container(node, resolve=True))
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24] = 5
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for name, array in (
        ("labels", labels),
        ("grey", grey),
        ("colours", colours),
        ("wide", np.tile(labels, 2)),
        ("small", colours[:16, :24]),
        ("odd", colours[:9, :24]),
    ):
        made[name] = str(folder / f"{name}.png")
        Image.fromarray(array).save(made[name])
    made["other"], made["mask"], made["bad"] = (str(folder / f"{n}.png") for n in ("other", "mask", "bad"))
    Image.fromarray(labels.T[::-1] + 2).save(made["other"])
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(made["mask"])
    Image.fromarray(labels + 90).save(made["bad"])
    made["huge"] = str(folder / "huge.png")
    (folder / "huge.png").write_bytes(header_of_a_png(20_000, 20_000))
    made["boxes"] = str(folder / "boxes.json")
    (folder / "boxes.json").write_text(json.dumps([[3, 0.1, 0.1, 0.5, 0.5]]))
    return made


@pytest.fixture
def shell(monkeypatch, capsys, files, tmp_path):
    """Runs sample.py with a model; answers (exit status, stderr, the images by name)."""

    def run(model: str, *words: str):
        for old in tmp_path.glob("*.png"):
            old.unlink()
        settings = [f"ckpt={files[model]}", f"out={tmp_path}", "n=2", "steps=2", "device=cpu", "scale=1"]
        given = [word.format(**files) for word in words]
        status = command_line.sample_py(monkeypatch, *settings, *given)
        images = sorted(p for p in tmp_path.glob("*.png") if p.name[0].isdigit())
        return status, capsys.readouterr().err, {p.name: np.array(Image.open(p)) for p in images}

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
    "upscaler": (
        ["task=super_resolution", "task.image={colours}", "task.noise_level=350"],
        ["task=super_resolution", "task.image={colours}", "task.noise_level=20"],
    ),
    "variation": (["task=variation", "task.image={colours}"], ["task=variation", "task.image={labels}"]),
    "edges": (["task=edges", "task.map={grey}"], ["task=edges", "task.map={labels}"]),
    "dit": (["task=class", "task.labels=3"], ["task=class", "task.labels=0"]),
    "unconditional": (["task=unconditional"], None),
    "one_band": (["task=unconditional"], None),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_draws_one_image_and_another_condition_another(shell, name) -> None:
    words, other = DRAWN[name]
    status, err, first = shell(name, *words)
    assert status == 0, err
    assert list(first) == ["0000_000000.png", "0000_000001.png"]
    assert not np.array_equal(*first.values()), "each seed draws its own"
    again = shell(name, *words, "batch_size=1")[2]
    for key in first:
        assert np.abs(first[key].astype(int) - again[key]).max() <= 1, "the same seed, the same image"
    if other is not None:
        status, err, changed = shell(name, *other)
        assert status == 0, err
        assert not np.array_equal(first["0000_000000.png"], changed["0000_000000.png"])


def test_classes_are_rows(shell) -> None:
    status, err, drawn = shell("class", "task=class", "task.labels=[3,4]")
    assert status == 0, err
    assert list(drawn) == [f"000{row}_00000{seed}.png" for row in (0, 1) for seed in (0, 1)]


def test_noise_is_none_to_speak_of_unless_it_is_given(shell) -> None:
    words = ["task=super_resolution", "task.image={colours}"]
    status, err, drawn = shell("upscaler", *words)
    assert status == 0, err
    least = shell("upscaler", *words, "task.noise_level=1")[2]
    assert all(np.array_equal(drawn[key], least[key]) for key in drawn)


ANY_MODEL = {
    "img2img": ["task=img2img", "task.image={colours}", "task.strength=0.5"],
    "inpaint": ["task=inpaint", "task.image={colours}", "task.mask={mask}"],
    "interpolate": ["task=interpolate"],
    "invert": ["task=invert", "task.image={colours}"],
}


@pytest.mark.parametrize("task", ANY_MODEL)
@pytest.mark.parametrize("name", ["unconditional", "one_band", "class"])
def test_without_prompts_where_the_model_reads_none(shell, files, name, task) -> None:
    status, err, drawn = shell(name, *ANY_MODEL[task])
    assert status == 0, err
    assert len(drawn) == (1 if task == "invert" else 2)
    if task == "inpaint":
        own, mask = Image.open(files["colours"]), np.array(Image.open(files["mask"])) > 0
        own = np.array(own.convert("L").convert("RGB") if name == "one_band" else own)
        assert all(np.array_equal(picture[~mask], own[~mask]) for picture in drawn.values())
    status, err, _ = shell(name, *ANY_MODEL[task], "prompts=[a square]")
    assert status == 2 and "this model does not use prompts, its conditions are" in err, err


def test_a_conditioner_of_another_class_is_refused(files) -> None:
    model = load_model(files["class"], "cpu")[0]
    assert require_conditioner(model, "label", ClassNumber, ClassLabel).num_classes == 12
    with pytest.raises(
        UserError, match="encodes label with ClassLabel, but this task supports BoxTokens only"
    ):
        require_conditioner(model, "label", BoxTokens)


@pytest.mark.parametrize("name", ["inpaint_model", "inpaint_model_sd"])
def test_outside_the_mask_every_byte_stays(shell, files, name) -> None:
    words = ("task=inpaint_model", "task.image={colours}", "task.mask={mask}")
    status, err, drawn = shell(name, *words)
    assert status == 0, err
    own, mask = np.array(Image.open(files["colours"])), np.array(Image.open(files["mask"])) > 0
    for picture in drawn.values():
        assert np.array_equal(picture[~mask], own[~mask]) and not np.array_equal(picture[mask], own[mask])


def test_a_file_joins_the_conditions_in_the_order_of_training(files) -> None:
    model = load_model(files["inpaint_model"], "cpu")[0]
    assert list(model.conditioner.conditioners) == ["masked", "mask"]


@pytest.mark.parametrize(("name", "fill"), [("inpaint_model", -1), ("inpaint_model_sd", 0)])
def test_what_lies_under_the_mask_is_the_models_own(shell, files, name, fill) -> None:
    words = ["task=inpaint_model", "task.image={colours}", "task.mask={mask}"]
    drawn, same = shell(name, *words)[2], shell(name, *words, f"task.fill={fill}")[2]
    assert drawn and all(np.array_equal(drawn[key], same[key]) for key in drawn)
    status, err, _ = shell(name, *words, f"task.fill={-1 - fill}")
    assert status == 2 and f"this model was trained with {fill} under the mask" in err, err
    model = load_model(files[name], "cpu")[0]
    check_masks(model, [MaskedImage(float(fill))])
    with pytest.raises(UserError, match=rf"data\.derived_fields .* {-1 - fill}, .* {fill} where"):
        check_masks(model, [MaskedImage(float(-1 - fill))])


def test_all_of_the_small_image_is_enlarged(shell, files) -> None:
    status, err, drawn = shell("super_resolution", "task=super_resolution", "task.image={small}")
    assert status == 0, err
    assert all(picture.shape == (64, 96, 3) for picture in drawn.values()), "24x16 by 4"
    same = shell("super_resolution", "task=super_resolution", "task.image={small}", "size=[64,96]")[2]
    assert all(np.array_equal(drawn[key], same[key]) for key in drawn)


def test_depth_is_as_the_data_have_it(tmp_path) -> None:
    numbers, bytes_ = np.linspace(9000, 40000, 32 * 32).reshape(32, 32).astype(np.uint16), BytesIO()
    Image.fromarray(numbers).save(bytes_, "PNG")
    (tmp_path / "d.png").write_bytes(bytes_.getvalue())
    seen = BytesIO()
    Image.new("RGB", (32, 32)).save(seen, "PNG")
    sample = Sample(tmp_path, "0", {"png": seen.getvalue(), "depth.png": bytes_.getvalue()})
    found = inputs.read_scalar_map(str(tmp_path / "d.png"), "map", (32, 32))
    torch.testing.assert_close(
        found[0], spatial.DepthField(ImageField(32, seed=0))(sample, 0), atol=1e-5, rtol=0
    )


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
        "task.labels=12 is out of range",
    ),
    ("class", ["task=class", "task.labels=[]"], "task.labels=[]: expected class indices"),
    (
        "class",
        ["task=class", "task.labels=12"],
        "task.labels=12 is out of range",
    ),
    ("class", ["task=class", "task.labels=circle"], "task.labels=circle: expected class indices"),
    (
        "class",
        ["task=class", "task.labels=3", "negative=a"],
        "negative: this model has no condition that uses caption",
    ),
    (
        "unconditional",
        ["task=unconditional", "size=36"],
        "multiples of 16 for this model, for example size=[32,32]",
    ),
    (
        "five_bands",
        ["task=img2img", "task.image={colours}"],
        "task.image: this model's images have 5 channels",
    ),
    (
        "semantic",
        ["task=semantic", "task.map={huge}"],
        "(Image size (400000000 pixels) exceeds",
    ),
    (
        "upscaler",
        ["task=super_resolution", "task.image={colours}", "task.noise_level=351"],
        "task.noise_level=351 is out of range: this model was trained with 1 to 350",
    ),
    (
        "upscaler",
        ["task=super_resolution", "task.image={colours}", "task.noise_level=0"],
        "task.noise_level=0 is out of range: this model was trained with 1 to 350",
    ),
    ("class", ["task=semantic", "task.map={labels}"], "it has no condition that uses segmentation, only"),
    (
        "semantic",
        ["task=semantic", "task.map={wide}"],
        "is 64x32 (width x height), but the images",
    ),
    ("semantic", ["task=semantic", "task.map={colours}"], "has mode RGB, but a semantic map is grey"),
    (
        "semantic",
        ["task=semantic", "task.map={bad}"],
        "has the label 95, but this model has",
    ),
    ("semantic", ["task=semantic", "task.map=/no.png"], "no map task.map=/no.png"),
    (
        "depth",
        ["task=depth", "task.map={colours}"],
        "has mode RGB, but this map must be grey",
    ),
    ("depth", ["task=edges", "task.map={grey}"], "it has no condition that uses edges"),
    ("layout", ["task=layout", "task.boxes=/no.json"], "no file task.boxes=/no.json"),
    ("layout", ["task=layout", "task.boxes={grey}"], "cannot read task.boxes="),
    ("inpaint_model", ["task=inpaint_model", "task.image={colours}", "task.mask={wide}"], "is 64x32, but"),
    (
        "inpaint_model",
        ["task=inpaint_model", "task.image={colours}", "task.mask={mask}", "task.fill=1"],
        "task.fill=1: use 0 or -1",
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={colours}", "size=[32,32]"],
        "size=[32,32], but this model upscales task.image=",
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={odd}"],
        "multiples of 4 for this model: crop it, for example to 24x8",
    ),
    ("class", ["prompts=[a square]"], "this model does not use prompts, its conditions are label, coord"),
    ("class", ["task=unconditional", "prompts=[a square]"], "this task does not use prompts: remove prompts"),
    ("class", ["crop=[1,0]", "task=unconditional"], "this model has no size conditions"),
    ("class", [], "its conditions are label, coordinates: give the task=..."),
    (
        "inpaint_model_sd",
        ["task=img2img", "task.image={colours}"],
        "prompts is required",
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={grey}", "task.noise_level=5"],
        "set task.noise_level=null",
    ),
]


@pytest.mark.parametrize(("name", "words", "sentence"), MISTAKES, ids=[s for _, _, s in MISTAKES])
def test_a_mistake_is_one_sentence(shell, name, words, sentence) -> None:
    status, err, _ = shell(name, *words)
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and sentence in err, err


BOXES = [
    ([[12, 0, 0, 1, 1]], "has the labels 12, but this model has the labels 0 to 11"),
    ([[1, 0.5, 0, 0.2, 1]], "has a box without left < right"),
    ([[1, 0, 0, 1, 2]], "has a box without left < right"),
    ([[1, 0, 0, 1]], "is not a list of boxes of 5 numbers"),
    ([[1, 0, 0, 1, 1]] * 3, "has 3 boxes, but this model takes at most 2"),
]


@pytest.mark.parametrize(("boxes", "sentence"), BOXES, ids=[s for _, s in BOXES])
def test_boxes_that_are_none(tmp_path, boxes, sentence) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="task.boxes=") as error:
        inputs.read_boxes(str(path), 12, 2)
    assert sentence in str(error.value)


def test_sixteen_bits_reach_from_black_to_white(tmp_path) -> None:
    path = tmp_path / "d.png"
    Image.fromarray(np.array([[0, 65535], [32768, 65535]], np.uint16)).save(path)
    found = inputs.read_scalar_map(str(path), "map", (2, 2))
    torch.testing.assert_close(found[0, 0], torch.tensor([[-1.0, 1.0], [0.0, 1.0]]), atol=1e-4, rtol=0)
