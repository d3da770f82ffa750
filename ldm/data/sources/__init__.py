"""What `pack` reads: a source is a sequence of records, one file a source."""

from ldm.data.sources.record import Record, SkippedRecord, Source

__all__ = ["Record", "Source", "SkippedRecord"]
