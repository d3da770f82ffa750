"""sample.py on models of several conditions: sizes and scores, tasks together, guidance of each."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.config.compose import CONFIGS, compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model
from ldm.errors import UserError
from tests.cli.sampling.test_conditional_tasks import composed, save
from tests.support import command_line

SIZES = ["conditioner=demo/sizes", "conditioner.conditioners.text.width=8", "denoiser.in_channels=6",
    "+denoiser.vector_channels=120", "denoiser.model_channels=64"]  # fmt: skip
"""64 channels, for a group of one channel would lose what the vector adds to it."""
SEVERAL = ["conditioner=demo/class", "conditioner.conditioners.label.width=8", "denoiser.in_channels=70",
    "+denoiser.vector_channels=8", "denoiser.model_channels=64"]  # fmt: skip
DEPTH = ["+task@also.depth=depth", "also.depth.map={depth}"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Model files of random weights, and a depth map, a image and a mask of 32 pixels."""
    folder = tmp_path_factory.mktemp("several")
    made = {name: str(folder / f"{name}.png") for name in ("depth", "image", "mask")}
    rising = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray((rising // 4).astype(np.uint8)).save(made["depth"])
    Image.fromarray(np.stack([rising % 251, rising % 7 * 30, rising % 97], -1).astype(np.uint8)).save(
        made["image"]
    )
    Image.fromarray((rising % 32 < 16).astype(np.uint8) * 255).save(made["mask"])
    for name, words, dropout in (("told", SIZES, 0.0), ("dropped", SIZES, 0.1)):
        node = composed(*words)
        for condition in ("sizes", "aesthetic"):
            node.conditioner.conditioners[condition].dropout = dropout
        made[name] = save(f"{folder}/{name}.safetensors", OmegaConf.to_container(node, resolve=True))
    for name, dropout in (("several", 0.1), ("fixed", 0.0)):
        node = composed(*SEVERAL)
        for file, condition in (("debug", "text"), ("demo/depth", "depth")):
            found = OmegaConf.load(CONFIGS / "conditioner" / f"{file}.yaml").conditioners
            OmegaConf.update(node.conditioner.conditioners, condition, found[condition], force_add=True)
        node.conditioner.conditioners.depth.dropout = dropout
        made[name] = save(f"{folder}/{name}.safetensors", OmegaConf.to_container(node, resolve=True), 1.0)
    return made


@pytest.fixture
def shell(monkeypatch, capsys, files, tmp_path):
    """Runs sample.py with a model; answers (exit status, stderr, the images by name)."""

    def run(model: str, *words: str):
        for old in tmp_path.glob("*.png"):
            old.unlink()
        given = [f"ckpt={files[model]}", f"out={tmp_path}", "n=2", "steps=2", "device=cpu"]
        given += [] if any(w.startswith("scale=") for w in words) else ["scale=1"]
        for key, path in files.items():
            words = tuple(word.replace(f"{{{key}}}", path) for word in words)
        status = command_line.sample_py(monkeypatch, *given, *words)
        images = sorted(p for p in tmp_path.glob("*.png") if p.name[0].isdigit())
        return status, capsys.readouterr().err, {p.name: np.array(Image.open(p)) for p in images}

    return run


def sampled_by(path: str, **entries) -> np.ndarray:
    """What the model itself draws of a batch of two by seeds 0 and 1, as bytes."""
    model, _ = load_model(path, "cpu")
    cfg = compose("sample", ["ckpt=c", "steps=2"])
    times, sampler = instantiate(cfg.timestep_spacing)(model.schedule, 2), instantiate(cfg.sampler)
    active = model.conditioner.conditions_in(entries)
    x = model.generate(entries, [0, 1], (32, 32), sampler=sampler, times=times, scale=1.0, active=active)
    return ((x + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()


def near(drawn: dict[str, np.ndarray], expected: np.ndarray) -> bool:
    return bool(np.abs(np.stack(list(drawn.values())) - expected).max() <= 1)


def sizes(*row: float) -> torch.Tensor:
    return torch.tensor([row] * 2).float()


@pytest.mark.parametrize("name", ["told", "dropped"])
def test_a_model_of_sizes_and_scores_is_told_those_of_what_is_drawn(shell, files, name) -> None:
    status, err, drawn = shell(name, "prompts=[a red circle]")
    assert status == 0, err
    caption = ["a red circle"] * 2
    told = {"sizes": sizes(32, 32, 0, 0, 32, 32), "aesthetic": sizes(6)}
    assert near(drawn, sampled_by(files[name], caption=caption, **told))
    words = ("original_size=[64,48]", "crop=[8,4]", "aesthetic=4.5")
    drawn = shell(name, "prompts=[a red circle]", *words)[2]
    other = {"sizes": sizes(64, 48, 8, 4, 32, 32), "aesthetic": sizes(4.5)}
    expected = sampled_by(files[name], caption=caption, **other)
    assert near(drawn, expected) and not near(drawn, sampled_by(files[name], caption=caption, **told))


TASKS = [
    ["task=unconditional"],
    ["prompts=[a]", "task=img2img", "task.image={image}", "task.strength=1"],
    ["prompts=[a]", "task=inpaint", "task.image={image}", "task.mask={mask}"],
    ["prompts=[a]", "task=interpolate"],
    ["prompts=[a]", "task=interpolate", "scale=2"],
    ["prompts=[a]", "task=invert", "task.image={image}", "task.prompt=a"],
    ["prompts=[a]", "negative=blue", "scale=2"],
]


@pytest.mark.parametrize("words", TASKS, ids=" ".join)
def test_every_task_tells_sizes_and_scores(shell, words) -> None:
    status, err, drawn = shell("told", *words)
    assert status == 0, err
    _, _, other = shell("told", *words, "aesthetic=1", "crop=[16,16]")
    assert drawn.keys() == other.keys() and not near(drawn, np.stack(list(other.values())))


def test_a_pair_that_is_none(shell) -> None:
    for words in (["crop=[1]"], ["crop=[-1,0]"], ["original_size=[0,4]"]):
        status, err, _ = shell("told", "prompts=[a]", *words)
        assert status == 2 and f"{words[0].replace(',', ', ')}: expected [" in err


def test_one_number_is_a_square(shell) -> None:
    drawn = [shell("told", "prompts=[a]", f"original_size={size}")[2] for size in ("512", "[512,512]")]
    assert drawn[0] and near(drawn[0], np.stack(list(drawn[1].values())))


@pytest.mark.parametrize("name", ["told", "dropped"])
def test_a_score_to_lead_away_from(shell, files, name) -> None:
    """The null is told of it: where training never drops the score in place of the image's own."""
    words = ["prompts=[a red circle]", "scale=3"]
    status, err, drawn = shell(name, *words, "negative_aesthetic=2.5")
    assert status == 0, err
    model, _ = load_model(files[name], "cpu")
    batch = {"caption": ["a red circle"] * 2, "sizes": sizes(32, 32, 0, 0, 32, 32), "aesthetic": sizes(6)}
    active = {"aesthetic"} if name == "dropped" else {"aesthetic", "sizes"}
    null = model.condition({**batch, "aesthetic": sizes(2.5)}, size=(4, 4), active={*active, "coordinates"})
    found = model.null_condition(batch, 3.0, {"aesthetic": sizes(2.5)}, (4, 4))
    assert torch.equal(found.vector, null.vector) and torch.equal(found.context, null.context)
    plain = np.stack(list(shell(name, *words)[2].values()))
    assert not near(drawn, plain)
    if name == "told":
        assert near(shell(name, *words, "negative_aesthetic=6")[2], plain), "the same is as none"
    status, err, _ = shell("several", *words, *DEPTH, "negative_aesthetic=2.5")
    assert status == 2 and "negative: this model has no condition that uses aesthetic" in err


def test_tasks_together_tell_one_model(shell, files) -> None:
    model = files["several"]
    depth = torch.from_numpy(np.array(Image.open(files["depth"]))).float()[None, None] / 127.5 - 1
    entries = {"label": torch.tensor([3, 3]), "depth": depth.expand(2, 1, 32, 32)}
    class_ = ["task=class", "task.labels=[3]"]
    status, err, drawn = shell("several", *class_, *DEPTH)
    assert status == 0, err
    assert near(drawn, sampled_by(model, caption=["", ""], **entries))
    status, err, captioned = shell("several", *class_, *DEPTH, "prompts=[a red circle]")
    assert status == 0, err
    expected = sampled_by(model, caption=["a red circle"] * 2, **entries)
    assert near(captioned, expected) and not near(drawn, expected), "the class keeps the caption"
    words = ["task=depth", "task.map={depth}", "+task@also.kind=class", "also.kind.labels=[3]"]
    turned = shell("several", *words, "prompts=[a red circle]")[2]
    assert near(turned, expected), "whichever comes first"
    text = shell("several", *DEPTH, "prompts=[a red circle]")[2]
    entries.pop("label")
    assert near(text, sampled_by(model, caption=["a red circle"] * 2, **entries))


def test_each_class_of_each_prompt_is_a_row(shell, tmp_path) -> None:
    words = ["task=class", "task.labels=[3,4]", "prompts=[a red circle,a blue square]"]
    status, err, drawn = shell("several", *words)
    assert status == 0, err
    assert list(drawn) == [f"{row:04d}_{seed:06d}.png" for row in range(4) for seed in (0, 1)]
    made = Image.open(tmp_path / "0003_000001.png").text
    assert made["prompt"] == "a blue square, class 4"
    assert json.loads(made["parameters"])["seed"] == 1
    alone = shell("several", "task=class", "task.labels=[4]", "prompts=[a blue square]")[2]
    assert near(alone, np.stack([drawn["0003_000000.png"], drawn["0003_000001.png"]]))


@pytest.mark.parametrize("words", TASKS[1:6], ids=" ".join)
def test_another_sampler_goes_with_conditions(shell, words) -> None:
    status, err, drawn = shell("fixed", *words, *DEPTH)
    assert status == 0, err
    if "task=invert" in words:  # which gives the image back, whatever leads to its noise and from it
        return
    other = [w.replace("{depth}", "{mask}") for w in DEPTH]
    assert not near(drawn, np.stack(list(shell("fixed", *words, *other)[2].values()))), (
        "the map changes the images"
    )


def test_guidance_of_each_condition(shell) -> None:
    words = ["task=class", "task.labels=[3]", *DEPTH, "scale=3"]
    plain = np.stack(list(shell("several", *words)[2].values()))
    nested = [*words, "guidance=nested"]
    status, err, drawn = shell("several", *nested, "guidance.scales={depth: 1.5, label: 2}")
    assert status == 0, err
    assert not near(drawn, plain)
    assert near(shell("several", *nested, "guidance.scales={depth: 3}")[2], plain), "one scale for all"
    assert near(shell("several", *nested)[2], plain), "without a name"
    added = shell("several", *nested, "+guidance.scales.depth=1.5", "+guidance.scales.label=2")[2]
    assert near(added, np.stack(list(drawn.values())))
    between = ["task=interpolate", "prompts=[a red circle]", *DEPTH, "scale=3", "guidance=nested"]
    frames = [shell("several", *between, f"guidance.scales={{depth: {s}}}") for s in (1, 3)]
    assert [f[0] for f in frames] == [0, 0], frames[0][1]
    assert not near(frames[0][2], np.stack(list(frames[1][2].values())))


def test_scales_of_guidance_compose() -> None:
    words = ["ckpt=c", "prompts=[p]", "guidance=nested", "guidance.scales={image: 1.5, text: 2}"]
    assert instantiate(compose("sample", words).guidance).scales == {"image": 1.5, "text": 2}
    with pytest.raises(UserError, match="no key 'guidance.scale'; nearest: guidance.scales;"):
        compose("sample", [*words[:3], "guidance.scale=2"])


MISTAKES = [
    (["task=class", "task.labels=[3]"], "this model needs the condition depth: give its task=..."),
    (["task=depth", "task.map={depth}", *DEPTH], "two tasks give the condition depth: remove one of them"),
    (["+task@also.x=unconditional", "prompts=[a]"], "also.x gives no condition: add one that does"),
    (["+also.x=depth", "prompts=[a]"], "also.x gives no condition: add one that does"),
    (["task@also.x=depth"], "no also.x to override: write +task@also.x=..., one of class, depth, edges"),
    ([*DEPTH[:1]], "also.depth.map is required (a grey PNG"),
    (
        [*TASKS[5], *DEPTH, "+task@also.kind=class", "also.kind.labels=[1,2]"],
        "this task takes a single choice, but got a, class 1 to a, class 2",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[s for _, s in MISTAKES])
def test_a_mistake_is_one_sentence(shell, words, sentence) -> None:
    status, err, _ = shell("fixed", *words)
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and sentence in err, err
