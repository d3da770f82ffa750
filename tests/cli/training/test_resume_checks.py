"""Settings of a resumed run: which may change, which take effect, and which must be allowed."""

import copy
import fnmatch
import re
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ldm.cli.config.compose import compose
from ldm.cli.training import resume_checks, run_config
from ldm.errors import UserError
from tests.support import tiny
from tests.support.configs import options

PATH = Path("runs/a/checkpoints/step00000005.ckpt")
NO_EFFECT = [
    "callbacks.*", "logger.*", "trainer.*", "data.shards", "data.val_*", "data.index", "data.cache*",
    "data.num_workers", "data.start_method", "data.max_bad_rate", "first_stage", "stage.micro_batch_size",
    "stage.log_every", "stage.prompts", "stage.preview_*", "stage.num_condition_examples",
    "stage.statistics_batches", "denoiser.activation_checkpointing",
]  # fmt: skip
APPLIED = [
    "optimizer.*", "learning_rate.*", "stage.gradient_clip", "callbacks.ema.*", "callbacks.skip_bad_steps.*",
    "trainer.precision", "trainer.sync_batchnorm",
]  # fmt: skip
NEVER = ["callbacks.post_hoc.lengths"]
NOT_COMPARED = ["name", "run", "resume", "allow_changes"]


@cache
def config(*words: str, experiment: str = "debug/ae") -> DictConfig:
    return compose("train", [f"experiment={experiment}", "data.shards=images", *words])


def find(before: DictConfig | dict, now: DictConfig, *allowed: str) -> resume_checks.Changes:
    recorded = before if isinstance(before, dict) else run_config.to_dict(before)
    checkpoint = {"global_step": 5, "ldm": {"config": recorded}}
    return resume_checks.find_changes(checkpoint, PATH, run_config.to_dict(now), list(allowed))


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 7]
    return f"{value}x" if isinstance(value, str) else 7 if value is None else value + 1


