"""What `pack` reads: a source is a sequence of records, one file a source."""

from ldm.data.sources.record import Record, Unusable

__all__ = ["Record", "Unusable"]
