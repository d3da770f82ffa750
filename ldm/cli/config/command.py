"""The `command` decorator: run a function of a config from the shell, report a user's mistake in one line."""

import argparse
import functools
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from ldm.cli.config import compose, process
from ldm.cli.config.hydra_private import get_args_parser
from ldm.cli.config.overrides import quote
from ldm.errors import Diverged, InvalidValue, UserError

QUIET = {
    "hydra.run.dir": ".",
    "hydra.sweep.dir": "runs/multirun",
    "hydra.sweep.subdir": ".",
    "hydra.output_subdir": "null",
    "hydra.job.chdir": "false",
    "hydra/job_logging": "none",
    "hydra/hydra_logging": "none",
}
"""No folder with a time stamp, no log file, no change of the working directory."""

Main = Callable[[DictConfig], None]


def command(config_name: str, configs: Path = compose.CONFIGS) -> Callable[[Main], Callable[[], None]]:
    """Make `main(cfg)` a command that reads `configs/<config_name>.yaml` and overrides from sys.argv.

    `user_errors` says how it ends. Config groups that `configs` lacks come from configs/.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra swallows the exception and exits with 1
            with user_errors():
                _run(main, config_name, configs)

        return run

    return decorate


@contextmanager
def user_errors() -> Iterator[None]:
    """End the process as a Unix program: one line on stderr, no stack trace, unless the exception is a bug.

    The exit status is 2 for a user's mistake, a full disk or standard output that cannot be written, 3 for a
    training that diverged, 130 for Ctrl-C, 143 for SIGTERM, and 141 where nobody reads standard output.
    """
    process.open_closed_streams()
    try:
        with process.exit_on_sigterm():
            yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        process.exit_interrupted()
    except SystemExit as error:
        # the trainer turns Ctrl-C into exit(1)
        if error.code == 1 and isinstance(error.__context__, KeyboardInterrupt):
            process.exit_interrupted()
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not process.has_reader():
            process.exit_for_reader()
        message = user_message(error)
        if message is None:
            raise
        process.exit_with(f"error: {message}", 3 if isinstance(error, Diverged) else 2)


def user_message(error: BaseException) -> str | None:
    """Return the message if `error`, or any exception that caused it, is a user's mistake; None for a bug."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    mistake = next((link for link in chain if isinstance(link, UserError)), None)
    if isinstance(error, InstantiationException):
        return _instantiation_message(error, mistake or chain[-1])
    if mistake is not None:
        return _without_worker_trace(str(mistake))
    if isinstance(error, ConfigCompositionException):
        return " ".join(str(error).split())
    return process.disk_problem(error) if isinstance(error, OSError) else None


def usage(main: Main, config_name: str, overrides: list[str], configs: Path) -> str:
    """Return the help text: what the command does, its config groups, required keys, override syntax."""
    chosen = compose.choices(config_name, overrides, configs)
    groups = {g: _mark_chosen(compose.options(g, configs), chosen[g]) for g in sorted(chosen)}
    required = compose.required_keys(config_name, overrides, configs)
    return "\n\n".join(
        [
            f"usage: {_program()} [key=value ...]",
            *([about] if (about := inspect.getdoc(main)) else []),
            *_table("config groups, written group=option (* is the current choice):", groups),
            *_table("required:", {f"{key}=...": about for key, about in required.items()}),
            'set any key by its path, as in a.b=3 or "a.c=[1,2]"; add one with +a.d=x, remove one with ~a.d\n'
            "  --cfg job         print the config and stop\n"
            "  -m key=1,2,3      run one job per value\n"
            "  --config-dir DIR  also look for configs in DIR",
        ]
    )


def _table(title: str, rows: dict[str, str]) -> list[str]:
    """Return one block of `usage` in a list; an empty list without rows."""
    if not rows:
        return []
    width = max(map(len, rows))
    lines = []
    for name, text in rows.items():
        first, rest = f"  {name:<{width}}  ", " " * (width + 4)
        columns = max(shutil.get_terminal_size().columns, width + 40)
        lines.append(textwrap.fill(text, columns, initial_indent=first, subsequent_indent=rest) or first)
    return ["\n".join([title, *(line.rstrip() for line in lines)])]