def matches(key: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def change_each(cfg: DictConfig, every: int) -> Counter[str]:
    """Change every n-th setting on its own and check what follows; return the number by consequence."""
    counts, plain = Counter[str](), OmegaConf.to_container(cfg, resolve=False)
    before = run_config.to_dict(cfg)
    settings = [(key, value) for key, value in run_config.flatten(plain) if "${" not in str(value)]
    for key, value in settings[::every]:
        if key in [*NOT_COMPARED, "stage._target_", "init"]:
            continue
        now = copy.deepcopy(cfg)
        OmegaConf.update(now, key, other(value))
        if matches(key, NEVER) or not matches(key, APPLIED + NO_EFFECT):
            with pytest.raises(UserError) as caught:
                find(before, now)
            assert re.search(rf"(^| ){re.escape(key)}(=| cannot)", str(caught.value)), key
            counts["refused"] += 1
            continue
        found, applied = find(before, now), matches(key, APPLIED)
        assert any(f"{key}: " in line for line in found.printed), key
        assert any(line.startswith(f"{key}: ") for line in found.recorded) == applied, key
        counts["applied" if applied else "no effect"] += 1
    return counts


@pytest.mark.parametrize("experiment", ["debug/ae", "debug/text"])
def test_each_setting_is_announced_or_refused_by_name(experiment):
    counts = change_each(config("callbacks=post_hoc", experiment=experiment), every=6)
    assert min(counts["applied"], counts["refused"], counts["no effect"]) > 1, counts


@pytest.mark.slow
@pytest.mark.parametrize("experiment", options("experiment"))
def test_each_setting_of_each_experiment_is_announced_or_refused_by_name(experiment):
    words = "first_stage=null", "trainer.precision=32-true"
    assert change_each(config(*words, experiment=experiment), every=1).total() > 100


def test_nothing_has_changed():
    """Not even where the run has moved."""
    before, now = config("run=a", "name=a"), config("run=b", "name=b", "resume=auto")
    assert find(before, now) == resume_checks.Changes([], [])


def test_what_is_printed_and_recorded():
    words = "trainer.max_steps=99", "optimizer.lr=5e-3", "+optimizer.weight_decay=0.5", "callbacks.ema=null"
    found = find(config(), config(*words))
    assert set(found.printed) == {
        f"changed since {PATH}: trainer.max_steps: 8 -> 99",
        "optimizer.lr: 0.0001 -> 0.005 after step 5",
        "optimizer.weight_decay: 0 -> 0.5 after step 5",
        "callbacks.ema: EMA -> null after step 5",
    }
    assert set(found.recorded) == {line for line in found.printed if not line.startswith("changed")}
    again = run_config.to_dict(config(*words)) | {"changes": ["seed: 0 -> 1 after step 3"]}
    last = find(again, config(*words, "stage.gradient_clip=2")).recorded
    assert last == ["seed: 0 -> 1 after step 3", "stage.gradient_clip: 0 -> 2 after step 5"]


def test_more_steps_stretch_a_cosine_schedule_which_is_said():
    words = "learning_rate=warmup_cosine", "learning_rate.warmup_steps=0"
    found = find(config(*words), config(*words, "trainer.max_steps=99"))
    assert found.recorded == ["learning_rate.total_steps: 8 -> 99 after step 5"]


def test_a_refused_change_names_both_values_and_what_allows_it():
    expected = (
        rf"^{PATH} is from a run with stage.perceptual_weight=1, data.size=64, but this run has stage.percep"
        r"tual_weight=9, data.size=32: set them back, start a new run=FOLDER, or allow them with "
        r"allow_changes=\[stage.perceptual_weight,data.size\]$"
    )
    with pytest.raises(UserError, match=expected):
        find(config(), config("data.size=32", "stage.perceptual_weight=9"))
    more = config(
        "data.size=32", "stage.perceptual_weight=9", "data.flip=true", "adversary.weight=1", "seed=1"
    )
    with pytest.raises(
        UserError, match=r"(?:\S+=\S+, ){2}\S+ and 2 more changes: set them back.*\[(\S+,){4}\S+\]"
    ):
        find(config(), more)


@pytest.mark.parametrize(
    ("word", "allowed", "note"),
    [
        ("data.global_batch_size=6", "data.global_batch_size", "count steps, not images"),
        ("data.global_batch_size=6", "data", "the learning rate is not rescaled"),
        ("data.size=32", "data.size", "the result is that of neither value"),
        ("data.order.window=2", "data.order", "may be read twice or not at all"),
        ("seed=1", "seed", "all noise is another"),
        ("adversary.weight=0.9", "adversary", "the result is that of neither value"),
    ],
)
def test_an_allowed_change_says_what_is_no_longer_exact(word, allowed, note):
    key, _, value = word.partition("=")
    found = find(config(), config(word), allowed)
    (line,) = [line for line in found.printed if line.startswith(f"{key}: ")]
    assert f"-> {value} after step 5, as allowed: " in line and note in line
    (recorded,) = found.recorded
    assert recorded == line.partition(", as allowed")[0]
    with pytest.raises(UserError, match=f"{key}="):
        find(config(), config(word), "data.flip", "stage")
    assert find(config(word), config(word), allowed).printed == [], "a requeued job repeats its command"


@pytest.mark.parametrize("order", ["data.order.lanes=2", "data.order.buckets={shapes:[[64,64]]}"])
def test_an_order_by_batches_keeps_its_batch_size(order):
    with pytest.raises(UserError, match="data.global_batch_size cannot change .*data.order.lanes"):
        find(config(order), config(order, "data.global_batch_size=6"), "data.global_batch_size")
    assert find(config(order), config(order, "optimizer.lr=1")).recorded


@pytest.mark.parametrize(
    ("allowed", "phrase"),
    [
        ("data.globl_batch_size", "names data.globl_batch_size, .* nearest: data.global_batch_size"),
        ("data.", "names data., which is no setting"),
    ],
)
def test_a_misspelt_permission_is_refused(allowed, phrase):
    with pytest.raises(UserError, match=phrase):
        find(config(), config(), allowed)


def test_permissions_are_a_list():
    checkpoint = {"global_step": 5, "ldm": {"config": run_config.to_dict(config())}}
    with pytest.raises(UserError, match=r"a list, not seed: give allow_changes=\[seed\]"):
        resume_checks.find_changes(checkpoint, PATH, run_config.to_dict(config()), "seed")


def test_initial_weights_do_not_enter_a_resumed_run():
    """Leaving them out is no change; others would be ignored, whatever is allowed."""
    assert find(config("init=a"), config()).printed == []
    with pytest.raises(UserError, match="init=a, but this run has init=b: remove init, .* start a new run="):
        find(config("init=a"), config("init=b"), "init")


def test_the_lengths_of_averages_cannot_change():
    words = "callbacks=post_hoc", "callbacks.post_hoc.lengths=[0.05]"
    with pytest.raises(UserError, match=r"lengths=\[0.05, 0.1\], .* use callbacks.post_hoc=null"):
        find(config("callbacks=post_hoc"), config(*words), "callbacks.post_hoc.lengths")


def test_the_other_stage_is_named():
    with pytest.raises(
        UserError, match="of the AutoencoderStage, but this run is of the LatentDiffusionStage"
    ):
        find(config(), config(experiment="debug/text"))


def test_settings_that_an_older_version_lacks_have_their_defaults():
    """A new option of a class, of the whole config, and a new callback leave its checkpoints usable."""
    before = run_config.to_dict(config())
    del before["stage"]["perceptual_weight"], before["allow_changes"], before["callbacks"]["watchdog"]
    del before["data"]["order"]["lanes"], before["data"]["channels"]
    assert [line for line in find(before, config()).printed if "watchdog" not in line] == []
    with pytest.raises(UserError, match="stage.perceptual_weight=1, .* stage.perceptual_weight=2"):
        find(before, config("stage.perceptual_weight=2"))


def test_checkpoints_without_settings_are_compared_with_the_folders_config(tmp_path):
    path = tmp_path / "checkpoints" / "step00000005.ckpt"
    arguments = {"global_step": 5}, path, run_config.to_dict(config("data.size=32")), []
    assert "does not record its settings" in resume_checks.find_changes(*arguments).printed[0]
    run_config.write(run_config.to_dict(config()), tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.yaml is from a run with data.size=64"):
        resume_checks.find_changes(*arguments)


def test_the_precision_that_auto_stands_for_is_compared():
    auto, now = config("trainer.precision=auto"), config("trainer.precision=32-true")
    recorded = run_config.resolve_config(auto, "bf16-mixed")
    assert find(recorded, now).recorded == ["trainer.precision: bf16-mixed -> 32-true after step 5"]
    assert find(recorded, auto).printed == find(auto, now).printed == [], "unknown on a login node"


def adam_state(**settings) -> dict[str, Any]:
    weights = torch.nn.Parameter(torch.zeros(2))
    weights.grad = torch.ones(2)
    optimizer = torch.optim.Adam([weights], **settings)
    optimizer.step()
    empty = {"state": {}, "param_groups": []}  # of a discriminator that is not trained yet
    return {"optimizer_states": [empty, optimizer.state_dict()]}


@pytest.mark.parametrize(
    ("factory", "phrase"),
    [
        (
            partial(torch.optim.SGD, momentum=0.9),
            r"\(exp_avg, exp_avg_sq, step\) .*optimizer=SGD .*momentum_buf",
        ),
        (partial(torch.optim.Adam, amsgrad=True), "optimizer=Adam with these settings .*max_exp_avg_sq"),
        (torch.optim.SGD, r"optimizer=SGD with these settings \(none\)"),
    ],
)
def test_an_optimizer_that_cannot_continue_from_the_state_is_refused(factory, phrase):
    with pytest.raises(UserError, match=phrase):
        resume_checks.check_optimizer_state(adam_state(), PATH, partial(factory, lr=1.0))


def test_an_optimizer_of_the_same_state_continues():
    for factory in (torch.optim.Adam, torch.optim.AdamW, partial(torch.optim.Adam, fused=True)):
        resume_checks.check_optimizer_state(adam_state(lr=0.1), PATH, factory)


def test_other_samples_are_refused_or_announced(tmp_path):
    data, more = tiny.data(tmp_path / "a", 9), tiny.data(tmp_path / "b", 9)
    tiny.shards(tmp_path / "b", 13)
    state = data.train_dataloader().state_dict() | {"step": 5, "position": 20}
    loops = {"fit_loop": {"state_dict": {"combined_loader": [state]}}}
    checkpoint = {"global_step": 5, "loops": loops}
    assert resume_checks.check_samples(checkpoint, data) == []
    with pytest.raises(UserError, match=r"hash\(data.shards, data.order\)=.*allow_changes=\[data.shards\]"):
        resume_checks.check_samples(checkpoint, more)
    more.allow_changes = ["data.shards"]
    (line,) = resume_checks.check_samples(checkpoint, more)
    assert line.startswith("data.shards or data.order: other samples after step 5, as allowed: ")
