"""Checked with TensorBoard's own reader."""

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.callbacks.loggers.tensorboard import TensorBoardLogger
from tests.support.disks import fill, small_disk


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_metrics_images_and_config(tmp_path):
    log = TensorBoardLogger(str(tmp_path))
    log.log_hyperparams({"optimizer": {"lr": 0.5}})
    log.log_metrics({"train/loss": 0.5}, 7)
    log.log_images([("a red circle", [Image.new("RGB", (4, 6))] * 2)], 7)
    log.log_metrics({"train/loss": 0.25}, 8)
    log.finalize("success")
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(7, 0.5), (8, 0.25)]
    (panel,) = events.Images("samples/a red circle")
    assert (panel.step, panel.width, panel.height) == (7, 8, 6)
    assert b"lr: 0.5" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_replaces_the_points_it_repeats(tmp_path):
    for begin, value in ((1, 1.0), (3, 9.0)):
        log = TensorBoardLogger(str(tmp_path))
        for step in range(begin, 5):
            log.log_metrics({"loss": value}, step)
        log.finalize("failed")
    points = [(e.step, e.value) for e in read(tmp_path).Scalars("loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]


def test_without_rows_nothing_is_written(tmp_path):
    log = TensorBoardLogger(str(tmp_path / "run"))
    log.log_hyperparams({"lr": 1})
    log.finalize("success")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_reported_once_and_later_rows_are_written(tmp_path, caplog, capfd):
    with small_disk(tmp_path / "disk", 256) as disk:
        log = TensorBoardLogger(str(disk / "tensorboard"))
        log.log_metrics({"loss": 1.0}, 1)
        log.writer.flush()
        filler = fill(disk)
        for step in range(2, 60):
            log.log_metrics({f"loss{i}": float(step) for i in range(9)}, step)
            if log.writer is not None:
                try:
                    log.writer.flush()
                except OSError:
                    pass  # as the writer's own thread finds after two minutes
        assert caplog.text.count("tensorboard cannot be written") == 1
        filler.unlink()
        for step in (60, 61):
            log.log_metrics({"loss": float(step)}, step)
        log.finalize("success")
        points = {e.step: e.value for e in read(disk / "tensorboard").Scalars("loss")}
        assert points[1] == 1 and points[61] == 61
    assert "Traceback" not in capfd.readouterr().err
