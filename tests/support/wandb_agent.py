"""`wandb agent` with a fake server: `python -m tests.support.wandb_agent SWEEP.yaml [override ...]`.

The client's own code reads the sweep's command, fills it in and starts each run of the grid with it.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import wandb
import yaml
from wandb.apis.public import sweeps
from wandb.cli.cli import cli


def build_answers(sweep: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the server's answers to the heartbeats: one point of the grid after the other."""
    keys = list(sweep["parameters"])
    points = itertools.product(*(sweep["parameters"][key]["values"] for key in keys))
    return [
        [
            {
                "type": "run",
                "run_id": f"point{i}",
                "program": sweep["program"],
                "args": {key: {"value": value} for key, value in zip(keys, point, strict=True)},
            }
        ]
        for i, point in enumerate(points)
    ]


def main() -> None:
    """Run the agent on the whole grid, two runs at a time, without network access."""
    sweep = yaml.safe_load(Path(sys.argv[1]).read_text())
    at = sweep["command"].index("${args_no_hyphens}")
    sweep["command"][at:at] = sys.argv[2:]
    pending = build_answers(sweep)
    count = str(len(pending))

    def heartbeat(api: object, agent: str, metrics: object, running: dict) -> list[dict[str, Any]]:
        return pending.pop(0) if pending and len(running) < 2 else []

    sweeps._sweep_with_runs = lambda *_, **__: {"config": yaml.safe_dump(sweep)}
    sweeps._register_agent = lambda *_, **__: {"id": "agent"}
    sweeps._agent_heartbeat = heartbeat
    wandb.Api = lambda *_, **__: None
    os.environ |= {"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}
    os.environ |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    cli(["agent", "--count", count, "me/ldm/sweep"])


if __name__ == "__main__":
    main()
