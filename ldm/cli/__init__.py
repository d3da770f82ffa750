"""Commands, one file each (`python -m ldm.cli.NAME`), and the only place that knows Hydra and OmegaConf."""

import sys

if sys.platform == "win32":  # before modules that exist only on Unix are imported
    print(
        "error: ldm runs on Linux and macOS, not directly on Windows: install it inside WSL2, the Linux that "
        "`wsl --install` adds to Windows, and run it there",
        file=sys.stderr,
    )
    sys.exit(2)

from ldm.cli.config.process import report_interrupt  # noqa: E402

if sys.excepthook is sys.__excepthook__:  # a worker has one of its own
    sys.excepthook = report_interrupt  # the libraries that a command imports take seconds
