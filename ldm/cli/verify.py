"""Verify shards: `python -m ldm.cli.verify shards=FOLDER`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.data.prepare.verify import ERRORS, verify, write_report
from ldm.data.shards.reader import find_shards
from ldm.data.shards.remote import temporary_cache
from ldm.errors import UserError

LOCATIONS_SHOWN = 5


@command("verify")
def main(cfg: DictConfig) -> None:
    """Read every byte of a data set, decode every image, and report the problems of each shard."""
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    index = None if cfg.index is None else Path(cfg.index)
    with temporary_cache() as cache:
        report = verify(find_shards(cfg.shards, cache), index, workers, cache)
    for kind, locations in report.findings.items():
        report.findings[kind] = [cache.name_urls(location) for location in locations]
    print(f"{report.samples:,} samples in {report.shards:,} shards, {report.bytes / 1e9:,.1f} GB")
    for kind, locations in sorted(report.findings.items(), key=lambda item: item[0] not in ERRORS):
        hidden = len(locations) - LOCATIONS_SHOWN
        more = f"\n    and {hidden:,} more" if hidden > 0 else ""
        print(f"{len(locations):,} {kind}:\n    " + "\n    ".join(locations[:LOCATIONS_SHOWN]) + more)
    if cfg.out is not None:
        write_report(report, Path(cfg.out))
    if report.num_errors:
        raise UserError(
            f"{report.num_errors:,} errors in {cfg.shards}: fetch or pack these shards again, or leave "
            "corrupt ones out with `python -m ldm.cli.index leave_out=true`"
        )
    print("no errors")


if __name__ == "__main__":
    main()
