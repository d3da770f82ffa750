"""Verify shards: `python -m ldm.cli.verify shards=FOLDER`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.data.prepare.verify import WRONG, verify, write_report
from ldm.data.shards.reader import find_shards
from ldm.errors import UserError

SHOWN = 5


@command("verify")
def main(cfg: DictConfig) -> None:
    """Read every byte of a data set, decode every image, and say by shard what is wrong."""
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    checked = verify(find_shards(cfg.shards), None if cfg.index is None else Path(cfg.index), workers)
    print(f"{checked.samples:,} samples in {checked.shards:,} shards, {checked.bytes / 1e9:,.1f} GB")
    for kind, names in sorted(checked.found.items(), key=lambda item: item[0] not in WRONG):
        more = f"\n    and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        print(f"{len(names):,} {kind}:\n    " + "\n    ".join(names[:SHOWN]) + more)
    if cfg.out is not None:
        write_report(checked, Path(cfg.out))
    if checked.wrong:
        raise UserError(
            f"{checked.wrong:,} things are wrong with {cfg.shards}: fetch or pack those shards again, or "
            "leave damaged ones out with `python -m ldm.cli.index leave_out=true`"
        )
    print("nothing is wrong")


if __name__ == "__main__":
    main()