def _run(main: Main, config_name: str, configs: Path) -> None:
    """Compose the config once and run `main`; leave sweeps and Hydra's own options to Hydra."""
    words = sys.argv[1:]
    args = _parse(words)
    folders = [] if configs == compose.CONFIGS else [compose.CONFIGS]
    folders += [Path(args.config_dir).resolve()] if args.config_dir else []
    paths = ",".join(f"'file://{folder}'" for folder in folders)
    search = [f"hydra.searchpath=[{paths}]"] if folders else []
    name, overrides = args.config_name or config_name, [*args.overrides, *search]
    if args.help:
        print(usage(main, name, overrides, configs))
        return
    asks_hydra = args.info or args.hydra_help or args.shell_completion
    if not (asks_hydra or args.cfg or args.multirun or any(map(_is_for_hydra, args.overrides))):
        main(compose.compose(name, overrides, configs))
        return
    if not asks_hydra:  # report every mistake before the first job
        points = compose.sweep_points(overrides, configs) if args.multirun else [overrides]
        for point in points:
            compose.compose(name, point, configs, complete=args.cfg is None)
    _run_by_hydra(main, name, configs, words, args.overrides, search)


def _is_for_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _run_by_hydra(
    main: Main, name: str, configs: Path, words: list[str], overrides: list[str], search: list[str]
) -> None:
    """Run `hydra.main`; inside `main`, sys.argv is what the user typed, which DDP's launcher repeats."""
    overridden = {override.partition("=")[0].lstrip("+~") for override in overrides}
    defaults = [f"{k}={v}" for k, v in (QUIET | {"hydra.job.name": name}).items() if k not in overridden]
    argv = sys.argv
    typed = [argv[0], *words]

    def task(cfg: DictConfig) -> None:
        sys.argv = typed
        job = HydraConfig.get()
        if is_multirun():
            print(f"\njob {job.job.num}: {' '.join(job.overrides.task)}", flush=True)
        with user_errors():  # inside the task, since Hydra prints a line of its own for what leaves it
            main(cfg)

    flags = list(words)
    for override in overrides:
        flags.remove(override)
    sys.argv = [argv[0], *flags, "--", *defaults, *search, *map(quote, overrides)]
    try:
        hydra.main(config_path=str(configs), config_name=name, version_base="1.3")(task)()
    finally:
        sys.argv = argv


def is_multirun() -> bool:
    """Return whether this process runs one job of a Hydra sweep (-m)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _parse(words: list[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}: write overrides as key=value, without dashes; see --help")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_intermixed_args(words)


def _instantiation_message(error: InstantiationException, root: BaseException) -> str | None:
    """Return a message for a value that a constructor refused, a missing class or an unknown argument."""
    match = re.search(r"full_key: (\S+)", str(error))
    key = f"{match[1]}: " if match else ""
    if isinstance(root, UserError) and not isinstance(root, InvalidValue):
        return str(root)
    if isinstance(root, ValueError):
        return f"{key}{root}"
    if "Error locating target" in str(error):
        return f"{key}{' '.join(str(error).split(', set env var')[0].split())} does not exist"
    if isinstance(root, TypeError) and re.search(r"unexpected keyword|required .*argument", str(root)):
        return f"{key}{root}"
    return None


def _without_worker_trace(text: str) -> str:
    """Return the message alone where a data loader's worker process wrapped it in its stack trace."""
    if "Original Traceback" not in text:
        return text
    return re.split(r"\b(?:UserError|InvalidValue): ", text)[-1].strip()


def _mark_chosen(names: list[str], chosen: object) -> str:
    return " ".join(f"{name}*" if name == str(chosen) else name for name in names)


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    return f"python {sys.argv[0]}" if spec is None else f"python -m {spec.name}"
