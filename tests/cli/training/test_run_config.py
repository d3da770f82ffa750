"""A run's configuration beside its numbers."""

import re

from ldm.cli.config.compose import compose
from ldm.cli.training import run_config

WORDS = ["experiment=debug/ae", "data.shards=shards"]


def config(*words: str) -> dict:
    return run_config.resolve(compose("train", [*WORDS, *words]))


def test_holds_the_whole_run_and_the_code(tmp_path):
    kept = config(f"run={tmp_path}", "optimizer.lr=0.5")
    assert run_config.write(kept, tmp_path) == [], "nothing to compare with"
    assert run_config.read(tmp_path) == kept
    assert kept["stage"]["optimizer"]["lr"] == 0.5 and kept["name"] == "debug_ae"
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", kept["code"])
    assert (tmp_path / "config.yaml").read_text().startswith("# as the run was last started\n")


def test_says_what_changed_since(tmp_path):
    run_config.write(config(f"run={tmp_path}"), tmp_path)
    changed = run_config.write(
        config(f"run={tmp_path}", "optimizer.lr=0.5", "trainer.max_steps=99"), tmp_path
    )
    assert set(changed) == {
        "trainer.max_steps: 8 -> 99", "data.steps: 8 -> 99", "optimizer.lr: 0.0001 -> 0.5",
    }  # fmt: skip


def test_the_folder_and_the_name_are_no_difference():
    assert run_config.differences(config("run=runs/a", "name=a"), config("run=runs/b", "name=b")) == []
    assert run_config.differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [("a.b", 1, 2), ("c", None, 3)]


def test_a_node_that_is_there_in_one_alone_is_one_difference(tmp_path):
    run_config.write(config(f"run={tmp_path}"), tmp_path)
    off = config(f"run={tmp_path}", "callbacks.checkpoint=null", "~callbacks.ema")
    assert set(run_config.write(off, tmp_path)) == {
        "callbacks.checkpoint: Checkpoint -> None", "callbacks.ema: EMA -> None",
    }  # fmt: skip


def test_a_folder_without_one(tmp_path):
    assert run_config.read(tmp_path) == {}
