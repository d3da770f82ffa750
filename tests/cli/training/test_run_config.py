"""The resolved config in a run's folder, and what changed since the last start."""

import re

from ldm.cli.config.compose import compose
from ldm.cli.training import run_config

WORDS = ["experiment=debug/ae", "data.shards=shards"]


def resolve(*words: str) -> dict:
    return run_config.resolve_config(compose("train", [*WORDS, *words]))


def test_it_holds_every_setting_and_the_version_of_the_code(tmp_path):
    config = resolve(f"run={tmp_path}", "optimizer.lr=0.5")
    assert run_config.write(config, tmp_path) == [], "nothing to compare with"
    assert run_config.read(tmp_path) == config
    assert config["stage"]["optimizer"]["lr"] == 0.5 and config["name"] == "debug_ae"
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", config["code"])
    assert (tmp_path / "config.yaml").read_text().startswith("# as the run was last started\n")


def test_changes_since_the_last_start_are_listed(tmp_path):
    run_config.write(resolve(f"run={tmp_path}"), tmp_path)
    changed = run_config.write(
        resolve(f"run={tmp_path}", "optimizer.lr=0.5", "trainer.max_steps=99"), tmp_path
    )
    assert set(changed) == {
        "trainer.max_steps: 8 -> 99", "data.steps: 8 -> 99", "optimizer.lr: 0.0001 -> 0.5",
    }  # fmt: skip


def test_the_folder_and_the_name_are_no_difference():
    assert run_config.differences(resolve("run=runs/a", "name=a"), resolve("run=runs/b", "name=b")) == []
    assert run_config.differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [("a.b", 1, 2), ("c", None, 3)]


def test_a_node_that_only_one_config_has_is_one_difference(tmp_path):
    run_config.write(resolve(f"run={tmp_path}"), tmp_path)
    without = resolve(f"run={tmp_path}", "callbacks.checkpoint=null", "~callbacks.ema")
    assert set(run_config.write(without, tmp_path)) == {
        "callbacks.checkpoint: Checkpoint -> None", "callbacks.ema: EMA -> None",
    }  # fmt: skip


def test_a_folder_without_a_config(tmp_path):
    assert run_config.read(tmp_path) == {}
