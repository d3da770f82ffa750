"""Model files and input files, written once per session, and sample.py run on them."""

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import sample
from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.stages import LatentDiffusionStage
from tests.data.fields.test_decode import header_of_a_png
from tests.support import tiny
from tests.support.command_line import run_command
from tests.support.sampling_models import MODELS, TINY, ModelFiles, write_inputs

SampleRun = tuple[int, str, dict[str, np.ndarray]]
"""Exit status, stderr, and the images by file name."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentDiffusionStage, EMA, str]:
    """The stage, the EMA and the path of the model file of a text-to-image model after three steps."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    cfg = compose("train", TINY)
    config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    stage, ema, path = tiny.second_stage(instantiate(cfg.stage.model)), EMA(0.5), folder / "out.safetensors"
    trainer = tiny.trainer(3, [ema, Export(str(path), config, "latent_diffusion", 10)])
    trainer.fit(stage, tiny.data(folder / "shards", 3))
    return stage, ema, str(path)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def input_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of images, maps, masks and boxes by name, some of them invalid."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = write_inputs(folder)
    labels, colours = (np.array(Image.open(paths[name])) for name in ("labels", "colours"))
    for name, array in {
        "other_labels": labels.T[::-1] + 2,
        "unknown_labels": labels + 90,
        "wide": np.tile(labels, 2),
        "small": colours[:16, :24],
        "odd": colours[:9, :24],
    }.items():
        paths[name] = str(folder / f"{name}.png")
        Image.fromarray(array).save(paths[name])
    (folder / "huge.png").write_bytes(header_of_a_png(20_000, 20_000))
    return paths | {"huge": str(folder / "huge.png")}


@pytest.fixture
def run_sample(model_files, input_files, tmp_path) -> Callable[..., SampleRun]:
    """Return a function that runs sample.py with a model of `MODELS`, or a model file, and overrides.

    `{name}` in an override is replaced by the path of that input file. The images are in tmp_path/samples.
    """

    def run(model: str, *overrides: str) -> SampleRun:
        out = tmp_path / "samples"
        shutil.rmtree(out, ignore_errors=True)
        for name, path in input_files.items():
            overrides = tuple(override.replace(f"{{{name}}}", path) for override in overrides)
        ckpt = model_files[model] if model in MODELS else model
        defaults = [f"ckpt={ckpt}", f"out={out}", "n=2", "steps=2", "device=cpu", "scale=1"]
        status, _, err = run_command(sample.main, *defaults, *overrides)
        paths = sorted(path for path in out.glob("*.png") if path.name[0].isdigit())
        return status, err, {path.name: np.array(Image.open(path)) for path in paths}

    return run
