"""Benchmarks: `python -m ldm.cli.benchmark data`."""

import sys

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure one part of the framework on this machine, beside what it is compared with."""
    for line in instantiate(cfg.benchmark).run():
        print(line, flush=True)


def program() -> None:
    """`main` with the benchmark's name as a plain word."""
    sys.argv[1:] = [w if "=" in w or w.startswith("-") else f"benchmark={w}" for w in sys.argv[1:]]
    main()


if __name__ == "__main__":
    program()
