"""The resolved config in a run's folder, and what changed since the last start."""

import copy
import re
from functools import cache

from ldm.cli.config.compose import compose
from ldm.cli.training import run_config

WORDS = ["experiment=debug/ae", "data.shards=shards"]


@cache
def resolve(*words: str) -> dict:
    return run_config.resolve_config(compose("train", [*WORDS, *words]))


def test_it_holds_every_setting_and_the_version_of_the_code(tmp_path):
    config = resolve(f"run={tmp_path}", "optimizer.lr=0.5")
    run_config.write(config, tmp_path)
    assert run_config.read(tmp_path) == config
    assert config["stage"]["optimizer"]["lr"] == 0.5 and config["name"] == "debug_ae"
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", config["code"])
    assert (tmp_path / "config.yaml").read_text().startswith("# as the run was last started\n")


def changed(now: tuple[str, ...], before: tuple[str, ...] = ()) -> dict[str, tuple]:
    differences = run_config.differences(resolve(*before), resolve(*now))
    assert len({key for key, _, _ in differences}) == len(differences)
    return {key: (old, new) for key, old, new in differences}


def test_a_setting_is_listed_once_by_its_shortest_name():
    words = "optimizer.lr=0.5", "trainer.max_steps=99", "autoencoder.decoder.channels=12", "seed=3"
    assert changed(words) == {
        "trainer.max_steps": (8, 99), "data.steps": (8, 99), "optimizer.lr": (0.0001, 0.5),
        "autoencoder.decoder.channels": (8, 12), "seed": (0, 3),
    }  # fmt: skip


def test_equal_changes_of_different_settings_are_all_listed():
    words = "callbacks.checkpoint.every_n_steps=1", "callbacks.images.every_n_steps=1", "stage.log_every=3"
    words += "callbacks.skip_bad_steps.patience=1", "adversary.start=1", "adversary.warmup=1"
    before = "callbacks.checkpoint.every_n_steps=1000", "stage.log_every=2"
    assert changed(words, before) == {
        "callbacks.checkpoint.every_n_steps": (1000, 1), "callbacks.images.every_n_steps": (1000, 1),
        "stage.log_every": (2, 3), "callbacks.skip_bad_steps.patience": (50, 1),
        "adversary.start": (4, 1), "adversary.warmup": (2, 1),
    }  # fmt: skip


def test_a_missing_argument_has_its_default():
    assert changed(("~stage.perceptual_weight", "~data.order.lanes", "~data.extra_fields")) == {}
    assert changed(("+optimizer.amsgrad=false", "+callbacks.skip_bad_steps.warmup=100")) == {}
    assert changed(("+optimizer.weight_decay=0.5",)) == {"optimizer.weight_decay": (0, 0.5)}
    assert changed((), ("stage.perceptual_weight=3",)) == {"stage.perceptual_weight": (3, 1.0)}
    assert changed(("~stage.perceptual_weight",), ("stage.perceptual_weight=3",)) == {
        "stage.perceptual_weight": (3, 1.0)
    }


def test_a_setting_that_this_code_no_longer_has_is_no_difference():
    old = copy.deepcopy(resolve())
    old["stage"]["removed"] = old["adversary"]["removed"] = 5
    assert run_config.differences(old, resolve()) == []


def test_nodes_in_a_list_are_compared_by_setting():
    fields = "data.derived_fields=[{_target_: ldm.data.fields.masks.MaskedImage, fill: %s, mode: a}]"
    assert changed((fields % 0,), (fields % -1,)) == {"data.derived_fields.0.fill": (-1, 0)}
    assert changed((fields % 0,)) == {"data.derived_fields": ([], ["MaskedImage"])}


def test_the_precision_that_auto_stands_for_is_recorded():
    cfg = compose("train", [*WORDS, "trainer.precision=auto"])
    assert run_config.resolve_config(cfg, "bf16-mixed")["trainer"]["precision"] == "bf16-mixed"
    assert run_config.resolve_config(cfg)["trainer"]["precision"] == "auto"
    assert resolve()["trainer"]["precision"] == "32-true"


def test_the_folder_and_the_name_are_no_difference():
    assert run_config.differences(resolve("run=a", "name=a"), resolve("run=ldm", "name=u")) == []
    assert run_config.differences(resolve("run=runs/a", "name=a"), resolve("run=runs/b", "name=b")) == []
    assert run_config.differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [("a.b", 1, 2), ("c", None, 3)]


def test_a_node_that_only_one_config_has_is_one_difference():
    assert changed(("callbacks.checkpoint=null", "~callbacks.ema", "logvar=learned")) == {
        "callbacks.checkpoint": ("Checkpoint", None), "callbacks.ema": ("EMA", None),
        "logvar": (None, "LearnedLogVar"),
    }  # fmt: skip


def test_a_folder_without_a_config(tmp_path):
    assert run_config.read(tmp_path) == {}
