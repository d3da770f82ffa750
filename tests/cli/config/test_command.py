"""Commands and the mistakes of their users: one error line, exit status 2, no files left behind."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset

from ldm.cli.config.command import command
from ldm.cli.config.compose import compose, options
from ldm.cli.config.instantiate import instantiate
from ldm.cli.config.messages import nearest
from ldm.diffusion.times import trailing
from ldm.errors import Diverged, UserError
from tests.support.command_line import check_error, run_command

FILES = {
    "job.yaml": """
        defaults:
          - denoiser: large
          - _self_
          - experiment: null
        steps: 10
        flip: true
        workers: 2
        lr: 1.0e-4
        prompts: []
        shards: null
        batch: {global_size: 8}
        name: job_${steps}
        """,
    "required.yaml": "ckpt: ???\nall: ${ckpt}\n",
    "commented.yaml": "init:\n  weights: ???  # a model file, runs/NAME/sample.safetensors\n",
    "required_group.yaml": "defaults:\n  - denoiser: ???\n",
    "unresolvable.yaml": "a: ${nowhere}\n",
    "denoiser/large.yaml": "{_target_: tests.support.config_parts.Denoiser, width: 64, levels: [1, 2]}",
    "denoiser/small.yaml": "{_target_: tests.support.config_parts.Denoiser, width: 8, levels: [1]}",
    "experiment/demo/text.yaml": "# @package _global_\nsteps: 3\n",
    "experiment/ldm_f8_text.yaml": "# @package _global_\nsteps: 4\n",
    "experiment/ldm_f8_text_512.yaml": "# @package _global_\ndefaults: [{override /denoiser: smal}]\n",
    "experiment/corrupt.yaml": "# @package _global_\nsteps: [1\n",
    "discriminator/patch.yaml": "{layers: 3}",
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "configs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        file.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return tmp_path / "configs"


@pytest.fixture
def run(configs, tmp_path, monkeypatch):
    """Return a function that runs `main` as a command in an empty folder: exit status, stdout, stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(main, *words: str, name: str = "job") -> tuple[int, str, str]:
        return run_command(command(name, configs)(main), *words)

    return run


def show(cfg: DictConfig) -> None:
    """Print the values that the command received."""
    print("ran", cfg.steps, cfg.denoiser.width, cfg.name, sys.argv)


def test_a_command_leaves_no_files_behind(run, tmp_path):
    status, out, err = run(show, "experiment=demo/text", "denoiser.width=5")
    assert (status, err) == (0, "")
    assert out == "ran 3 5 job_3 ['train.py', 'experiment=demo/text', 'denoiser.width=5']\n"
    assert list((tmp_path / "cwd").iterdir()) == []


