"""Sources of records for `pack`, one module per kind."""

from ldm.data.sources.record import Record, SkippedRecord, Source

__all__ = ["Record", "Source", "SkippedRecord"]
