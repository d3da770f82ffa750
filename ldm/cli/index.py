"""Index shards: `python -m ldm.cli.index shards=FOLDER`."""

import os
import time
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards.reader import find_shards
from ldm.data.shards.remote import temporary_cache
from ldm.errors import UserError


@command("index")
def main(cfg: DictConfig) -> None:
    """Index the offset and metadata of every sample; run again, it only indexes new shards."""
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    start = time.perf_counter()
    with temporary_cache() as cache:
        paths = find_shards(cfg.shards, cache)
        report = index_shards(paths, out, cfg.facts, cfg.sums, cfg.score, cfg.leave_out, workers, cache)
    shards_per_minute = report.shards / max(time.perf_counter() - start, 1e-9) * 60
    num_corrupt = len(report.corrupt)
    print(
        f"{report.samples:,} samples in {report.shards - num_corrupt:,} shards, {report.new:,} of them new "
        f"({shards_per_minute:,.0f} shards per minute)\n"
        f"{report.samples - report.captioned:,} samples without a caption, {report.without_image:,} without "
        "an image (left out)"
    )
    if report.without_size is not None:
        print(
            f"{report.without_size:,} samples without a width and height, which data.order.buckets leaves "
            f"out, {report.without_score or 0:,} without a score"
        )
    for problem in report.corrupt.values():
        print(cache.name_urls(problem))
    if report.corrupt and not cfg.leave_out:
        raise UserError(
            f"{num_corrupt} of {report.shards} shards are corrupt: fetch or pack them again, or set "
            "leave_out=true to train without them"
        )
    if cfg.score is not None and report.samples and report.without_score == report.samples:
        raise UserError(
            f"no json in {cfg.shards} has a number {cfg.score!r}: name the key of the score with score=KEY"
        )


if __name__ == "__main__":
    main()
