"""W&B with its own client, offline, and with a server that does not answer."""

import pytest
import wandb
from PIL import Image
from torch.utils.data import DataLoader

from ldm.callbacks.checkpoint import Checkpoint
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.errors import UserError
from tests.support import tiny


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    return lambda **options: WandbLogger(
        str(tmp_path), "ldm", "a run", **{"offline": True, "patience": 20.0, **options}
    )


class FakeRun:
    """A stand-in for the client's run."""

    id = "abc"

    def __init__(self) -> None:
        self.rows, self.artifacts = [], []

    def log(self, row) -> None:
        self.rows.append(row)

    def define_metric(self, *_, **__) -> None:
        pass

    def log_artifact(self, artifact, aliases) -> None:
        self.artifacts.append((artifact.name, aliases, sorted(artifact.manifest.entries)))

    def finish(self, exit_code) -> None:
        self.rows.append(exit_code)


def test_a_requeued_run_keeps_its_id(log, tmp_path):
    for step in (1, 2):
        logger = log()
        logger.log_hyperparams({"optimizer": {"lr": 0.5}})
        assert logger.run.config["optimizer"] == {"lr": 0.5} and logger.run.settings.run_name == "a run"
        logger.log_metrics({"train/loss": 1 / step}, step)
        logger.finalize("success")
    run_id = (tmp_path / "wandb_id").read_text().strip()
    fragments = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert fragments and set(fragments) == {f"run-{run_id}.wandb"}


def test_a_sweep_sets_the_run_id(log, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "point7")
    assert log().run_id() == "point7"


@pytest.mark.parametrize("content", ["", "\n", "\0\0\0", "a/b\n", "two words\n", b"\xff\xfe"])
def test_an_id_that_was_not_written_completely_is_found_again(log, tmp_path, content, caplog):
    """From the folder of the latest start; without one the run never had that id at W&B."""
    file = tmp_path / "wandb_id"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    new = log().run_id()
    assert (
        len(new) == 8 and file.read_text() == f"{new}\n" and f"continuing as a new run, {new}" in caplog.text
    )
    for name in ("run-20260101_120000-first", "offline-run-20260202_120000-my-run", "run-2-x", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert log().run_id() == "my-run" == file.read_text().strip() and "continuing as my-run" in caplog.text
    file.unlink()
    assert log().run_id() not in ("my-run", "first"), "a removed id starts a new run"
    file.write_text("chosen by the user\n".replace(" ", "_"))
    assert log().run_id() == "chosen_by_the_user"


def test_a_run_that_ctrl_c_ended_is_shown_as_killed(log):
    logger, run = log(), FakeRun()
    logger.run = run
    logger.mark_interrupted()
    logger.finalize("failed")
    assert run.rows == [255], "W&B's own status after Ctrl-C"


def test_metric_names_steps_and_galleries(log):
    logger, run = log(), FakeRun()
    logger.run = run
    logger.log_metrics({"train/loss": 0.5}, 7)
    image = Image.new("RGB", (4, 4))
    logger.log_images([("a red circle", [image] * 2), ("rows", [image]), ("rows", [image])], 8)
    logger.finalize("failed")
    first, second, status = run.rows
    assert first == {"step": 7, "train/loss": 0.5} and status == 1
    assert second["step"] == 8 and [len(second[f"samples/{k}"]) for k in ("a red circle", "rows")] == [2, 2]
    assert logger.run is None


@pytest.mark.parametrize("artifacts", [False, True])
def test_checkpoints_are_artifacts_by_option(artifacts, log, tmp_path):
    logger, run = log(artifacts=artifacts), FakeRun()
    logger.run = run
    trainer = tiny.trainer(2, [Checkpoint(str(tmp_path / "checkpoints"))])
    trainer.loggers = [logger]
    trainer.limit_val_batches = 0
    trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(1)] * 2, batch_size=None))
    expected = [("checkpoint-abc", ["latest", "step00000002"], ["step00000002.ckpt"])]
    assert run.artifacts == (expected if artifacts else [])


def test_after_a_failure_the_client_is_not_used_again(log):
    class Broken(FakeRun):
        def log(self, row) -> None:
            raise ConnectionError("gone")

    logger = log()
    logger.run = Broken()
    with pytest.warns(UserWarning, match="Weights & Biases failed .gone.: .*metrics.csv"):
        logger.log_metrics({"train/loss": 0.5}, 1)
    logger.log_metrics({"train/loss": 0.5}, 2)
    logger.finalize("success")


def test_after_waiting_for_a_server_the_run_is_offline(log, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    logger = log(offline=False, patience=5.0)
    with pytest.warns(UserWarning, match="kept in the run's folder for `wandb sync`"):
        logger.log_hyperparams({})
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.finalize("success")
    assert any(path.name.startswith("offline-run-") for path in (tmp_path / "wandb").iterdir())


@pytest.mark.parametrize("twice", [False, True])
def test_a_client_that_cannot_write_does_not_stop_training(log, monkeypatch, twice):
    def fails(**options):
        if twice or "mode" not in options:
            raise OSError(30, "Read-only file system")
        return FakeRun()

    monkeypatch.setattr(wandb, "init", fails)
    logger = log(offline=False)
    with pytest.warns(UserWarning, match="Weights & Biases failed .*Read-only"):
        logger.log_hyperparams({})
    assert (logger.run is None) == twice
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.finalize("success")


def test_a_missing_account_is_reported_before_training(log, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    log().check()
    with pytest.raises(UserError, match="wandb login.*logger.wandb.offline=true"):
        log(offline=False).check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    log(offline=False).check()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb login"):
        log(offline=False).check()
