"""What a user's mistakes look like on the command line: one sentence, exit status 2, nothing left behind."""

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
from ldm.errors import UserError

FILES = {
    "job.yaml": """
        defaults:
          - denoiser: large
          - _self_
          - experiment: null
        steps: 10
        flip: true
        workers: 2
        rate: 1.0e-4
        prompts: []
        shards: null
        batch: {global_size: 8}
        name: job_${steps}
        """,
    "need.yaml": "ckpt: ???\nall: ${ckpt}\n",
    "noted.yaml": "init:\n  weights: ???  # a model file, runs/NAME/sample.safetensors\n",
    "choose.yaml": "defaults:\n  - denoiser: ???\n",
    "broken.yaml": "a: ${nowhere}\n",
    "denoiser/large.yaml": "{_target_: tests.support.config_parts.Denoiser, width: 64, levels: [1, 2]}",
    "denoiser/small.yaml": "{_target_: tests.support.config_parts.Denoiser, width: 8, levels: [1]}",
    "experiment/demo/text.yaml": "# @package _global_\nsteps: 3\n",
    "experiment/ldm_f8_text.yaml": "# @package _global_\nsteps: 4\n",
    "experiment/ldm_f8_text_512.yaml": "# @package _global_\ndefaults: [{override /denoiser: smal}]\n",
    "experiment/torn.yaml": "# @package _global_\nsteps: [1\n",
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
def shell(configs, tmp_path, monkeypatch, capsys):
    """Runs `main` as a command in an empty folder; answers (exit status, stdout, stderr)."""

    def run(main, *words: str, name: str = "job") -> tuple[int, str, str]:
        (tmp_path / "cwd").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "cwd")
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        status = 0
        try:
            command(name, configs)(main)()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def show(cfg: DictConfig) -> None:
    """Prints what it was given."""
    print("ran", cfg.steps, cfg.denoiser.width, cfg.name, sys.argv)


def test_runs_without_leaving_anything_behind(shell, tmp_path):
    status, out, err = shell(show, "experiment=demo/text", "denoiser.width=5")
    assert (status, err) == (0, "")
    assert out == "ran 3 5 job_3 ['train.py', 'experiment=demo/text', 'denoiser.width=5']\n"
    assert list((tmp_path / "cwd").iterdir()) == []


def test_what_lightning_adds_to_a_rank_command(shell):
    words = ["hydra.run.dir='.'", "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    status, out, err = shell(show, "denoiser.width=5", *words)
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
            "all: ldm_f8_text, ldm_f8_text_512, torn, demo/text",
        ],
    ),
    ("experiment=ldm_f8_text_512", ["no denoiser 'smal'; nearest: small; all: large, small"]),
    ("experiment=torn", ["cannot read a config file", "torn.yaml"]),
    ("discriminator=patch", ["no config group 'discriminator'", "its groups: denoiser, experiment"]),
    ("denoiser=2.5", ["'denoiser=2.5': denoiser is a config group, choose one of large, small"]),
    ("denoser/x=patch", ["no config group 'denoser/x'"]),
    ("steps", ["'steps' is not an override: write key=value, for example steps=..."]),
    ("prompts=['a red circle", ["cannot parse the override", "quote"]),
    ("--steps=3", ["unrecognized arguments: --steps=3", "without dashes"]),
    ("steps=10k", ["steps must be a number, not '10k'", "steps=10"]),
    ("flip=no", ["flip must be true or false, not 'no'", "flip=true"]),
    ("steps=1,2", ["'steps=1,2' is a sweep", "steps=[1,2]", "-m"]),
    ("steps.a=1", ["steps.a"]),
    ("+steps=1", ["An item is already at 'steps'"]),
    ("~stairs", ["stairs"]),
    ("name=${nothing}", ["cannot resolve the config's key 'name'", "nothing"]),
]


