"""Runs commands in forks of a process that has imported what they import, which saves seconds for each.

Reads one command per line, as JSON; writes the process number of the fork, and its exit status at the end.
"""

import json
import os
import runpy
import signal
import sys

import sample  # noqa: F401  the imports that the forks share
import train  # noqa: F401
from ldm.cli.training import plots  # noqa: F401
from ldm.data.prepare import verify, write_latents, write_shards  # noqa: F401
from ldm.evaluation.demo import alignment, reference  # noqa: F401


def become_command(words: list[str], environment: dict[str, str], log: str) -> None:
    """Give this process the session, output, signals and environment of a command of its own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests ignore it
    os.environ.update(environment)
    sys.argv = words[1:] if words[0] == "-m" else words


def main() -> None:
    """Fork a process for each command; the fork runs it and never returns to this loop."""
    for line in sys.stdin:
        command = json.loads(line)
        fork = os.fork()
        if fork == 0:
            become_command(**command)
            if command["words"][0] == "-m":
                runpy.run_module(command["words"][1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(command["words"][0], run_name="__main__")
            return
        print(fork, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
