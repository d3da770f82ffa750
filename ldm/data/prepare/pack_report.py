"""What `pack` did with the records of a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NAMES_SHOWN = 5


@dataclass
class PackReport:
    """How many records of a source were packed, and which records and files were not, and why."""

    packed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of records that could not be packed, by reason."""
    notes: dict[str, int] = field(default_factory=dict)
    """Number of packed records with something to look at, by what it is."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Number of files and columns of the source that belong to no record, by reason."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names by reason; the `_stats.json` of each shard has all of its records."""
    changed_shards: int = 0
    """Shards that were packed again, because their files or rows have changed."""
    removed_shards: int = 0
    """Shards that were removed, because the source has fewer records than before."""

    def add_shard(
        self, packed: int, skipped: Mapping[str, Sequence[str]], notes: Mapping[str, Sequence[str]]
    ) -> None:
        """Count the records of one shard."""
        self.packed += packed
        self._count(self.skipped, skipped)
        self._count(self.notes, notes)

    def add_ignored(self, ignored: Mapping[str, Sequence[str]]) -> None:
        """Count the files that belong to no record."""
        self._count(self.ignored, ignored)

    def _count(self, counts: dict[str, int], names: Mapping[str, Sequence[str]]) -> None:
        for reason, new in names.items():
            counts[reason] = counts.get(reason, 0) + len(new)
            self.names[reason] = [*self.names.get(reason, []), *new][:NAMES_SHOWN]

    def __str__(self) -> str:
        lines = [f"packed {self.packed:,}, skipped {sum(self.skipped.values()):,}"]
        lines += self._lines(self.skipped)
        if self.notes:
            lines += ["of those packed:", *self._lines(self.notes)]
        if self.ignored:
            lines += [f"ignored {sum(self.ignored.values()):,}:", *self._lines(self.ignored)]
        if self.changed_shards:
            lines.append(
                f"shards packed again, because their files or rows have changed: {self.changed_shards:,}"
            )
        if self.removed_shards:
            lines.append(
                f"shards removed, because there are fewer images than before: {self.removed_shards:,}"
            )
        return "\n".join(lines)

    def _lines(self, counts: Mapping[str, int]) -> list[str]:
        lines = []
        for reason, n in sorted(counts.items()):
            more = ", ..." if n > len(self.names[reason]) else ""
            lines.append(f"  {n:,} {reason}: {', '.join(self.names[reason])}{more}")
        return lines
