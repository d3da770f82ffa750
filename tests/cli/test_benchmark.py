"""The command `benchmark data`, at a tiny size."""

import re
import sys

import pytest

from ldm.cli import benchmark, benchmark_data


def test_the_table_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark_data, "SIZES", [(64, 48), (160, 128)])
    monkeypatch.setattr(benchmark_data, "LATENTS_PER_SHARD", 30)
    monkeypatch.setattr(benchmark_data, "BATCH_SIZE", 10)
    tiny = ["benchmark.size=32", "benchmark.images=2", "benchmark.seconds=0.01"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "data", *tiny])
    benchmark.run_named_benchmark()
    out = capsys.readouterr().out
    small, large = (re.findall(r"[\d.]+", line) for line in out.splitlines() if re.match(r"\| \d", line))
    assert float(small[-1]) == 99.0, "too small to be decoded at reduced size"
    assert 30 < float(large[-1]) < 99 and all(float(number) > 0 for number in small + large)
    assert re.search(r"ldm [\d,]+, WebDataset reading the tar in order [\d,]+", out)
    assert re.search(r"500,000 shards of 10,000: any batch within 0\.\d+ s, \d+ MB", out)
