"""A user's mistakes that docs/mistakes.md lists: one sentence, exit status 2, before work starts.

Those of overrides are in test_entry.py, of launchers in test_launch.py, of SLURM in test_submit.py; more of
training are in tests/test_train.py.
"""

import shutil
import sys
from collections import namedtuple
from io import BytesIO
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

import sample
import train
from ldm.cli import encode_latents, pack
from ldm.cli.training import run_lock
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shard, write_shards

WIDER = "adversary.discriminator.channels=8"


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs a command in this process; answers (exit status, stdout, stderr)."""

    def run(main, *words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What users have at hand: images, a run of stage 1, and files that are not what they seem."""
    root = tmp_path_factory.mktemp("place")
    write_shards(DemoScenes("train", 12), root / "images")
    argv, sys.argv = (
        sys.argv,
        ["train.py", *words(root, "images"), f"run={root / 'ae'}", "trainer.max_steps=5"],
    )
    train.main()
    sys.argv = argv
    checkpoint = root / "ae" / "checkpoints" / "step00000005.ckpt"
    (root / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    (root / "text.ckpt").write_text("not this")
    (root / "latin.txt").write_bytes("ein grüner Kreis".encode("latin-1"))
    torch.save({"weight": torch.zeros(2)}, root / "foreign.ckpt")
    (root / "empty").mkdir()
    (root / "file").touch()
    image = BytesIO()
    Image.new("RGB", (64, 64)).save(image, "PNG")
    (root / "captionless").mkdir()
    samples = [(f"{i:09d}", {"png": image.getvalue()}) for i in range(8)]
    write_shard(root / "captionless" / "00000.tar", samples)
    return root


def words(root: Path, shards: str) -> list[str]:
    return ["experiment=debug/ae", f"data.shards={root / shards}"]


TEXT = ["experiment=debug/text", "data.shards={place}/images"]
AE = ["experiment=debug/ae", "data.shards={place}/images"]
GO_ON = [*AE, "run={place}/ae", "trainer.max_steps=9", "resume=auto"]
CKPT = "{place}/ae/checkpoints/step00000005.ckpt"
FIRST = "{place}/ae/autoencoder.safetensors"
TRAINING = {
    "no steps": ([*AE, "trainer.max_steps=0"], "trainer.max_steps must be 1 or more, not 0"),
    "negative workers": ([*AE, "data.num_workers=-1"], "data.num_workers must be 0 or more, not -1"),
    "a rate below 0": ([*AE, "optimizer.lr=-1e-4"], "optimizer.lr must be 0 or more"),
    "seven and a half steps": (
        [*AE, "trainer.max_steps=7.5"],
        "trainer.max_steps must be a whole number, not",
    ),
    "a step every one and a half": (
        [*AE, "callbacks.checkpoint.every_n_steps=1.5"],
        "callbacks.checkpoint.every_n_steps must be a whole number, not 1.5",
    ),
    "steps that are null": ([*AE, "trainer.max_steps=null"], "must be a whole number, not null"),
    "a million in powers": ([*AE, "trainer.max_steps=1e6"], "not 1000000.0: write 1000000"),
    "a seed below 0": ([*AE, "seed=-1"], "seed must be 0 or more, not -1"),
    "half a seed": ([*AE, "seed=1.5"], "seed must be a whole number, not 1.5"),
    "a rate that is no number": ([*AE, "optimizer.lr=nan"], "optimizer.lr must be a finite number, not nan"),
    "a warm-up below 0": (
        [*AE, "learning_rate.warmup_steps=-5"],
        "learning_rate.warmup_steps must be 0 or more",
    ),
    "validation every 0 steps": (
        [*AE, "data.val_shards={place}/images", "trainer.val_check_interval=0"],
        "trainer.val_check_interval must be 1 or more, not 0",
    ),
    "no processes": ([*AE, "trainer.devices=0"], "trainer.devices must be auto, or 1 or more, not 0"),
    "moments beyond 1": (
        [*AE, "optimizer.betas=[2,3]"],
        "the optimizer refuses its settings (optimizer.*): ",
    ),
    "an optimizer's unknown setting": (
        [*AE, "+optimizer.foo=1"],
        "the optimizer refuses its settings (optimizer.*): Adam.__init__() got an unexpected keyword",
    ),
    "a trainer's unknown setting": (
        [*AE, "+trainer.foo=1"],
        "the trainer refuses its settings: Trainer.__init__() got an unexpected keyword argument 'foo'",
    ),
    "double precision": (
        [*AE, "trainer.precision=64"],
        "trainer.precision=64 mixes float64 with the float32",
    ),
    "no logger": (
        [*AE, "logger=null"],
        "'logger=null': logger is a config group, one of csv, tensorboard, wandb",
    ),
    "no callbacks": ([*AE, "callbacks=null"], "callbacks is a config group, one of default, post_hoc"),
    "an experiment of the other stage": (
        [*AE, "stage=latent_diffusion"],
        "experiment=debug/ae and stage=latent_diffusion do not go together: one of them sets perceptual",
    ),
    "another experiment of the other stage": (
        [*TEXT, "stage=autoencoder"],
        "experiment=debug/text and stage=autoencoder do not go together: one of them sets denoiser, which",
    ),
    "a first stage for stage 1": (
        [*AE, "first_stage=/nowhere"],
        "is what stage 2 stands on, and debug_ae trains",
    ),
    "no run": ([*AE, "run="], "run is empty: give it a folder, as in run=runs/NAME"),
    "no name": ([*AE, "name="], "name is empty: give the run a name"),
    "a logger's folder that cannot be written": (
        [*AE, "logger=tensorboard", "logger.tensorboard.folder=/proc/x"],
        "logger.tensorboard.folder=/proc/x cannot be made, /proc is not writable",
    ),
    "validation's shards that are not there": (
        [*AE, "data.val_shards=/nowhere.tar"],
        "there is no shard /nowhere.tar: fix data.val_shards",
    ),
    "a run through a file": ([*AE, "run={place}/file/x"], "leads through {place}/file, which is a file"),
    "resume a model file": (
        [*AE, f"resume={FIRST}"],
        "is a model file, without optimizer and position",
    ),
    "resume a cut file": ([*AE, "resume={place}/cut.ckpt"], "cannot be read as a checkpoint, it is cut or"),
    "resume a text": ([*AE, "resume={place}/text.ckpt"], "cannot be read as a checkpoint"),
    "resume another program's": ([*AE, "resume={place}/foreign.ckpt"], "is no checkpoint of train.py"),
    "resume another model": ([*GO_ON, WIDER], "was trained with another configuration, "),
    "resume the other stage": (
        [*TEXT, f"first_stage={FIRST}", f"resume={CKPT}"],
        "with another configuration",
    ),
    "resume with another seed": ([*GO_ON, "seed=1"], "data with seed=0, but this run has seed=1"),
    "resume with another batch": (
        [*GO_ON, "data.global_batch_size=6"],
        "global_batch=4, but this run has global_batch=6",
    ),
    "resume on other shards": ([*GO_ON, "data.shards={place}/captionless"], "data with manifest="),
    "a size that does not divide": (
        [*AE, "data.size=60"],
        "data.size=60 does not divide by the autoencoder's",
    ),
    "a size too small for the discriminator": (
        [*AE, "data.size=8"],
        "adversary cannot take images of 8x8 (8x8 pixels: the discriminator needs 12 or more): raise "
        "data.size, or choose another adversary=...",
    ),
    "images that shrink too far": (
        [*AE, "equivariance=eq_vae", "equivariance.smallest=0.1"],
        "the discriminator needs 12 or more), to which equivariance shrinks those of 64x64: raise "
        "equivariance.smallest or data.size, or choose another adversary=...",
    ),
    "no such GPU": ([*AE, "trainer=gpu"], "the trainer wants a GPU and PyTorch sees none here"),
    "an unknown precision": (
        [*AE, "trainer.precision=fp8"],
        "the trainer refuses its settings: Precision 'fp8'",
    ),
    "a decay above 1": ([*AE, "callbacks.ema.decay=2"], "the EMA's decay must lie in [0, 1), not 2"),
    "checkpoints never": (
        [*AE, "callbacks.checkpoint.keep=0"],
        "checkpoints need every_n_steps >= 1, keep >= 2",
    ),
    "an optimizer that cannot skip": ([*AE, "optimizer.fused=false"], "give optimizer.fused=true"),
    "an empty folder": ([*AE, "data.shards={place}/empty"], "there are no shards (*.tar) in {place}/empty"),
    "images for a first stage": (
        [*TEXT, "first_stage={place}/images/00000.tar"],
        "is not a safetensors file",
    ),
    "a first stage of other numbers": (
        [*TEXT, f"first_stage={FIRST}", "autoencoder.encoder.channels=16"],
        "does not fit this configuration",
    ),
    "captions that are not there": (
        ["experiment=debug/text", "data.shards={place}/captionless", f"first_stage={FIRST}"],
        "has no captions (.txt) and the model is conditioned on them",
    ),
    "latents of no first stage": ([*TEXT, "first_stage=null"], "stage 2 needs a trained first stage"),
    "W&B without an account": ([*AE, "logger=wandb"], "logger=wandb needs an account"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training(shell, place, tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    given, sentence = TRAINING[name]
    given = [word.replace("{place}", str(place)) for word in given]
    if not any(word.startswith("run=") for word in given):
        given.append(f"run={tmp_path / 'run'}")
    status, _, err = shell(train.main, *given)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert sentence.replace("{place}", str(place)) in err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("keep", [2, 5])
def test_no_space(shell, place, tmp_path, monkeypatch, keep):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    given = [*words(place, "images"), f"run={tmp_path / 'run'}", f"callbacks.checkpoint.keep={keep}"]
    status, _, err = shell(train.main, *given)
    advice = "free some, or choose another run=FOLDER" + " or callbacks.checkpoint.keep=2" * (keep == 5)
    assert status == 2 and err.endswith(f"{tmp_path} has 0.0 GB free: {advice}\n")
    assert not (tmp_path / "run").exists()


def test_a_second_job_in_a_runs_folder(shell, place, tmp_path):
    with run_lock.hold(str(tmp_path / "run")):
        status, _, err = shell(train.main, *words(place, "images"), f"run={tmp_path / 'run'}")
    assert status == 2 and f"run={tmp_path / 'run'} is in use by process" in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_sweep_in_one_process_over_several_ranks(shell, place, tmp_path):
    ranks = ["trainer.devices=2", "trainer.strategy=ddp", f"run={tmp_path}/" + "${seed}"]
    status, _, err = shell(train.main, "-m", *words(place, "images"), *ranks, "seed=1,2")
    assert (
        status == 2
        and "its 2 ranks would each start the sweep: give trainer.devices=1, or hydra/launcher" in err
    )


DRAW = [f"ckpt={FIRST}", "prompts=[a]"]
OTHERS = {
    "a first stage to sample from": (
        sample.main,
        [f"ckpt={FIRST}", "prompts=[a]"],
        "holds a model of kind 'auto",
    ),
    "no such model file": (
        sample.main,
        ["ckpt={place}/nowhere", "prompts=[a]"],
        "there is no weight file",
    ),
    "no such prompt file": (
        sample.main,
        [f"ckpt={FIRST}", "prompts={place}/nowhere.txt"],
        "there is no prompt file",
    ),
    "no prompts": (sample.main, [f"ckpt={FIRST}", "prompts=[]"], "there is no prompt in prompts=[]"),
    "a number for guidance": (
        sample.main,
        [f"ckpt={FIRST}", "prompts=[a]", "guidance=2.0"],
        "guidance is a config group, one of interval, interval_rescaled, nested, plain, rescaled, "
        "two_conditions; its strength is scale=2.0",
    ),
    "no image": (sample.main, [*DRAW, "n=0"], "n must be 1 or more, not 0"),
    "a image and a half": (sample.main, [*DRAW, "n=1.5"], "n must be a whole number, not 1.5"),
    "batches of none": (sample.main, [*DRAW, "batch_size=0"], "batch_size must be 1 or more, not 0"),
    "one side": (sample.main, [*DRAW, "size=[64]"], "size=[64] is no pair of pixels: give two whole numbers"),
    "three sides": (sample.main, [*DRAW, "size=[64,64,3]"], "size=[64, 64, 3] is no pair of pixels"),
    "half a corner": (sample.main, [*DRAW, "crop=8"], "crop=8 is no pair of pixels: give two whole numbers"),
    "a device by another name": (sample.main, [*DRAW, "device=gpu"], "device=gpu is none that PyTorch knows"),
    "scales without names": (
        sample.main,
        [*DRAW, "guidance=nested", "guidance.scales=1.5"],
        "guidance.scales=1.5 names no condition: give each its number",
    ),
    "prompts of another encoding": (
        sample.main,
        [DRAW[0], "prompts={place}/latin.txt"],
        "latin.txt is no text in UTF-8 (byte 6): save it as UTF-8",
    ),
    "images into a file": (
        sample.main,
        [*DRAW, "out={place}/file"],
        "out={place}/file leads through {place}/file, which is a file: choose another folder",
    ),
    "images where none can be written": (
        sample.main,
        [*DRAW, "out=/proc/x"],
        "out=/proc/x cannot be made, /proc is not writable",
    ),
    "latents among images": (
        encode_latents.main,
        [f"first_stage={FIRST}", "shards={place}/images", "out={place}/images", "size=64"],
        "contains shards of images: choose another out=FOLDER",
    ),
    "images that are not there": (
        pack.main,
        ["source=folder", "source.path={place}/nowhere", "out={place}/x"],
        "nowhere",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands(shell, place, name):
    main, given, sentence = OTHERS[name]
    status, _, err = shell(main, *(word.replace("{place}", str(place)) for word in given))
    sentence = sentence.replace("{place}", str(place))
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and sentence in err, err


def test_the_table_for_users_has_them_all():
    table = (Path(__file__).parents[2] / "docs" / "mistakes.md").read_text()
    assert [name for name in [*TRAINING, *OTHERS] if f"| {name} | " not in table] == []
