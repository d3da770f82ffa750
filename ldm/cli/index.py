"""Index shards: `python -m ldm.cli.index shards=FOLDER`."""

import os
import time
from pathlib import Path

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards.reader import find_shards
from ldm.errors import UserError


@command("index")
def main(cfg: DictConfig) -> None:
    """Note where each sample lies in its shard and what is known of it; run again, it does what is new."""
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    workers = os.cpu_count() or 1 if cfg.workers is None else cfg.workers
    began = time.perf_counter()
    made = index_shards(find_shards(cfg.shards), out, cfg.facts, cfg.sums, cfg.score, cfg.leave_out, workers)
    rate = made.shards / max(time.perf_counter() - began, 1e-9) * 60
    without = made.samples - made.captioned
    print(
        f"{made.samples:,} samples in {made.shards - len(made.damaged):,} shards, {made.new:,} of them new "
        f"({rate:,.0f} shards a minute)\n{without:,} samples without a caption, {made.halves:,} without a "
        "image, which are left out"
    )
    for problem in made.damaged.values():
        print(problem)
    if made.damaged and not cfg.leave_out:
        raise UserError(
            f"{len(made.damaged)} of {made.shards} shards are damaged: fetch or pack them again, or train "
            "without them by leave_out=true"
        )


if __name__ == "__main__":
    main()
