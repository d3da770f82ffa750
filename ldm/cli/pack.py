"""Pack captioned images: `python -m ldm.cli.pack source=folder source.path=IMAGES out=FOLDER`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.data.prepare.write_shards import write_shards
from ldm.errors import UserError


@command("pack")
def main(cfg: DictConfig) -> None:
    """Pack captioned images into tar shards; the same command continues a run and packs changes."""
    source, out = instantiate(cfg.source), Path(cfg.out)
    print(f"packing {len(source):,} images into {out}, {cfg.shard_size:,} per shard", flush=True)
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    images = (cfg.format, cfg.size, workers, cfg.channels, cfg.background)
    report = write_shards(source, out, cfg.shard_size, *images)
    print(f"{report}\nthe report is in {out / 'report.json'}")
    if not report.packed:
        raise UserError(
            f"nothing was packed into {out}: fix the images or captions listed in its report.json"
        )
    print(f"train on these images with data.shards={out}")


if __name__ == "__main__":
    main()
