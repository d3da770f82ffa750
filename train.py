"""Train one stage: `python train.py experiment=NAME [key=value ...]`."""

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.training import run_lock, setup
from ldm.cli.training.preflight import Preflight


@command("train")
def main(cfg: DictConfig) -> None:
    """Train the stage of an experiment; write images, metrics, checkpoints and the model file to `run`."""
    setup.silence_lightning()
    setup.raise_open_files_limit()
    preflight = Preflight(cfg, "train")
    preflight.run()
    trainer, stage = preflight.trainer, preflight.stage
    with run_lock.hold(cfg.run, rank_zero=trainer.is_global_zero):
        setup.print_summary(cfg, trainer, stage)
        setup.record_settings(cfg, trainer, preflight.changes)
        trainer.fit(stage, preflight.data, ckpt_path=preflight.resume, weights_only=True)
    if trainer.is_global_zero:
        print(f"wrote {cfg.run}: checkpoints/, images/, metrics.csv and {setup.model_file_path(cfg).name}")


if __name__ == "__main__":
    main()
