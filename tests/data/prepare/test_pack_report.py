from ldm.data.prepare.pack_report import NAMES_SHOWN, PackReport


def test_counts_and_first_names_are_listed() -> None:
    report = PackReport()
    report.add_ignored({".psd": ["a.psd", "b.psd"], "hidden": [".x"]})
    report.add_shard(3, {"missing": ["a", "b"]}, {"of one flat colour": ["c"]})
    report.add_shard(2000, {"missing": ["c", "d", "e", "f"], "unreadable": ["g"]}, {})
    assert NAMES_SHOWN == 5
    assert str(report) == (
        "packed 2,003, skipped 7\n"
        "  6 missing: a, b, c, d, e, ...\n"
        "  1 unreadable: g\n"
        "of those packed:\n"
        "  1 of one flat colour: c\n"
        "ignored 3:\n"
        "  2 .psd: a.psd, b.psd\n"
        "  1 hidden: .x"
    )


def test_shards_that_were_packed_again_or_removed_are_counted() -> None:
    assert str(PackReport(4, changed_shards=2, removed_shards=1)).splitlines() == [
        "packed 4, skipped 0",
        "shards packed again, because their files or rows have changed: 2",
        "shards removed, because there are fewer images than before: 1",
    ]
