"""train.py from end to end: a resumed run is bit-identical, and mistakes are found before any work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import sample
import train
from ldm.callbacks.checkpoint import Checkpoint, newest_checkpoint
from ldm.callbacks.ema import EMA
from ldm.cli import encode_latents, evaluate
from ldm.cli.sampling.first_stage import load_first_stage
from ldm.data.demo.scenes import DemoScenes
from ldm.data.latents import read_header
from ldm.data.prepare.write_shards import write_shards
from ldm.diffusion.weighting import LearnedUncertainty, Uniform
from ldm.interop import model_file
from tests.support import tiny
from tests.support.command_line import check_error, run_command

ROOT = Path(__file__).parents[1]
CAPTION = "a large red circle on a white background"


def equal(a, b) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def state(folder: Path, step: int) -> dict:
    """Return a checkpoint's model, optimizers, EMA and position in the data."""
    checkpoint = torch.load(folder / "checkpoints" / f"step{step:08d}.ckpt", weights_only=True)
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return {
        **{
            key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
        },
        "ema": checkpoint["callbacks"]["EMA"],
        "stream": loader,
    }


def stage_1():
    return tiny.first_stage(adversary=tiny.adversary(start=3, warmup=2, ramp_steps=3), micro_batch_size=3)


def stage_2():
    return tiny.second_stage(tiny.diffusion(dropout=0.2), micro_batch_size=3)


def stage_2_with_uncertainty():
    return tiny.second_stage(weighting=LearnedUncertainty(Uniform()), micro_batch_size=3, strata=4)


def run(stage, folder: Path, max_steps: int, checkpoint: Path | None = None) -> dict[int, float]:
    """Train into a folder; return the losses by step."""
    callbacks = [EMA(0.9), Checkpoint(str(folder / "checkpoints"), every_n_steps=3, keep=9)]
    trainer = tiny.trainer(max_steps, callbacks, folder / "metrics.csv", validate_every=3)
    data = tiny.data(folder.parent / "shards", max_steps)
    trainer.fit(stage, data, ckpt_path=checkpoint, weights_only=True)
    return tiny.read_column(folder / "metrics.csv", "train/loss")


@pytest.mark.parametrize("build", [stage_1, stage_2, stage_2_with_uncertainty])
def test_a_resumed_run_is_bit_identical(build, tmp_path):
    straight = run(build(), tmp_path / "straight", 6)
    torch.manual_seed(1)  # another trainer, with other weights, in another state of the generator
    checkpoint = tmp_path / "straight" / "checkpoints" / "step00000003.ckpt"
    resumed = run(build(), tmp_path / "resumed", 6, checkpoint)
    assert list(straight) == [1, 2, 3, 4, 5, 6] and list(resumed) == [4, 5, 6]
    assert resumed == {step: straight[step] for step in (4, 5, 6)}
    ours, theirs = state(tmp_path / "straight", 6), state(tmp_path / "resumed", 6)
    assert [key for key in ours if not equal(ours[key], theirs[key])] == []
    assert not equal(ours, state(tmp_path / "straight", 3))


