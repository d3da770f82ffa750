"""What the server that forks workers imports beforehand, and how it reports a worker that cannot start."""

import sys
from types import TracebackType

import ldm.data.loading.loader  # noqa: F401  (imported once, here, instead of by every worker)


def report_start(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the error of a worker that cannot start, except where its command ended in the meantime.

    The command takes its semaphores along, and rebuilding one then raises FileNotFoundError without a name.
    """
    if not (isinstance(error, FileNotFoundError) and error.filename is None):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report_start
