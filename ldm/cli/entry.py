"""The `command` decorator: Hydra's main without its folders, logs and stack traces for a user's mistakes."""

import argparse
import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

import ldm
from ldm.cli import composition
from ldm.errors import UserError

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


def command(
    config_name: str, configs: Path = composition.CONFIGS
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes `main(cfg)` a command of the shell that reads `configs/<config_name>.yaml` and overrides.

    A user's mistake is one sentence on stderr and exit status 2, Ctrl-C is 130; our own faults keep a trace.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra swallows the exception and exits with 1
            with sentences():
                _run(main, config_name, configs)

        return run

    return decorate


@contextmanager
def sentences() -> Iterator[None]:
    """Ends the process with one line on stderr for Ctrl-C (status 130) or a user's mistake (status 2)."""
    try:
        yield
    except KeyboardInterrupt:
        _stop("stopped by Ctrl-C", 130)
    except SystemExit as error:
        # the trainer turns Ctrl-C into exit(1)
        if error.code == 1 and isinstance(error.__context__, KeyboardInterrupt):
            _stop("stopped by Ctrl-C", 130)
        raise
    except Exception as error:
        sentence = mistake(error)
        if sentence is None:
            raise
        _stop(f"error: {sentence}", 2)


def mistake(error: BaseException) -> str | None:
    """The sentence for the user if `error` is a user's mistake, however deep in its causes, else None."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, UserError):
            return _unwrapped(str(link))
    if isinstance(error, InstantiationException):
        return _instantiation(error, chain[-1])
    if isinstance(error, ConfigCompositionException) or _out_of_range(error):
        return " ".join(str(error).split())
    return None


def _out_of_range(error: BaseException) -> bool:
    """Whether a line of ours says `raise ValueError`: it names a range and the value that was given."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(str(Path(ldm.__path__[0])))
    return type(error) is ValueError and ours and (frames[-1].line or "").startswith("raise ValueError")


def usage(main: Callable[[DictConfig], None], config_name: str, overrides: list[str], configs: Path) -> str:
    """What the command does, the options of its config groups, keys to be given, and how overrides look."""
    chosen = composition.choices(config_name, overrides, configs)
    groups = {g: _listed(composition.options(g, configs), chosen[g]) for g in sorted(chosen)}
    needed = composition.needed(config_name, overrides, configs)
    return "\n\n".join(
        [
            f"usage: {_program()} [key=value ...]",
            *([about] if (about := inspect.getdoc(main)) else []),
            *_table("config groups, written group=option (* stands now):", groups),
            *_table("to be given here or by an option above:", {f"{k}=...": v for k, v in needed.items()}),
            'any key is set by its path, as in a.b=3 or "a.c=[1,2]"; +a.d=x adds one, ~a.d drops one\n'
            "  --cfg job         print the config and stop\n"
            "  -m key=1,2,3      one job a value\n"
            "  --config-dir DIR  look for configs in DIR, too",
        ]
    )


def _table(title: str, rows: dict[str, str]) -> list[str]:
    """One block of `usage`, or none where there is nothing to say."""
    width = max(map(len, rows), default=0)
    return ["\n".join([title, *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows.items())])][
        : len(rows)
    ]


def _run(main: Callable[[DictConfig], None], config_name: str, configs: Path) -> None:
    words = sys.argv[1:]
    args = _parsed(words)
    overrides = list(args.overrides)
    if args.config_dir:
        overrides.append(f"hydra.searchpath=['file://{Path(args.config_dir).resolve()}']")
    name = args.config_name or config_name
    if args.help:
        print(usage(main, name, overrides, configs))
        return
    if not (args.hydra_help or args.info or args.shell_completion):
        points = composition.sweep_points(overrides, configs) if args.multirun else [overrides]
        for point in points:
            composition.compose(name, point, configs, complete=args.cfg is None)
    _launch(main, name, configs, words, args.overrides)


def _launch(
    main: Callable[[DictConfig], None], name: str, configs: Path, words: list[str], overrides: list[str]
) -> None:
    """Hands over to Hydra; inside `main`, sys.argv is what the user typed (DDP's launcher repeats it)."""
    given = {o.partition("=")[0].lstrip("+~") for o in overrides}
    quiet = QUIET | {"hydra.job.name": name}
    argv = sys.argv
    typed = [argv[0], *words]

    def task(cfg: DictConfig) -> None:
        sys.argv = typed
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            print(f"\njob {job.job.num}: {' '.join(job.overrides.task)}", flush=True)
        with sentences():  # in here, for Hydra prints a line of its own about what leaves the task
            main(cfg)

    flags = list(words)
    for override in overrides:
        flags.remove(override)
    ours = [f"{k}={v}" for k, v in quiet.items() if k not in given]
    sys.argv = [argv[0], *flags, "--", *ours, *overrides]
    try:
        hydra.main(config_path=str(configs), config_name=name, version_base="1.3")(task)()
    finally:
        sys.argv = argv


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}: overrides are written key=value, without dashes; see --help")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_intermixed_args(words)


def _instantiation(error: InstantiationException, root: BaseException) -> str | None:
    """A number that a constructor refused, a target that does not exist, or an unknown argument."""
    where = re.search(r"full_key: (\S+)", str(error))
    key = f"{where[1]}: " if where else ""
    if isinstance(root, ValueError):
        return f"{key}{root}"
    if "Error locating target" in str(error):
        return f"{key}{' '.join(str(error).split(', set env var')[0].split())} does not exist"
    if isinstance(root, TypeError) and re.search(r"unexpected keyword|required .*argument", str(root)):
        return f"{key}{root}"
    return None


def _unwrapped(text: str) -> str:
    """The sentence alone, where a loader's worker process wrapped it in its own trace."""
    if "Original Traceback" not in text:
        return text
    return re.split(r"\bUserError: ", text)[-1].strip()


def _listed(names: list[str], chosen: object) -> str:
    return "  ".join(f"{name}*" if name == str(chosen) else name for name in names)


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    return f"python {sys.argv[0]}" if spec is None else f"python -m {spec.name}"


def _stop(sentence: str, status: int) -> NoReturn:
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(status)
