"""Check this machine before a long run: `python -m ldm.cli.doctor experiment=NAME [key=value ...]`."""

import sys

from omegaconf import DictConfig

from ldm.cli.config.command import command, user_message
from ldm.cli.training import setup
from ldm.cli.training.preflight import Preflight
from ldm.errors import UserError


@command("train")
def main(cfg: DictConfig) -> None:
    """Check what an experiment needs on this machine, one line each; exit status 2 if it cannot run."""
    setup.silence_lightning()
    failed: list[str] = []
    for check in Preflight(cfg, "doctor").checks():
        if missing := [name for name in check.needs if name in failed]:
            text = f"not known until this is fixed: {', '.join(missing)}"
        else:
            try:
                text = check.run()
            except Exception as error:  # of whatever kind: the other checks still run
                text = f"NO: {user_message(error) or f'{type(error).__name__}: {error}'}"
                failed.append(check.name)
        print(f"{check.name:<14} {text}", flush=True)
    if failed:
        raise UserError(f"{cfg.name} cannot run here, see the {len(failed)} line(s) that say NO")
    print(f"{cfg.name} can run here: python train.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