def test_the_overrides_that_lightning_adds_to_a_rank_are_accepted(run):
    overrides = ["hydra.run.dir='.'", "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    status, out, err = run(show, "denoiser.width=5", *overrides)
    assert (status, err) == (0, "") and out.startswith("ran 10 5")


MISTAKES = [
    ("stesp=3", ["no key 'stesp'", "nearest: steps"]),
    ("width=3", ["no key 'width'", "nearest: denoiser.width"]),
    ("denoiser.widht=3", ["no key 'denoiser.widht'", "nearest: denoiser.width;"]),
    ("denoiser.zzz=3", ["keys of denoiser: _target_, width, levels;"]),
    ("batch.size.of=3", ["no key 'batch.size.of'"]),
    ("experimnt=demo/text", ["no key 'experimnt'", "nearest: experiment"]),
    (
        "experiment=ldm_f8_txt",
        [
            "no experiment 'ldm_f8_txt'; nearest: ldm_f8_text,",
            "all: corrupt, ldm_f8_text, ldm_f8_text_512, demo/text",
        ],
    ),
    ("experiment=ldm_f8_text_512", ["no denoiser 'smal'; nearest: small; all: large, small"]),
    ("experiment=corrupt", ["cannot read a config file", "corrupt.yaml"]),
    ("discriminator=patch", ["no config group 'discriminator'", "its groups: denoiser, experiment"]),
    ("denoiser=2.5", ["'denoiser=2.5'", "config group", "large, small"]),
    ("denoser/x=patch", ["no config group 'denoser/x'"]),
    ("steps", ["'steps'", "key=value", "steps=..."]),
    ("prompts=['a red circle", ["cannot parse the override", "prompts=['a red circle", "quote"]),
    ("--steps=3", ["--steps=3", "without dashes"]),
    ("steps=10k", ["steps must be a number", "'10k'", "steps=10"]),
    ("flip=no", ["flip must be true or false", "'no'", "flip=true"]),
    ("steps=1,2", ["'steps=1,2'", "steps=[1,2]", "-m"]),
    ("steps.a=1", ["steps.a"]),
    ("+steps=1", ["'steps'", "already"]),
    ("~stairs", ["stairs"]),
    ("name=${nothing}", ["cannot resolve", "'name'", "nothing"]),
]


@pytest.mark.parametrize(("override", "phrases"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_ends_with_one_error_line(run, tmp_path, override, phrases):
    status, out, err = run(show, override)
    check_error(status, err, phrases)
    assert out == "" and err.count("\n") == 1, err
    assert list((tmp_path / "cwd").iterdir()) == []


def test_required_keys(run):
    assert run(show, name="required")[::2] == (2, "error: ckpt is required: give ckpt=...\n")
    status, _, err = run(show, name="commented")
    check_error(
        status,
        err,
        ["init.weights is required (a model file, runs/NAME/sample.safetensors)", "init.weights=..."],
    )
    status, _, err = run(show, name="required_group")
    assert (status, err) == (2, "error: denoiser is required: give denoiser=..., one of large, small\n")
    assert "cannot resolve" in run(show, name="unresolvable")[2]
    assert "ckpt: ???" in run(show, "--cfg", "job", name="required")[1]


def test_auto_lists_and_null_are_valid(run):
    overrides = ["workers=auto", "lr=1", "prompts=['a red circle, left']", "shards=x.tar", "batch=null"]
    assert run(show, *overrides)[0] == 0


def test_a_user_error_as_the_cause_of_another_error(run):
    def main(cfg: DictConfig) -> None:
        try:
            raise UserError("no shards in data/x: pack them first (python -m ldm.cli.pack ...)")
        except UserError as error:
            raise RuntimeError("wrapped") from error

    message = "error: no shards in data/x: pack them first (python -m ldm.cli.pack ...)\n"
    assert run(main) == (2, "", message)


class CorruptShard(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise UserError("shard 3 is corrupt")


def test_a_user_error_in_a_data_worker(run):
    def main(cfg: DictConfig) -> None:
        next(iter(DataLoader(CorruptShard(), num_workers=1)))

    assert run(main) == (2, "", "error: shard 3 is corrupt\n")
    for worker in multiprocessing.active_children():  # or the garbage collector waits 5 s for it
        worker.terminate()


def test_a_value_error_of_a_constructor_names_the_key(run):
    def main(cfg: DictConfig) -> None:
        instantiate(cfg)

    assert run(main, "denoiser.width=-1") == (2, "", "error: denoiser: width must be positive, got -1\n")
    assert run(main, "denoiser.width=20000") == (2, "", "error: give a smaller denoiser.width\n")
    assert "denoiser: " in run(main, "+denoiser.depth=1")[2]
    assert "no_such" in run(main, "denoiser._target_=ldm.no_such.Thing")[2]


def test_a_value_error_of_a_number_in_the_config(run):
    def main(cfg: DictConfig) -> None:
        trailing(1000, cfg.steps)

    status, out, err = run(main, "steps=1001")
    check_error(status, err, ["steps ", "1..1000", "1001"])
    assert out == "" and err.count("\n") == 1


def test_a_bug_keeps_its_traceback(run):
    def main(cfg: DictConfig) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run(main)

    def value_error(cfg: DictConfig) -> None:
        int("bug")

    with pytest.raises(ValueError, match="invalid literal"):
        run(value_error)


def test_a_handled_user_error_does_not_hide_a_bug(run):
    def main(cfg: DictConfig) -> None:
        try:
            raise UserError("handled")
        except UserError:
            raise KeyError("bug")  # noqa: B904

    with pytest.raises(KeyError):
        run(main)


def test_training_that_diverged_has_its_own_status(run):
    def main(cfg: DictConfig) -> None:
        raise Diverged("9 of 9 steps were skipped")

    assert run(main) == (3, "", "error: 9 of 9 steps were skipped\n")


def test_ctrl_c(run):
    def main(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    def trainer(cfg: DictConfig) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run(main) == (130, "", "stopped by Ctrl-C\n")
    assert run(trainer) == (130, "", "stopped by Ctrl-C\n")


def test_multirun(run, tmp_path):
    status, out, err = run(show, "-m", "steps=1,2", "denoiser=large,small")
    assert (status, err) == (0, "")
    assert [line[:8] for line in out.splitlines() if line.startswith("ran")] == [
        "ran 1 64",
        "ran 1 8 ",
        "ran 2 64",
        "ran 2 8 ",
    ]
    assert "job 3: steps=2 denoiser=small" in out
    assert run(show, "steps=1,2", "-m", "denoiser=small")[1].count("ran") == 2
    status, out, err = run(show, "-m", "steps=1,2", "denoiser=large,smal")
    assert (status, out) == (2, "") and "no denoiser 'smal'; nearest: small;" in err


def test_help(run):
    status, out, err = run(show, "--help")
    assert (status, err) == (0, "")
    assert "Print the values that the command received." in out
    assert "denoiser    large* small" in out
    assert "experiment  corrupt ldm_f8_text" in out
    assert "small*" in run(show, "denoiser=small", "-h")[1]
    assert "denoiser" in run(show, "-h", name="required_group")[1]
    assert "required:\n  ckpt=...\n" in run(show, "-h", name="required")[1]
    assert "init.weights=...  a model file, runs" in run(show, "-h", name="commented")[1]
    assert run(show, "denoiser=smal", "-h")[::2] == (
        2,
        "error: no denoiser 'smal'; nearest: small; all: large, small\n",
    )


def test_config_dir_adds_configs(run, tmp_path):
    (tmp_path / "my_configs" / "experiment").mkdir(parents=True)
    (tmp_path / "my_configs" / "experiment" / "mine.yaml").write_text("# @package _global_\nsteps: 7\n")
    assert run(show, "--config-dir", str(tmp_path / "my_configs"), "experiment=mine")[1].startswith("ran 7")


def test_compose_options_and_nearest(configs):
    assert compose("job", ["steps=2"], configs).steps == 2
    assert "hydra" not in compose("job", [], configs)
    assert options("denoiser", configs) == ["large", "small"]
    assert nearest("lr", ["optimizer.lr", "steps"]) == ["optimizer.lr"]
