import pickle

import pytest

from ldm.data.sources.record import OWN_KEYS, SkippedRecord, source_metadata


@pytest.mark.parametrize("key", OWN_KEYS)
def test_a_field_that_pack_writes_itself_is_kept_under_another_name(key: str) -> None:
    assert source_metadata("a.jpg", {key: 7, "url": "u"}) == {"name": "a.jpg", f"source_{key}": 7, "url": "u"}


def test_no_field_replaces_another() -> None:
    fields = {"width": 1, "source_width": 2, "source_source_width": 3, "source_key": 4}
    assert source_metadata("a", fields) == {
        **{"name": "a", "source_source_source_width": 1, "source_width": 2, "source_source_width": 3},
        "source_key": 4,
    }


def test_the_name_of_a_skipped_record_can_be_written() -> None:
    skipped = pickle.loads(pickle.dumps(SkippedRecord("missing", "caf\udce9.jpg")))
    assert (skipped.reason, skipped.name) == ("missing", r"caf\udce9.jpg")
