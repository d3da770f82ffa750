"""A model file with a NaN: every command that reads model files names the tensor and the file."""

import math
from pathlib import Path

import pytest

import sample
from ldm.cli import ema, encode_latents, evaluate, expand_inputs
from ldm.interop import model_file
from tests.support import tiny
from tests.support.command_line import check_error, run_command
from tests.support.sampling_models import ModelFiles

TENSOR = "denoiser.conv_in.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a whole model, the same model with a NaN, and an autoencoder with one."""
    folder = tmp_path_factory.mktemp("broken")
    tensors, config, header = model_file.load(ModelFiles(folder)["text"], "latent_diffusion")
    tensors[TENSOR].view(-1)[5] = math.nan
    model_file.save(folder / "nan.safetensors", tensors, config, "latent_diffusion", header)
    weights = tiny.autoencoder().state_dict()
    weights["latent_mean"][0] = math.inf
    model_file.save(folder / "ae.safetensors", weights, {}, "autoencoder", {})
    model_file.save(folder / "step8.safetensors", {f"0/{TENSOR}": tensors[TENSOR]}, {}, "ema_snapshot", {
        "updates": "8", "gammas": "7.0"
    })  # fmt: skip
    return folder


SAMPLE = ["prompts=[a]", "device=cpu", "out={files}/out", "steps=1"]
COMMANDS = {
    "sample ckpt": (sample.main, ["ckpt={files}/nan.safetensors", *SAMPLE], TENSOR),
    "sample weak": (
        sample.main,
        ["ckpt={files}/text.safetensors", "weak={files}/nan.safetensors", *SAMPLE],
        TENSOR,
    ),
    "evaluate ckpt": (evaluate.main, ["ckpt={files}/nan.safetensors", "out={files}/out"], TENSOR),
    "evaluate weak": (
        evaluate.main,
        ["ckpt={files}/text.safetensors", "weak={files}/nan.safetensors", "out={files}/out", "device=cpu"],
        TENSOR,
    ),
    "encode_latents first_stage": (
        encode_latents.main,
        ["first_stage={files}/ae.safetensors", "shards={files}/none", "out={files}/out", "size=64"],
        "latent_mean",
    ),
    "ema ckpt": (
        ema.main,
        ["ckpt={files}/nan.safetensors", "snapshots={files}", "out={files}/out.safetensors", "length=0.1"],
        TENSOR,
    ),
    "ema snapshots": (
        ema.main,
        ["ckpt={files}/text.safetensors", "snapshots={files}", "out={files}/out.safetensors", "length=0.1"],
        f"0/{TENSOR}",
    ),
    "expand_inputs ckpt": (
        expand_inputs.main,
        ["ckpt={files}/nan.safetensors", "out={files}/out.safetensors", "experiment=debug/text",
         "data.shards=none"],
        TENSOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_tensor_and_writes_nothing(files, command):
    main, words, tensor = COMMANDS[command]
    before = sorted(files.rglob("*"))
    status, _, err = run_command(main, *(word.replace("{files}", str(files)) for word in words))
    check_error(status, err, [str(files), f".safetensors has NaN or infinity in {tensor}: ", "model file"])
    assert sorted(files.rglob("*")) == before
