"""The command at its smallest size."""

from PIL import Image

from ldm.cli.config.compose import compose
from studies import CONFIGS, two_moons
from tests.studies.test_samplers import run


def test_writes_plots_and_a_table(tmp_path, monkeypatch, capsys) -> None:
    words = [f"out={tmp_path}", "n=60", "k=8", "steps=[2,3]", "shares=[0,1]"]
    assert run(monkeypatch, two_moons.main, *words) == 0, capsys.readouterr().err
    cfg = compose("two_moons", ["out=x"], CONFIGS)
    lines = (tmp_path / "two_moons.md").read_text().splitlines()
    assert lines[2] == "| sampler | 2 steps | 3 steps |"
    assert [line.split("|")[1].strip() for line in lines[4:]] == list(cfg.samplers)
    for name, rows in (("two_moons_schedules", cfg.schedules), ("two_moons_samplers", cfg.samplers)):
        assert Image.open(tmp_path / f"{name}.png").height >= 120 * len(rows)
