"""What configs/ offers."""

from ldm.cli.config.compose import CONFIGS


def options(group: str) -> list[str]:
    """The names of a config group, those in folders too: ldm_f8_text, demo/text."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
