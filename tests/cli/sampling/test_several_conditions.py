"""sample.py on models of several conditions: sizes and scores, combined tasks, nested guidance."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.errors import UserError
from tests.support.command_line import check_error

DEPTH = ["+task@also.depth=depth", "also.depth.map={grey}"]


def generate(path: str, **conditions) -> np.ndarray:
    """Return the images of seeds 0 and 1 from the model's own `generate`, 0 to 255."""
    model, _ = load_model(path, "cpu")
    cfg = compose("sample", ["ckpt=c", "steps=2"])
    times, sampler = instantiate(cfg.timestep_spacing)(model.schedule, 2), instantiate(cfg.sampler)
    active = model.conditioner.conditions_in(conditions)
    x = model.generate(conditions, [0, 1], (32, 32), sampler=sampler, times=times, scale=1.0, active=active)
    return ((x + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()


def stack(images: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(images.values()))


def is_close(images: dict[str, np.ndarray], expected: np.ndarray) -> bool:
    """Return whether images differ by at most one grey level."""
    return bool(np.abs(stack(images) - expected).max() <= 1)


def repeat(*row: float) -> torch.Tensor:
    """Return the row for each of two images."""
    return torch.tensor([row] * 2).float()


@pytest.mark.parametrize("name", ["sizes_always_on", "sizes"])
def test_size_and_score_conditions_default_to_the_output_size(run_sample, model_files, name) -> None:
    status, err, images = run_sample(name, "prompts=[a red circle]")
    assert status == 0, err
    path, caption = model_files[name], ["a red circle"] * 2
    default = generate(path, caption=caption, sizes=repeat(32, 32, 0, 0, 32, 32), aesthetic=repeat(6))
    assert is_close(images, default)
    overrides = ("original_size=[64,48]", "crop=[8,4]", "aesthetic=4.5")
    images = run_sample(name, "prompts=[a red circle]", *overrides)[2]
    overridden = generate(path, caption=caption, sizes=repeat(64, 48, 8, 4, 32, 32), aesthetic=repeat(4.5))
    assert is_close(images, overridden) and not is_close(images, default)


TASKS = [
    ["task=unconditional"],
    ["prompts=[a]", "task=img2img", "task.image={colours}", "task.strength=1"],
    ["prompts=[a]", "task=inpaint", "task.image={colours}", "task.mask={mask}"],
    ["prompts=[a]", "task=interpolate"],
    ["prompts=[a]", "task=interpolate", "scale=2"],
    ["prompts=[a]", "task=invert", "task.image={colours}", "task.prompt=a"],
    ["prompts=[a]", "negative=blue", "scale=2"],
]


@pytest.mark.parametrize("overrides", TASKS, ids=" ".join)
def test_every_task_uses_sizes_and_scores(run_sample, overrides) -> None:
    status, err, images = run_sample("sizes_always_on", *overrides)
    assert status == 0, err
    _, _, changed = run_sample("sizes_always_on", *overrides, "aesthetic=1", "crop=[16,16]")
    assert images.keys() == changed.keys() and not is_close(images, stack(changed))


def test_invalid_pairs_of_pixels_are_refused(run_sample) -> None:
    for override in ("crop=[1]", "crop=[-1,0]", "original_size=[0,4]"):
        status, err, _ = run_sample("sizes_always_on", "prompts=[a]", override)
        check_error(status, err, [f"{override.replace(',', ', ')}: expected ["])


def test_one_number_is_a_square(run_sample) -> None:
    number, pair = (
        run_sample("sizes_always_on", "prompts=[a]", f"original_size={size}")[2]
        for size in ("512", "[512,512]")
    )
    assert number and is_close(number, stack(pair))


@pytest.mark.parametrize("name", ["sizes_always_on", "sizes"])
def test_guidance_extrapolates_away_from_a_negative_score(run_sample, model_files, name) -> None:
    """The null condition has the negative score; a score that training never drops is in the null anyway."""
    overrides = ["prompts=[a red circle]", "scale=3"]
    status, err, images = run_sample(name, *overrides, "negative_aesthetic=2.5")
    assert status == 0, err
    model, _ = load_model(model_files[name], "cpu")
    sizes, caption = repeat(32, 32, 0, 0, 32, 32), ["a red circle"] * 2
    batch = {"caption": caption, "sizes": sizes, "aesthetic": repeat(6)}
    active = {"aesthetic", "coordinates"} | ({"sizes"} if name == "sizes_always_on" else set())
    expected = model.condition({**batch, "aesthetic": repeat(2.5)}, size=(4, 4), active=active)
    null = model.null_condition(batch, 3.0, {"aesthetic": repeat(2.5)}, (4, 4))
    assert torch.equal(null.vector, expected.vector) and torch.equal(null.context, expected.context)
    without = stack(run_sample(name, *overrides)[2])
    assert not is_close(images, without)
    if name == "sizes_always_on":
        same_score = run_sample(name, *overrides, "negative_aesthetic=6")[2]
        assert is_close(same_score, without), "the same score as the image's changes nothing"
    status, err, _ = run_sample("several", *overrides, *DEPTH, "negative_aesthetic=2.5")
    check_error(status, err, ["negative", "uses aesthetic"])


def test_tasks_can_be_combined(run_sample, model_files, input_files) -> None:
    path = model_files["several"]
    depth = torch.from_numpy(np.array(Image.open(input_files["grey"]))).float()[None, None] / 127.5 - 1
    conditions = {"label": torch.tensor([3, 3]), "depth": depth.expand(2, 1, 32, 32)}
    class_3 = ["task=class", "task.labels=[3]"]
    status, err, images = run_sample("several", *class_3, *DEPTH)
    assert status == 0, err
    assert is_close(images, generate(path, caption=["", ""], **conditions))
    status, err, captioned = run_sample("several", *class_3, *DEPTH, "prompts=[a red circle]")
    assert status == 0, err
    expected = generate(path, caption=["a red circle"] * 2, **conditions)
    assert is_close(captioned, expected) and not is_close(images, expected), "class and caption both count"
    reversed_order = ["task=depth", "task.map={grey}", "+task@also.kind=class", "also.kind.labels=[3]"]
    assert is_close(run_sample("several", *reversed_order, "prompts=[a red circle]")[2], expected)
    without_class = run_sample("several", *DEPTH, "prompts=[a red circle]")[2]
    conditions.pop("label")
    assert is_close(without_class, generate(path, caption=["a red circle"] * 2, **conditions))


def test_each_class_of_each_prompt_is_a_row(run_sample, tmp_path) -> None:
    overrides = ["task=class", "task.labels=[3,4]", "prompts=[a red circle,a blue square]"]
    status, err, images = run_sample("several", *overrides)
    assert status == 0, err
    assert list(images) == [f"{row:04d}_{seed:06d}.png" for row in range(4) for seed in (0, 1)]
    metadata = Image.open(tmp_path / "samples" / "0003_000001.png").text
    assert metadata["prompt"] == "a blue square, class 4"
    assert json.loads(metadata["parameters"])["seed"] == 1
    last_row = run_sample("several", "task=class", "task.labels=[4]", "prompts=[a blue square]")[2]
    assert is_close(last_row, np.stack([images["0003_000000.png"], images["0003_000001.png"]]))


@pytest.mark.parametrize("overrides", TASKS[1:6], ids=" ".join)
def test_every_task_uses_a_map(run_sample, overrides) -> None:
    status, err, images = run_sample("several_depth_always_on", *overrides, *DEPTH)
    assert status == 0, err
    if "task=invert" in overrides:  # reconstructs its image under any condition
        return
    other_map = [DEPTH[0], "also.depth.map={mask}"]
    changed = run_sample("several_depth_always_on", *overrides, *other_map)[2]
    assert not is_close(images, stack(changed))


def test_nested_guidance_has_a_scale_per_condition(run_sample) -> None:
    overrides = ["task=class", "task.labels=[3]", *DEPTH, "scale=3"]
    plain = stack(run_sample("several", *overrides)[2])
    nested = [*overrides, "guidance=nested"]
    status, err, images = run_sample("several", *nested, "guidance.scales={depth: 1.5, label: 2}")
    assert status == 0, err
    assert not is_close(images, plain)
    equal_scales = run_sample("several", *nested, "guidance.scales={depth: 3}")[2]
    assert is_close(equal_scales, plain), "equal scales are plain guidance"
    assert is_close(run_sample("several", *nested)[2], plain), "and so is no scale"
    added = run_sample("several", *nested, "+guidance.scales.depth=1.5", "+guidance.scales.label=2")[2]
    assert is_close(added, stack(images))


def test_interpolation_with_nested_guidance(run_sample) -> None:
    overrides = ["task=interpolate", "prompts=[a red circle]", *DEPTH, "scale=3", "guidance=nested"]
    weak, strong = (run_sample("several", *overrides, f"guidance.scales={{depth: {s}}}") for s in (1, 3))
    assert (weak[0], strong[0]) == (0, 0), weak[1]
    assert not is_close(weak[2], stack(strong[2]))


def test_guidance_scales_compose() -> None:
    overrides = ["ckpt=c", "prompts=[p]", "guidance=nested", "guidance.scales={image: 1.5, text: 2}"]
    assert instantiate(compose("sample", overrides).guidance).scales == {"image": 1.5, "text": 2}
    with pytest.raises(UserError, match="'guidance.scale'; nearest: guidance.scales;"):
        compose("sample", [*overrides[:3], "guidance.scale=2"])


MISTAKES = [
    (["task=class", "task.labels=[3]"], ["condition depth:", "task=...", "+task@also.NAME="]),
    (["task=depth", "task.map={grey}", *DEPTH], ["two tasks", "condition depth:"]),
    (["+task@also.x=unconditional", "prompts=[a]"], ["also.x gives no condition", "+task@also.x="]),
    (["+also.x=depth", "prompts=[a]"], ["also.x gives no condition", "+task@also.x="]),
    (["task@also.x=depth"], ["no also.x", "+task@also.x=...", "class, depth, edges"]),
    ([*DEPTH[:1]], ["also.depth.map is required (a grey PNG"]),
    (
        [*TASKS[5], *DEPTH, "+task@also.kind=class", "also.kind.labels=[1,2]"],
        ["single choice", "a, class 1 to a, class 2"],
    ),
]


@pytest.mark.parametrize(("overrides", "phrases"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_mistake_ends_with_one_error_line(run_sample, overrides, phrases) -> None:
    status, err, _ = run_sample("several_depth_always_on", *overrides)
    check_error(status, err, phrases)
