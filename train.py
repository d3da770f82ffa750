"""Train one stage: `python train.py experiment=NAME [key=value ...]`."""

import lightning
from omegaconf import DictConfig

from ldm.cli import checks, lock, training
from ldm.cli.build import build
from ldm.cli.entry import command


@command("train")
def main(cfg: DictConfig) -> None:
    """Train the experiment's stage; its pictures, metrics, checkpoints and sampling file go to `run`."""
    checks.settings(cfg)
    resume = training.checkpoint(cfg)
    training.quieten()
    training.open_files()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    trainer, data = training.trainer(cfg), build(cfg.data)
    data.trainer = trainer  # the check below asks it how many processes share a batch
    checks.shards(data)
    stage = build(cfg.stage)
    stage.load_pretrained()
    training.match(stage, data, cfg)
    checks.resumable(resume, stage)
    with lock.held(cfg.run, mine=trainer.is_global_zero):
        training.announce(cfg, trainer, stage)
        trainer.fit(stage, data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        print(f"wrote {cfg.run}: checkpoints/, pictures/, metrics.csv and {training.sampling_file(cfg).name}")


if __name__ == "__main__":
    main()
