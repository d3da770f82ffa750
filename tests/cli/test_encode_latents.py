"""Latents by command, with the states of a frozen text encoder."""

import re
from pathlib import Path

import pytest
import torch

import train
from ldm.cli import encode_latents
from ldm.data.datamodule import ShardDataModule
from tests.conditioning.test_pretrained_text import write_encoder
from tests.support import tiny
from tests.support.command_line import run_command

AE = ["experiment=debug/ae", "trainer.max_steps=6", "data.size=16"]
TEXT = ["experiment=debug/text", "trainer.max_steps=3", "data.size=16", "denoiser.context_channels=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage, images, a tiny T5, and latents with its states."""
    folder = tmp_path_factory.mktemp("cached")
    write_encoder(folder / "t5")
    tiny.shards(folder / "images")
    run(train.main, *AE, f"data.shards={folder}/images", f"run={folder}/ae")
    run(
        encode_latents.main,
        *inputs(folder),
        f"shards={folder}/images",
        f"out={folder}/latents",
        "size=16",
        *t5(folder),
    )
    return folder


def run(main, *words: str) -> str:
    status, out, err = run_command(main, *words)
    assert status == 0, err
    return out


def t5(folder: Path, **options: object) -> list[str]:
    values = {"name": folder / "t5", "width": 16, "length": 10, **options}
    return [
        "conditioner=t5",
        *(f"conditioner.conditioners.text.{key}={value}" for key, value in values.items()),
    ]


def inputs(folder: Path) -> list[str]:
    return [f"first_stage={folder}/ae/autoencoder.safetensors"]


def test_training_reads_the_states_that_the_encoder_gives(folder: Path) -> None:
    losses = {}
    for shards in ("images", "latents"):
        run(
            train.main,
            *TEXT,
            *inputs(folder),
            f"data.shards={folder}/{shards}",
            f"run={folder}/{shards}_run",
            *t5(folder),
        )
        losses[shards] = tiny.read_column(folder / f"{shards}_run" / "metrics.csv", "train/loss")
    assert losses["images"] == pytest.approx(losses["latents"], rel=5e-3)
    batch = next(iter(ShardDataModule(f"{folder}/latents", None, 4, 16, 1).train_dataloader()))
    assert batch["text"].dtype == torch.float16 and batch["text_mask"].sum(1).min() > 1


@pytest.mark.parametrize(
    ("options", "words", "what"),
    [
        (
            {"length": 12},
            [],
            r"number of tokens and channels than this model's \(\(10, 16\), not \(12, 16\)\)",
        ),
        ({"revision": "other"}, [], "text encoder .*t5 main.*not .*t5 other"),
        (
            {},
            ["data.captions={txt:1,json.long:1}"],
            r"caption than this model's \(\['txt'\], not \['txt', 'json.long'\]\)",
        ),
    ],
)
def test_states_of_other_settings_are_refused(
    folder: Path, options, words, what: str, tmp_path: Path
) -> None:
    words = [
        *inputs(folder),
        f"data.shards={folder}/latents",
        f"run={tmp_path}/run",
        *t5(folder, **options),
        *words,
    ]
    status, _, err = run_command(train.main, *TEXT, *words)
    assert status == 2 and "holds cached states of captions with another" in err
    assert re.search(what, err), err


def test_an_encoder_that_is_trained_or_pooled_is_refused(folder: Path, tmp_path: Path) -> None:
    pooled = ["clip_vit_l14", "+conditioner.conditioners.text.pooled=true"]
    for conditioner, *words in (["debug"], pooled):
        status, _, err = run_command(
            encode_latents.main, *inputs(folder), f"shards={folder}/images", f"out={tmp_path}/out", "size=16",
            f"conditioner={conditioner}", *words,
        )  # fmt: skip
        assert status == 2 and "only the states of one frozen text encoder without a pooled vector" in err
    assert not (tmp_path / "out").exists()
