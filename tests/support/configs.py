"""The options of config groups."""

from ldm.cli.config.compose import CONFIGS


def options(group: str) -> list[str]:
    """Return the options of a config group, with their folders: ldm_f8_text, demo/text."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
