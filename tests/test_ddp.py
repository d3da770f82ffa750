"""Several ranks train as one process does: the same numbers, and they end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.callbacks.preemption import REQUEUE
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support import ranks, tiny

STEPS = 30
EXACT = [
    "trainer.precision=64-true",
    f"trainer.max_steps={STEPS}",
    "callbacks.ema=null",  # fp32 by design
    "callbacks.images=null",
    "callbacks.checkpoint.every_n_steps=1000",
    "+callbacks.poison={_target_: tests.support.ranks.Poison, step: 7}",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A shard of twelve synthetic scenes."""
    folder = tmp_path_factory.mktemp("images")
    write_shards(DemoScenes("train", 12), folder)
    return folder


def use_double() -> None:
    """Let the stages compute in float64 where they would convert to fp32."""
    torch.Tensor.float = torch.Tensor.double


def train_both_stages(images: Path, folder: Path, first: Path) -> None:
    """Train stage 1, and stage 2 on a model file of stage 1, which is in fp32."""
    shards = f"data.shards={images}"
    for name, overrides in (("ae", []), ("text", [f"first_stage={first}"])):
        sys.argv = [
            "train.py",
            f"experiment=debug/{name}",
            shards,
            f"run={folder / name}",
            *EXACT,
            *overrides,
        ]
        train.main()


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"step{STEPS:08d}.ckpt", weights_only=True)["state_dict"]


def compare(single: Path, multiple: Path) -> None:
    """Compare weights within 1e-9 after `STEPS` steps, one of them skipped by all ranks."""
    for name in ("ae", "text"):
        ours, theirs = final_weights(single / name), final_weights(multiple / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value.isfinite().all(), key
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}")
        losses = [
            tiny.read_column(folder / name / "metrics.csv", "train/loss") for folder in (single, multiple)
        ]
        assert losses[0].keys() == losses[1].keys() == set(range(1, STEPS + 1))
        skipped = [
            tiny.read_column(f / name / "metrics.csv", "train/skipped_steps") for f in (single, multiple)
        ]
        assert skipped[0] == skipped[1] and skipped[0][7] == 0 and skipped[0][8] == skipped[0][STEPS] == 1


def check(world: int, images: Path, folder: Path, monkeypatch) -> None:
    """Compare `world` ranks under torchrun with this process."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(sys, "argv", [])
    first = folder / "single" / "ae" / "autoencoder.safetensors"
    train_both_stages(images, folder / "single", first)
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
    done = subprocess.run(
        [sys.executable, *words, str(images), str(folder / "multiple"), str(first)],
        cwd=ranks.ROOT,
        env={**os.environ, "PYTHONPATH": str(ranks.ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" 4 over {world} process(es)" in done.stdout and done.stdout.count("wrote") == 2
    compare(folder / "single", folder / "multiple")


@pytest.mark.multiprocess
def test_two_ranks_equal_one_process(images, tmp_path, monkeypatch):
    check(2, images, tmp_path, monkeypatch)


@pytest.mark.slow
def test_four_ranks_equal_one_process(images, tmp_path, monkeypatch):
    check(4, images, tmp_path, monkeypatch)


def train_here(monkeypatch, *words: str) -> None:
    """Train in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    train.main()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_and_sigkill_to_one_rank(images, tmp_path, monkeypatch):
    """SIGTERM to one rank and its loader: all save and exit for requeueing. SIGKILL to one rank: all end."""
    run, straight = tmp_path / "run", tmp_path / "straight"
    words = ["experiment=debug/ae", f"data.shards={images}", "callbacks.checkpoint.every_n_steps=5"]
    words += [
        "optimizer.lr=1e-5"
    ]  # Adam amplifies rounding differences between two ranks in gradients near 0
    slow = ["+callbacks.slow={_target_: tests.support.ranks.Slow, seconds: 0.05}", "data.num_workers=1"]
    endless = [*words, *slow, f"run={run}", "trainer.max_steps=100000", "resume=auto"]

    both = ranks.srun(2, *endless)
    ranks.wait_until(both, ranks.has_logged(run, 7))
    start = time.monotonic()
    os.killpg(both[1].pid, signal.SIGTERM)
    assert ranks.wait_for_exit(both, 60) == [REQUEUE, 0], "only rank 0 exits with the status, and last"
    assert time.monotonic() - start < 30, "takes a few seconds on an idle machine"
    saved = int(newest_checkpoint(run / "checkpoints").stem.removeprefix("step"))
    assert saved == max(tiny.read_column(run / "metrics.csv", "train/loss"))
    assert f"asked to stop: saved step {saved}, exit status {REQUEUE}" in both[0].communicate()[0]

    both = ranks.srun(2, *endless)
    ranks.wait_until(both, ranks.has_logged(run, saved + 7))
    start = time.monotonic()
    both[1].kill()
    statuses = ranks.wait_for_exit(both, 60)
    assert statuses[0] not in (0, REQUEUE) and statuses[1] == -signal.SIGKILL
    assert time.monotonic() - start < 30

    step = int(newest_checkpoint(run / "checkpoints").stem.removeprefix("step"))
    last = f"trainer.max_steps={step + 3}"
    train_here(monkeypatch, *words, f"run={run}", last, "resume=auto")
    train_here(monkeypatch, *words, f"run={straight}", last)
    losses = [tiny.read_column(folder / "metrics.csv", "train/loss") for folder in (straight, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and max(losses[0]) == step + 3


@pytest.mark.slow
def test_four_ranks_resume_with_the_same_bits(images, tmp_path):
    """DDP's buckets, and so the order of sums, are the same in a resumed run."""
    words = ["experiment=debug/ae", f"data.shards={images}", "trainer.max_steps=16"]
    slow = "+callbacks.slow={_target_: tests.support.ranks.Slow, seconds: 0.2}"
    assert set(ranks.wait_for_exit(ranks.srun(4, *words, f"run={tmp_path / 'straight'}"), 400)) == {0}
    four = ranks.srun(4, *words, slow, f"run={tmp_path / 'run'}")
    ranks.wait_until(four, ranks.has_logged(tmp_path / "run", 6))
    os.killpg(four[2].pid, signal.SIGUSR1)
    assert ranks.wait_for_exit(four, 120) == [REQUEUE, 0, 0, 0]
    assert set(ranks.wait_for_exit(ranks.srun(4, *words, f"run={tmp_path / 'run'}", "resume=auto"), 400)) == {
        0
    }
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "step00000016.ckpt", weights_only=True)["state_dict"]
        for name in ("straight", "run")
    )
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


if __name__ == "__main__":
    use_double()
    train_both_stages(*map(Path, sys.argv[1:]))
