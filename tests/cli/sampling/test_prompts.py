"""Prompts from the command line and from files."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import sample
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.prompts import read_prompts
from ldm.conditioning import clip_tower
from ldm.errors import UserError
from ldm.interop import model_file
from tests.support.command_line import check_error, run_command
from tests.support.sampling_models import model_config


def test_prompts_are_a_list_or_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blue square \n")
    assert read_prompts(str(file)) == ["a red circle", "a blue square"]
    assert read_prompts(OmegaConf.create(["a red circle", 7])) == ["a red circle", "7"]
    with pytest.raises(UserError, match=r"no prompt file a red circle: .* prompts="):
        read_prompts("a red circle")
    for invalid in (7, "a long caption " * 40):
        with pytest.raises(UserError, match="no prompt file"):
            read_prompts(invalid)
    assert read_prompts(None) is None
    file.write_bytes("\ufeffein grüner Kreis\n".encode())
    assert read_prompts(str(file)) == ["ein grüner Kreis"]
    file.write_text("\n")
    with pytest.raises(UserError, match="prompts=.* is empty"):
        read_prompts(str(file))


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}


@pytest.fixture
def clip_file(tmp_path, monkeypatch) -> str:
    """The model file of a model with a tiny frozen CLIP, trained with one chunk of 75 tokens."""
    path = tmp_path / "tiny-clip-of-8.json"
    vision = {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4}
    path.write_text(json.dumps({"embed_dim": 8, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}))
    open_clip.add_model_config(path)
    config = model_config("text")
    tokenizer = {"_target_": "ldm.conditioning.tokenizer.ClipTokenizer", "length": 77, "pad_token": 49407}
    config["conditioner"]["conditioners"]["text"] = {
        "_target_": "ldm.conditioning.clip_text.ClipText", "tokenizer": tokenizer, "name": path.stem
    }  # fmt: skip

    def load_tower(tower: nn.Module, *_: str) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in tower.parameters():
            parameter.data.normal_(std=0.3, generator=generator)

    monkeypatch.setattr(clip_tower, "load_tower", load_tower)
    torch.manual_seed(0)
    model = instantiate(config)
    for parameter in model.denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.conditioner.load_pretrained()
    header = {"size": "32", "step": "0"} | model.describe_frozen_weights()
    model_file.save(tmp_path / "clip.safetensors", model.state_dict(), config, "latent_diffusion", header)
    return str(tmp_path / "clip.safetensors")


def sample_once(ckpt: str, out: Path, *overrides: str) -> tuple[str, dict[str, bytes]]:
    """Return what sample.py prints, and the pixels of its images by name."""
    words = [f"ckpt={ckpt}", f"out={out}", "n=1", "steps=2", "device=cpu", "batch_size=2", *overrides]
    status, printed, err = run_command(sample.main, *words)
    assert status == 0, err
    assert "UserWarning" not in err, "a cut is reported once"
    images = (path for path in sorted(out.glob("0*.png")))
    return printed, {path.name: Image.open(path).tobytes() for path in images}


def test_long_prompts_are_reported_or_taken_in_chunks(clip_file, tmp_path):
    prompts = tmp_path / "prompts.txt"
    words = ["red"] * 75
    prompts.write_text("\n".join([" ".join([*words, "circle"]), " ".join([*words, "square"]), "green"]))
    given, scale = f"prompts={prompts}", "scale=3"
    printed, cut = sample_once(clip_file, tmp_path / "cut", given, scale)
    assert "warning: the end 'circle' of the prompt 'red red" in printed and printed.count("warning") == 1
    assert "and those of 1 other prompts is cut off, after 75 tokens; prompt_chunks=2 takes more" in printed
    printed, whole = sample_once(clip_file, tmp_path / "whole", given, scale, "prompt_chunks=2")
    assert "warning" not in printed
    first, second, third = whole.values()
    assert len(set(cut.values())) == 2, "both long prompts are the same without their ends"
    assert len({first, second, third}) == 3 and whole["0000_000000.png"] != cut["0000_000000.png"]
    alone = sample_once(
        clip_file, tmp_path / "alone", "prompts=[green]", scale, "prompt_chunks=2", "batch_size=1"
    )[1]
    assert alone["0000_000000.png"] == third, "a short prompt does not depend on the others"
    negative = f"negative={' '.join([*words, 'circle'])}"
    assert "the end 'circle' of" in sample_once(clip_file, tmp_path / "n1", "prompts=[a]", scale, negative)[0]
    chunked = sample_once(clip_file, tmp_path / "n2", "prompts=[a]", scale, negative, "prompt_chunks=2")
    assert "warning" not in chunked[0]


def test_weights_are_an_option(clip_file, tmp_path):
    def run(name: str, *overrides: str) -> list[bytes]:
        overrides = ("scale=3", "batch_size=1", *overrides)
        return list(sample_once(clip_file, tmp_path / name, *overrides)[1].values())

    plain, brackets = run("off", "prompts=['a red circle','a (red:4) circle']")
    prompts = r"prompts=['a (red:1) circle','a (red:4) circle','a \(red\:4\) circle']"
    unweighted, weighted, escaped = run("on", prompts, "prompt_weights=true")
    assert unweighted == plain and escaped == brackets, "to the last bit"
    assert len({plain, brackets, weighted}) == 3
    negative = [
        run(text, "prompts=[a]", f"negative='{text}'", "prompt_weights=true") for text in ("b", "(b:3)")
    ]
    assert negative[0] != negative[1]


MISTAKES = [
    ("text", ["prompts=['a (red']", "prompt_weights=true"], ["character 3 ", "not closed"]),
    ("text", ["prompts=['a']", "negative='b)'", "prompt_weights=true"], ["character 2 ", "closes no"]),
    ("text", ["prompts=['(red:1,3)']", "prompt_weights=true"], ["'1,3'", "(word:1.3)"]),
    (
        "text",
        ["prompts=[a]", "prompt_chunks=2"],
        ["prompt_chunks=2", "up to 14 tokens", "prompt_chunks=null"],
    ),
    ("text", ["prompts=[a]", "prompt_chunks=0"], ["prompt_chunks", "0"]),
    ("text", ["prompts=[a]", "prompt_chunks=1.5"], ["prompt_chunks", "1.5"]),
    ("text", ["prompts=[a]", "prompt_weights=2"], ["prompt_weights", "2"]),
    ("unconditional", ["task=unconditional", "prompt_chunks=2"], ["not use prompts: remove prompt_chunks"]),
    ("unconditional", ["task=unconditional", "prompt_weights=true"], ["prompts: remove prompt_weights"]),
]


@pytest.mark.parametrize(("model", "words", "phrases"), MISTAKES)
def test_a_mistake_ends_with_one_error_line(run_sample, model, words, phrases):
    status, err, images = run_sample(model, *words)
    check_error(status, err, phrases)
    assert images == {}


def test_a_jointly_trained_encoder_reports_cuts_too(run_sample, model_files, tmp_path):
    printed, _ = sample_once(model_files["text"], tmp_path / "a", f"prompts=['{'red ' * 14} circle']")
    assert "warning: the end 'circle' of the prompt" in printed and "is cut off, after 14 tokens\n" in printed