@pytest.mark.parametrize(("word", "phrases"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence(shell, tmp_path, word, phrases):
    status, out, err = shell(show, word)
    assert status == 2, (out, err)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(phrase in err for phrase in phrases), err
    assert list((tmp_path / "cwd").iterdir()) == []


def test_what_must_be_given(shell):
    assert shell(show, name="need")[::2] == (2, "error: ckpt is required: give ckpt=...\n")
    status, _, err = shell(show, name="noted")
    assert "init.weights is required (a model file, runs/NAME/sample.safetensors): give init" in err
    assert (
        shell(show, name="choose")[2]
        == "error: denoiser is required: give denoiser=..., one of large, small\n"
    )
    assert "cannot resolve" in shell(show, name="broken")[2]
    assert "ckpt: ???" in shell(show, "--cfg", "job", name="need")[1]


def test_auto_and_lists_and_null_are_no_mistakes(shell):
    words = ["workers=auto", "rate=1", "prompts=['a red circle, left']", "shards=x.tar", "batch=null"]
    assert shell(show, *words)[0] == 0


def test_user_error_below_main(shell):
    def main(cfg: DictConfig) -> None:
        try:
            raise UserError("no shards in data/x: pack them first (python -m ldm.cli.pack ...)")
        except UserError as error:
            raise RuntimeError("wrapped") from error

    sentence = "error: no shards in data/x: pack them first (python -m ldm.cli.pack ...)\n"
    assert shell(main) == (2, "", sentence)


class Faulty(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise UserError("shard 3 is torn")


def test_user_error_in_a_loader_worker(shell):
    def main(cfg: DictConfig) -> None:
        next(iter(DataLoader(Faulty(), num_workers=1)))

    assert shell(main) == (2, "", "error: shard 3 is torn\n")


def test_numbers_refused_by_a_constructor(shell):
    def main(cfg: DictConfig) -> None:
        instantiate(cfg)

    assert shell(main, "denoiser.width=-1") == (2, "", "error: denoiser: width must be positive, got -1\n")
    assert shell(main, "denoiser.width=20000") == (2, "", "error: give a smaller denoiser.width\n")
    assert "denoiser: " in shell(main, "+denoiser.depth=1")[2]
    assert "no_such" in shell(main, "denoiser._target_=ldm.no_such.Thing")[2]


def test_a_number_out_of_range_below_main(shell):
    def main(cfg: DictConfig) -> None:
        trailing(1000, cfg.steps)

    assert shell(main, "steps=1001") == (2, "", "error: steps must lie in 1..1000, not 1001\n")


def test_a_fault_of_ours_keeps_its_trace(shell):
    def main(cfg: DictConfig) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        shell(main)

    def other(cfg: DictConfig) -> None:
        int("ours")

    with pytest.raises(ValueError, match="invalid literal"):
        shell(other)


def test_a_handled_user_error_does_not_hide_a_fault(shell):
    def main(cfg: DictConfig) -> None:
        try:
            raise UserError("handled")
        except UserError:
            raise KeyError("ours")  # noqa: B904

    with pytest.raises(KeyError):
        shell(main)


def test_ctrl_c(shell):
    def main(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    def trainer(cfg: DictConfig) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert shell(main) == (130, "", "stopped by Ctrl-C\n")
    assert shell(trainer) == (130, "", "stopped by Ctrl-C\n")


def test_multirun(shell, tmp_path):
    status, out, err = shell(show, "-m", "steps=1,2", "denoiser=large,small")
    assert (status, err) == (0, "")
    assert [line[:8] for line in out.splitlines() if line.startswith("ran")] == [
        "ran 1 64",
        "ran 1 8 ",
        "ran 2 64",
        "ran 2 8 ",
    ]
    assert "job 3: steps=2 denoiser=small" in out
    assert shell(show, "steps=1,2", "-m", "denoiser=small")[1].count("ran") == 2
    status, out, err = shell(show, "-m", "steps=1,2", "denoiser=large,smal")
    assert (status, out) == (2, "") and "no denoiser 'smal'; nearest: small;" in err


def test_help(shell):
    status, out, err = shell(show, "--help")
    assert (status, err) == (0, "")
    assert "Prints what it was given." in out
    assert "denoiser    large* small" in out
    assert "experiment  ldm_f8_text" in out
    assert "small*" in shell(show, "denoiser=small", "-h")[1]
    assert "denoiser" in shell(show, "-h", name="choose")[1]
    assert "required:\n  ckpt=...\n" in shell(show, "-h", name="need")[1]
    assert "init.weights=...  a model file, runs" in shell(show, "-h", name="noted")[1]
    assert shell(show, "denoiser=smal", "-h")[::2] == (
        2,
        "error: no denoiser 'smal'; nearest: small; all: large, small\n",
    )


def test_own_config_dir(shell, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nsteps: 7\n")
    assert shell(show, "--config-dir", str(tmp_path / "mine"), "experiment=own")[1].startswith("ran 7")


def test_compose_is_for_tests_and_tools_too(configs):
    assert compose("job", ["steps=2"], configs).steps == 2
    assert "hydra" not in compose("job", [], configs)
    assert options("denoiser", configs) == ["large", "small"]
    assert nearest("lr", ["optimizer.lr", "steps"]) == ["optimizer.lr"]
