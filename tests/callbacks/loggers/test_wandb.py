"""W&B with its own client, offline, and with a server that is not there."""

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
    return lambda **more: WandbLogger(
        str(tmp_path), "ldm", "a run", **{"offline": True, "patience": 20.0, **more}
    )


class Fake:
    """Stands for a run of the client."""

    id = "abc"

    def __init__(self) -> None:
        self.rows, self.artifacts = [], []

    def log(self, row) -> None:
        self.rows.append(row)

    def define_metric(self, *_, **__) -> None:
        pass

    def log_artifact(self, artifact, aliases) -> None:
        self.artifacts.append((artifact.name, aliases, sorted(artifact.manifest.entries)))

    def on_export(self, exit_code) -> None:
        self.rows.append(exit_code)


def test_a_requeued_run_goes_on_under_its_id(log, tmp_path):
    for step in (1, 2):
        made = log()
        made.log_hyperparams({"optimizer": {"lr": 0.5}})
        assert made.run.config["optimizer"] == {"lr": 0.5} and made.run.settings.run_name == "a run"
        made.log_metrics({"train/loss": 1 / step}, step)
        made.finalize("success")
    identity = (tmp_path / "wandb_id").read_text().strip()
    fragments = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert fragments and set(fragments) == {f"run-{identity}.wandb"}


def test_a_sweep_names_the_run(log, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "point7")
    assert log().identity() == "point7"


def test_names_steps_and_galleries(log):
    made, run = log(), Fake()
    made.run = run
    made.log_metrics({"train/loss": 0.5}, 7)
    image = Image.new("RGB", (4, 4))
    made.log_images([("a red circle", [image] * 2), ("rows", [image]), ("rows", [image])], 8)
    made.finalize("failed")
    first, second, status = run.rows
    assert first == {"step": 7, "train/loss": 0.5} and status == 1
    assert second["step"] == 8 and [len(second[f"samples/{k}"]) for k in ("a red circle", "rows")] == [2, 2]
    assert made.run is None


@pytest.mark.parametrize("asked", [False, True])
def test_checkpoints_as_artifacts_by_option(asked, log, tmp_path):
    made, run = log(artifacts=asked), Fake()
    made.run = run
    trainer = tiny.trainer(2, [Checkpoint(str(tmp_path / "checkpoints"))])
    trainer.loggers = [made]
    trainer.limit_val_batches = 0
    trainer.fit(tiny.first_stage(), DataLoader([tiny.batch(1)] * 2, batch_size=None))
    expected = [("checkpoint-abc", ["latest", "step00000002"], ["step00000002.ckpt"])]
    assert run.artifacts == (expected if asked else [])


def test_a_client_that_breaks_is_left_alone(log):
    class Broken(Fake):
        def log(self, row) -> None:
            raise ConnectionError("gone")

    made = log()
    made.run = Broken()
    with pytest.warns(UserWarning, match="Weights & Biases failed .gone.: .*metrics.csv goes on"):
        made.log_metrics({"train/loss": 0.5}, 1)
    made.log_metrics({"train/loss": 0.5}, 2)
    made.finalize("success")


def test_a_server_that_does_not_answer_is_waited_for_and_then_done_without(log, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    made = log(offline=False, patience=5.0)
    with pytest.warns(UserWarning, match="its data stay here for `wandb sync`"):
        made.log_hyperparams({})
    made.log_metrics({"train/loss": 0.5}, 1)
    made.finalize("success")
    assert any(path.name.startswith("offline-run-") for path in (tmp_path / "wandb").iterdir())


@pytest.mark.parametrize("twice", [False, True])
def test_a_client_that_cannot_write_does_not_stop_training(log, monkeypatch, twice):
    def fails(**options):
        if twice or "mode" not in options:
            raise OSError(30, "Read-only file system")
        return Fake()

    monkeypatch.setattr(wandb, "init", fails)
    made = log(offline=False)
    with pytest.warns(UserWarning, match="Weights & Biases failed .*Read-only"):
        made.log_hyperparams({})
    assert (made.run is None) == twice
    made.log_metrics({"train/loss": 0.5}, 1)
    made.finalize("success")


def test_an_account_is_asked_for_before_training(log, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    log().check()
    with pytest.raises(UserError, match="wandb login.*logger.wandb.offline=true"):
        log(offline=False).check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    log(offline=False).check()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb login"):
        log(offline=False).check()