@pytest.mark.parametrize("build", [stage_1, stage_2])
def test_a_finished_run_can_be_made_longer(build, tmp_path):
    straight = run(build(), tmp_path / "straight", 6)
    torch.manual_seed(0)
    run(build(), tmp_path / "resumed", 3)
    resumed = run(
        build(), tmp_path / "resumed", 6, tmp_path / "resumed" / "checkpoints" / "step00000003.ckpt"
    )
    assert resumed == straight, "and the table continues"
    assert equal(state(tmp_path / "straight", 6)["state_dict"], state(tmp_path / "resumed", 6)["state_dict"])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A dozen synthetic scenes in a shard."""
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("train", 12), folder)
    return folder


def test_both_stages_from_images_to_a_score(images, tmp_path):
    first, second = tmp_path / "ae", tmp_path / "text"
    words = ("experiment=debug/ae", f"data.shards={images}", "trainer.max_steps=5")
    status, out, err = run_command(train.main, *words, f"run={first}", f"data.val_shards={images}")
    assert status == 0, err
    assert "debug_ae: " in out and "batch size 4 over 1 process(es), 5 steps" in out
    assert "learning rate 1e-4 (never rescaled" in out
    assert {p.name for p in first.iterdir()} == {
        "autoencoder.safetensors", "checkpoints", "config.yaml", "metrics.csv", "images",
    }  # fmt: skip

    weights, latents = first / "autoencoder.safetensors", tmp_path / "latents"
    where = (f"first_stage={weights}", f"shards={images}", f"out={latents}", "size=64")
    status, out, err = run_command(encode_latents.main, *where)
    assert status == 0 and f"latents of 12 images to {latents}" in out, err
    autoencoder = load_first_stage(str(weights), "cpu")
    header = read_header([latents / "00000.tar"])
    assert header.autoencoder == model_file.content_hash(autoencoder) and header.shape == (8, 8, 8)

    words = ("experiment=debug/text", f"data.shards={latents}", "trainer.max_steps=3", f"run={second}")
    status, out, err = run_command(train.main, *words, f"first_stage={weights}")
    assert status == 0, err
    assert (second / "images" / "step00000003.png").is_file()

    status, _, err = run_command(train.main, *words, f"first_stage={weights}")
    assert status == 2 and "already holds checkpoints" in err and "resume=auto" in err
    status, out, err = run_command(train.main, *words, f"first_stage={weights}", "resume=auto")
    assert status == 0, "a finished run has nothing to do"

    ckpt, out_folder = second / "latent_diffusion.safetensors", tmp_path / "samples"
    words = (f"ckpt={ckpt}", f"prompts=['{CAPTION}']", "n=2", "steps=2", f"out={out_folder}")
    status, out, err = run_command(sample.main, *words)
    assert status == 0 and "wrote 2 of 2 images" in out, err
    assert Image.open(out_folder / "0000_000001.png").size == (64, 64)

    words = (f"ckpt={ckpt}", "n=2", "steps=2", "batch_size=2", f"out={tmp_path / 'score'}")
    status, out, err = run_command(evaluate.main, *words)
    assert status == 0 and "rendered scenes (ceiling)" in out, err
    scores = json.loads((tmp_path / "score" / "scores.json").read_text())
    assert scores["rendered scenes (ceiling)"]["passed"] in (2, 1.0, 100.0)

    other = tmp_path / "other.safetensors"
    torch.nn.init.normal_(autoencoder.decoder.conv_out.weight)
    _, config, _ = model_file.load(weights, "autoencoder")
    model_file.save(other, autoencoder.state_dict(), config, "autoencoder", {})
    words = ("experiment=debug/text", f"data.shards={latents}", f"run={tmp_path / 'more'}")
    status, _, err = run_command(train.main, *words, f"first_stage={other}")
    assert status == 2 and err.count("\n") == 1
    assert str(latents) in err and header.autoencoder[:12] in err
    assert "`python -m ldm.cli.encode_latents`" in err
    status, _, err = run_command(
        train.main, "experiment=debug/ae", f"data.shards={latents}", f"run={tmp_path / 'm'}"
    )
    assert status == 2 and f"{latents} holds latents" in err and "data.shards" in err


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["experiment=debug/tex"], ["debug/tex", "debug/text"]),
        (
            ["experiment=debug/ae", "trainer.max_steps=4"],
            ["discriminator", "adversary.start=4", "trainer.max_steps=4"],
        ),
        (["experiment=debug/ae", "data.shards=/nowhere"], ["/nowhere", "data.shards"]),
        (["experiment=debug/ae", "resume=/nowhere.ckpt"], ["no checkpoint /nowhere.ckpt"]),
        (
            ["experiment=debug/ae", "trainer.devices=3", "trainer.strategy=ddp"],
            ["data.global_batch_size=4", "3 processes"],
        ),
        (["experiment=debug/text", "first_stage=null"], ["stage 2", "first_stage="]),
        (["experiment=debug/text", "first_stage=/nowhere.safetensors"], ["/nowhere.safetensors"]),
    ],
    ids=lambda value: value[-1],
)
def test_a_mistake_is_one_line_and_writes_nothing(images, tmp_path, words, phrases):
    shards = [] if any("data.shards" in word for word in words) else [f"data.shards={images}"]
    status, out, err = run_command(train.main, *words, *shards, f"run={tmp_path / 'run'}")
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(phrase in err for phrase in phrases), err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_the_settings_it_announces(images, tmp_path):
    """Learning rate, weight decay and batch size: printed, recorded and used; then the same command again."""
    run, words = tmp_path / "run", ["experiment=debug/ae", f"data.shards={images}", "callbacks.images=null"]
    words += [f"run={run}", "stage.statistics_batches=1", "callbacks.checkpoint.keep=9", "adversary.start=2"]
    assert run_command(train.main, *words, "trainer.max_steps=3")[0] == 0
    new = ["optimizer.lr=5e-3", "+optimizer.weight_decay=0.5", "trainer.max_steps=4", "resume=auto"]
    status, out, err = run_command(train.main, *words, *new, "data.global_batch_size=6")
    check_error(status, err, ["data.global_batch_size=4", "=6", "allow_changes=[data.global_batch_size]"])
    assert "global_batch_size: 4" in (run / "config.yaml").read_text(), "of the run, not of the mistake"
    assert list(state(run, 3)["stream"][0].values())[:2] == [3, 12]

    status, out, err = run_command(
        train.main, *words, *new, "data.global_batch_size=6", "allow_changes=[data.global_batch_size]"
    )
    assert status == 0, err
    announced = [
        "optimizer.lr: 0.0001 -> 0.005 after step 3",
        "optimizer.weight_decay: 0 -> 0.5 after step 3",
    ]
    announced.append("data.global_batch_size: 4 -> 6 after step 3")
    assert all(line in out for line in announced) and "learning rate 5e-3" in out
    assert all(line in (run / "config.yaml").read_text() for line in announced)
    assert tiny.read_column(run / "metrics.csv", "train/learning_rate") == {
        1: 1e-4,
        2: 1e-4,
        3: 1e-4,
        4: 5e-3,
    }
    saved = torch.load(run / "checkpoints" / "step00000004.ckpt", weights_only=True)
    assert sorted(saved["ldm"]["config"]["changes"]) == sorted(announced)
    for optimizer in saved["optimizer_states"]:
        assert [(g["lr"], g["weight_decay"]) for g in optimizer["param_groups"]] == [(5e-3, 0.5)]
    assert list(state(run, 4)["stream"][0].values())[:2] == [4, 18]

    status, out, err = run_command(train.main, *words, *new[:2], "resume=auto", "data.global_batch_size=6")
    assert status == 0 and "optimizer" not in out and "trainer.max_steps: 4 -> 8" in out, err
    assert list(state(run, 8)["stream"][0].values())[:2] == [8, 42]


@pytest.mark.multiprocess
def test_two_processes_train_as_one(images, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["experiment=debug/ae", f"data.shards={images}", f"data.val_shards={images}"]
    ranks = ["trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true", f"run={two}"]
    done = subprocess.run(
        [sys.executable, "train.py", *words, *ranks], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "batch size 4 over 2 process(es)" in done.stdout and done.stdout.count("wrote") == 1
    assert run_command(train.main, *words, f"run={one}")[0] == 0
    for name in ("train/loss", "train/lambda", "train/gradient_norm", "train/logits_fake", "val/psnr"):
        ours, theirs = (tiny.read_column(folder / "metrics.csv", name) for folder in (one, two))
        assert ours.keys() == theirs.keys()
        assert theirs == pytest.approx(ours, rel=1e-4), name
    for name in ("speed/images_per_second", "speed/data_wait"):
        of_0, least, largest = (
            tiny.read_column(two / "metrics.csv", f"{name}{of}") for of in ("", "_least", "_largest")
        )
        assert least.keys() == of_0.keys() and len(least) > 5
        assert all(least[k] <= of_0[k] * 1.001 and of_0[k] <= largest[k] * 1.001 for k in least)
        assert any(least[k] < largest[k] for k in least) and tiny.read_column(one / "metrics.csv", name)
    assert "_least" not in (one / "metrics.csv").read_text()


@pytest.mark.multiprocess
def test_a_killed_run_resumes_bit_identically(images, tmp_path):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    words = ["experiment=debug/ae", f"data.shards={images}", "callbacks.checkpoint.every_n_steps=2"]
    endless = [*words, f"run={killed}", "trainer.max_steps=100000", "resume=auto"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *endless], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 240
        while not (killed / "checkpoints" / "step00000006.ckpt").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    step = int(newest_checkpoint(killed / "checkpoints").stem.removeprefix("step"))
    last = [f"trainer.max_steps={step + 3}"]
    assert run_command(train.main, *words, *last, f"run={killed}", "resume=auto")[0] == 0
    assert run_command(train.main, *words, *last, f"run={straight}")[0] == 0
    losses = [tiny.read_column(folder / "metrics.csv", "train/loss") for folder in (straight, killed)]
    assert losses[0] == losses[1] and max(losses[0]) == step + 3
    assert equal(state(straight, step + 3), state(killed, step + 3))
    ours, theirs = (
        model_file.load(folder / "autoencoder.safetensors", "autoencoder")[0] for folder in (straight, killed)
    )
    assert equal(ours, theirs)
