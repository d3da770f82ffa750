"""Sources of records for `pack`, one module per kind."""

from ldm.data.sources.record import FileSource, Record, SkippedRecord, Source

__all__ = ["FileSource", "Record", "Source", "SkippedRecord"]
