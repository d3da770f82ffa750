"""Train one stage: `python train.py experiment=NAME [key=value ...]`."""

import lightning
from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import preflight, run_lock, setup


@command("train")
def main(cfg: DictConfig) -> None:
    """Train the experiment's stage; its images, metrics, checkpoints and model file go to `run`."""
    preflight.settings(cfg)
    resume = setup.checkpoint(cfg)
    setup.silence_lightning()
    setup.raise_open_files_limit()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    trainer, data = setup.trainer(cfg), instantiate(cfg.data)
    data.trainer = trainer  # the check below asks it how many processes share a batch
    preflight.shards(data)
    stage = instantiate(cfg.stage)
    stage.load_pretrained()
    setup.check_stage_and_data(stage, data, cfg)
    preflight.resumable(resume, stage)
    with run_lock.hold(cfg.run, mine=trainer.is_global_zero):
        setup.print_summary(cfg, trainer, stage)
        trainer.fit(stage, data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        print(f"wrote {cfg.run}: checkpoints/, images/, metrics.csv and {setup.model_file_path(cfg).name}")


if __name__ == "__main__":
    main()
