"""Pack captioned pictures: `python -m ldm.cli.pack source=folder source.path=PICTURES out=FOLDER`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.build import build
from ldm.cli.entry import command
from ldm.data.shards import write_shards
from ldm.errors import UserError


@command("pack")
def main(cfg: DictConfig) -> None:
    """Pack captioned pictures into tar shards; run again, it goes on where it stopped."""
    source, out = build(cfg.source), Path(cfg.out)
    print(f"packing {len(source):,} pictures into {out}, {cfg.shard_size:,} a shard", flush=True)
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    report = write_shards(source, out, cfg.shard_size, cfg.format, cfg.size, workers, cfg.channels)
    print(f"{report}\nthe report is in {out / 'report.json'}")
    if not report.packed:
        raise UserError(f"nothing was packed into {out}: mend pictures or captions as the report says")
    print(f"train on these pictures with data.shards={out}")


if __name__ == "__main__":
    main()
