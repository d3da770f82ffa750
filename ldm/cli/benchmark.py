"""Run a benchmark: `python -m ldm.cli.benchmark data`."""

import sys

from omegaconf import DictConfig

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure one part of the framework on this machine, and alternatives to it."""
    for line in instantiate(cfg.benchmark).run():
        print(line, flush=True)


def run_named_benchmark() -> None:
    """Run `main`; a plain word on the command line names the benchmark."""
    sys.argv[1:] = [w if "=" in w or w.startswith("-") else f"benchmark={w}" for w in sys.argv[1:]]
    main()


if __name__ == "__main__":
    run_named_benchmark()
