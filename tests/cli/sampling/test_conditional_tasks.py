"""Tasks of models trained for them: what their images depend on, what they keep, and error messages."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

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
from tests.support.command_line import check_error

CONDITIONS = {
    "class": (["task=class", "task.labels=[3]"], ["task=class", "task.labels=[4]"]),
    "layout": (["task=layout", "task.boxes={boxes}"], None),
    "semantic": (["task=semantic", "task.map={labels}"], ["task=semantic", "task.map={other_labels}"]),
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
    "grey": (["task=unconditional"], None),
}
"""For each model, a condition and another one."""


@pytest.mark.parametrize("model", CONDITIONS)
def test_images_depend_on_seed_and_condition(run_sample, model) -> None:
    overrides, other = CONDITIONS[model]
    status, err, images = run_sample(model, *overrides)
    assert status == 0, err
    assert list(images) == ["0000_000000.png", "0000_000001.png"]
    assert not np.array_equal(*images.values()), "each seed gives its own image"
    one_by_one = run_sample(model, *overrides, "batch_size=1")[2]
    for name in images:
        assert np.abs(images[name].astype(int) - one_by_one[name]).max() <= 1, "the same seed, the same image"
    if other is not None:
        status, err, changed = run_sample(model, *other)
        assert status == 0, err
        assert not np.array_equal(images["0000_000000.png"], changed["0000_000000.png"])


def test_each_class_is_a_row(run_sample) -> None:
    status, err, images = run_sample("class", "task=class", "task.labels=[3,4]")
    assert status == 0, err
    assert list(images) == [f"000{row}_00000{seed}.png" for row in (0, 1) for seed in (0, 1)]


def test_the_noise_level_is_1_by_default(run_sample) -> None:
    overrides = ["task=super_resolution", "task.image={colours}"]
    status, err, images = run_sample("upscaler", *overrides)
    assert status == 0, err
    explicit = run_sample("upscaler", *overrides, "task.noise_level=1")[2]
    assert all(np.array_equal(images[name], explicit[name]) for name in images)


ANY_MODEL = {
    "img2img": ["task=img2img", "task.image={colours}", "task.strength=0.5"],
    "inpaint": ["task=inpaint", "task.image={colours}", "task.mask={mask}"],
    "interpolate": ["task=interpolate"],
    "invert": ["task=invert", "task.image={colours}"],
}


@pytest.mark.parametrize("task", ANY_MODEL)
@pytest.mark.parametrize("model", ["unconditional", "grey", "class"])
def test_a_model_without_text_needs_no_prompts(run_sample, input_files, model, task) -> None:
    status, err, images = run_sample(model, *ANY_MODEL[task])
    assert status == 0, err
    assert len(images) == (1 if task == "invert" else 2)
    if task == "inpaint":
        original, mask = Image.open(input_files["colours"]), np.array(Image.open(input_files["mask"])) > 0
        pixels = np.array(original.convert("L").convert("RGB") if model == "grey" else original)
        assert all(np.array_equal(image[~mask], pixels[~mask]) for image in images.values())
    status, err, _ = run_sample(model, *ANY_MODEL[task], "prompts=[a square]")
    check_error(status, err, ["this model does not use prompts"])


def test_a_conditioner_of_another_class_is_refused(model_files) -> None:
    model = load_model(model_files["class"], "cpu")[0]
    assert require_conditioner(model, "label", ClassNumber, ClassLabel).num_classes == 12
    with pytest.raises(UserError, match="label .* ClassLabel.* BoxTokens"):
        require_conditioner(model, "label", BoxTokens)


@pytest.mark.parametrize("model", ["inpaint_model", "inpaint_model_sd"])
def test_pixels_outside_the_mask_are_unchanged(run_sample, input_files, model) -> None:
    overrides = ("task=inpaint_model", "task.image={colours}", "task.mask={mask}")
    status, err, images = run_sample(model, *overrides)
    assert status == 0, err
    original, mask = (np.array(Image.open(input_files[name])) for name in ("colours", "mask"))
    mask = mask > 0
    for image in images.values():
        assert np.array_equal(image[~mask], original[~mask])
        assert not np.array_equal(image[mask], original[mask])


def test_a_model_file_keeps_the_order_of_the_conditions(model_files) -> None:
    model = load_model(model_files["inpaint_model"], "cpu")[0]
    assert list(model.conditioner.conditioners) == ["masked", "mask"]


@pytest.mark.parametrize(("name", "fill"), [("inpaint_model", -1), ("inpaint_model_sd", 0)])
def test_the_fill_under_the_mask_is_that_of_training(run_sample, model_files, name, fill) -> None:
    overrides = ["task=inpaint_model", "task.image={colours}", "task.mask={mask}"]
    images, same = run_sample(name, *overrides)[2], run_sample(name, *overrides, f"task.fill={fill}")[2]
    assert images and all(np.array_equal(images[key], same[key]) for key in images)
    status, err, _ = run_sample(name, *overrides, f"task.fill={-1 - fill}")
    check_error(status, err, [f"task.fill={-1 - fill}", f"with {fill} ", "task.fill=null"])
    model = load_model(model_files[name], "cpu")[0]
    check_masks(model, [MaskedImage(float(fill))])
    with pytest.raises(UserError, match=rf"data\.derived_fields .* {-1 - fill}, .* {fill} where"):
        check_masks(model, [MaskedImage(float(-1 - fill))])


def test_super_resolution_upscales_the_whole_image(run_sample) -> None:
    overrides = ["task=super_resolution", "task.image={small}"]
    status, err, images = run_sample("super_resolution", *overrides)
    assert status == 0, err
    assert all(image.shape == (64, 96, 3) for image in images.values()), "16x24, 4 times as large"
    same = run_sample("super_resolution", *overrides, "size=[64,96]")[2]
    assert all(np.array_equal(images[name], same[name]) for name in images)


def test_a_depth_map_is_read_as_in_training(tmp_path) -> None:
    depth, depth_png = np.linspace(9000, 40000, 32 * 32).reshape(32, 32).astype(np.uint16), BytesIO()
    Image.fromarray(depth).save(depth_png, "PNG")
    (tmp_path / "d.png").write_bytes(depth_png.getvalue())
    image_png = BytesIO()
    Image.new("RGB", (32, 32)).save(image_png, "PNG")
    sample = Sample(tmp_path, "0", {"png": image_png.getvalue(), "depth.png": depth_png.getvalue()})
    scalar_map = inputs.read_scalar_map(str(tmp_path / "d.png"), "map", (32, 32))
    torch.testing.assert_close(
        scalar_map[0], spatial.DepthField(ImageField(32, seed=0))(sample, 0), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("unconditional", ["task=unconditional"]),
        ("class", ["task=class", "task.labels=[1]"]),
        ("semantic", ["task=semantic", "task.map={wide}"]),
    ],
)
def test_images_can_be_wider_than_in_training(run_sample, model, overrides) -> None:
    status, err, images = run_sample(model, *overrides, "size=[32,64]")
    assert status == 0, err
    assert all(image.shape == (32, 64, 3) for image in images.values())


MISTAKES = [
    ("class", ["task=class", "task.labels=[12]"], ["task.labels=12", "0 to 11"]),
    ("class", ["task=class", "task.labels=[]"], ["task.labels=[]", "task.labels=[0,1]"]),
    ("class", ["task=class", "task.labels=12"], ["task.labels=12", "0 to 11"]),
    (
        "class",
        ["task=class", "task.labels=circle"],
        ["task.labels must be a whole number", "not circle"],
    ),
    ("class", ["task=class", "task.labels=3", "negative=a"], ["negative", "uses caption"]),
    ("unconditional", ["task=unconditional", "size=36"], ["multiples of 16", "size=[32,32]"]),
    ("five_channels", ["task=img2img", "task.image={colours}"], ["task.image:", "5 channels"]),
    ("semantic", ["task=semantic", "task.map={huge}"], ["task.map=", "(more than 89,478,485 pixels)"]),
    (
        "upscaler",
        ["task=super_resolution", "task.image={colours}", "task.noise_level=351"],
        ["task.noise_level=351", "1 to 350"],
    ),
    (
        "upscaler",
        ["task=super_resolution", "task.image={colours}", "task.noise_level=0"],
        ["task.noise_level must be a whole number", "not 0"],
    ),
    ("class", ["task=semantic", "task.map={labels}"], ["uses segmentation", "only label, coordinates"]),
    ("semantic", ["task=semantic", "task.map={wide}"], ["task.map=", "64x32", "32x32", "size=[32,64]"]),
    ("semantic", ["task=semantic", "task.map={colours}"], ["task.map=", "mode RGB", "(L)", "(P)"]),
    ("semantic", ["task=semantic", "task.map={unknown_labels}"], ["task.map=", "label 95"]),
    ("semantic", ["task=semantic", "task.map=/no.png"], ["no file task.map=/no.png"]),
    ("depth", ["task=depth", "task.map={colours}"], ["task.map=", "has colours", "8 or 16 bits"]),
    ("depth", ["task=edges", "task.map={grey}"], ["uses edges", "only depth"]),
    ("layout", ["task=layout", "task.boxes=/no.json"], ["no file task.boxes=/no.json"]),
    ("layout", ["task=layout", "task.boxes={grey}"], ["cannot read task.boxes="]),
    (
        "inpaint_model",
        ["task=inpaint_model", "task.image={colours}", "task.mask={wide}"],
        ["task.mask=", "64x32", "task.image is 32x32"],
    ),
    (
        "inpaint_model",
        ["task=inpaint_model", "task.image={colours}", "task.mask={mask}", "task.fill=1"],
        ["task.fill=1", "0 or -1"],
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={colours}", "size=[32,32]"],
        ["size=[32,32]", "task.image=", "[128,128]"],
    ),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={odd}"],
        ["24x9", "multiples of 4", "24x8"],
    ),
    ("class", ["prompts=[a square]"], ["this model does not use prompts", "label, coordinates"]),
    ("class", ["task=unconditional", "prompts=[a square]"], ["this task does not use prompts"]),
    ("class", ["crop=[1,0]", "task=unconditional"], ["original_size and crop", "size conditions"]),
    ("class", [], ["label, coordinates", "task=..."]),
    ("inpaint_model_sd", ["task=img2img", "task.image={colours}"], ["prompts is required"]),
    (
        "super_resolution",
        ["task=super_resolution", "task.image={grey}", "task.noise_level=5"],
        ["task.noise_level=5", "task.noise_level=null"],
    ),
]


@pytest.mark.parametrize(
    ("model", "overrides", "phrases"), MISTAKES, ids=[" ".join([m, *o]) for m, o, _ in MISTAKES]
)
def test_a_mistake_ends_with_one_error_line(run_sample, model, overrides, phrases) -> None:
    status, err, _ = run_sample(model, *overrides)
    check_error(status, err, phrases)


BOXES = [
    ([[12, 0, 0, 1, 1]], ["labels 12", "0 to 11"]),
    ([[1, 0.5, 0, 0.2, 1]], ["left < right"]),
    ([[1, 0, 0, 1, 2]], ["left < right"]),
    ([[1, 0, 0, 1]], ["5 numbers"]),
    ([[1, 0, 0, 1, 1]] * 3, ["3 boxes", "at most 2"]),
]


@pytest.mark.parametrize(("boxes", "phrases"), BOXES, ids=[str(boxes) for boxes, _ in BOXES])
def test_invalid_boxes_are_refused(tmp_path, boxes, phrases) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="task.boxes=") as error:
        inputs.read_boxes(str(path), 12, 2)
    assert all(phrase in str(error.value) for phrase in phrases)


def test_a_16_bit_map_covers_the_full_range(tmp_path) -> None:
    path = tmp_path / "d.png"
    Image.fromarray(np.array([[0, 65535], [32768, 65535]], np.uint16)).save(path)
    scalar_map = inputs.read_scalar_map(str(path), "map", (2, 2))
    torch.testing.assert_close(scalar_map[0, 0], torch.tensor([[-1.0, 1.0], [0.0, 1.0]]), atol=1e-4, rtol=0)
