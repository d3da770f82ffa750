"""Train one stage: `python train.py experiment=NAME [key=value ...]`."""

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.training import run_lock, setup
from ldm.cli.training.preflight import Preflight


@command("train")
def main(cfg: DictConfig) -> None:
    """Train the experiment's stage; images, metrics, checkpoints and the model file are written to `run`."""
    setup.silence_lightning()
    setup.raise_open_files_limit()
    job = Preflight(cfg, "train")
    job.run()
    with run_lock.hold(cfg.run, rank_zero=job.trainer.is_global_zero):
        setup.print_summary(cfg, job.trainer, job.stage)
        job.trainer.fit(job.stage, job.data, ckpt_path=job.resume, weights_only=True)
    if job.trainer.is_global_zero:
        print(f"wrote {cfg.run}: checkpoints/, images/, metrics.csv and {setup.model_file_path(cfg).name}")


if __name__ == "__main__":
    main()
