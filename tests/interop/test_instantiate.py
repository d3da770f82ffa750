"""A config from a file builds classes defined in ldm, and nothing else."""

import sys
from pathlib import Path

import pytest

from ldm.conditioning.transformer_text import TransformerText
from ldm.errors import UserError
from ldm.interop.instantiate import build_untrusted

TEXT = {
    "_target_": "ldm.conditioning.transformer_text.TransformerText",
    "tokenizer": {"_target_": "ldm.conditioning.tokenizer.ClipTokenizer", "length": 8, "pad_token": 0},
    "width": 8,
    "depth": 1,
    "num_heads": 2,
}


def test_builds_nested_classes_of_ldm():
    built = build_untrusted({"conditioner": TEXT, "numbers": [1, {"two": 2.0}], "none": None})
    assert isinstance(built["conditioner"], TransformerText)
    assert built["conditioner"].tokenizer.length == 8
    assert built["numbers"] == [1, {"two": 2.0}] and built["none"] is None


HOSTILE = [
    "pathlib.Path.write_text",
    "pathlib.Path",
    "shutil.copy",
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "urllib.request.urlopen",
    "subprocess.Popen",
    "torch.load",
    "torch.nn.Linear",
    "hydra.utils.instantiate",
    "ldm.cli.config.command.os.system",
    "ldm.cli.config.command.Path",
    "ldm.cli.config.command.command",
    "ldm.cli.config.instantiate.instantiate",
    "ldm.cli.config.instantiate.Any",
    "ldm.interop.instantiate.build_untrusted",
    "ldm.interop.instantiate.Mapping",
    "ldm.cli.config.compose.Path",
    "ldm.interop.model_file.save",
    "ldm.interop.model_file.Path",
    "ldm.typing.Image",
    "ldm.rng.generator",
    "ldm.no_such_module.Thing",
    "ldm.errors.NoSuchClass",
    "ldm.errors.UserError.__init__",
    "ldm.errors.UserError.__subclasses__",
    "ldm..errors.UserError",
    ".ldm.errors.UserError",
    "ldm.errors.UserError ",
    "ldm",
    "",
    None,
    7,
    ["ldm.errors.UserError"],
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
@pytest.mark.parametrize(
    "wrap", [lambda node: node, lambda node: {"a": [{"b": node}]}], ids=["bare", "nested"]
)
def test_a_hostile_target_is_refused_and_named(target, wrap):
    with pytest.raises(UserError) as caught:
        build_untrusted(wrap({"_target_": target}))
    assert repr(target) in str(caught.value)


def test_nothing_is_built_before_all_is_checked(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(TransformerText, "__init__", lambda self, **arguments: built.append(arguments))
    with pytest.raises(UserError, match="os.system"):
        build_untrusted({"first": TEXT, "last": {"_target_": "os.system", "command": f"touch {tmp_path}/x"}})
    assert built == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_", "__class__"])
def test_special_keys_are_refused(key):
    with pytest.raises(UserError, match=key):
        build_untrusted({**TEXT, key: True})


def test_interpolations_stay_strings(monkeypatch):
    monkeypatch.setenv("SECRET", "s3")
    assert build_untrusted({"a": "${oc.env:SECRET}"}) == {"a": "${oc.env:SECRET}"}


def test_a_foreign_package_whose_name_starts_with_ldm_is_not_imported(tmp_path: Path, monkeypatch):
    (tmp_path / "ldm_evil.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="ldm_evil.Thing"):
        build_untrusted({"_target_": "ldm_evil.Thing"})
    assert "ldm_evil" not in sys.modules


def test_unknown_arguments_are_refused():
    with pytest.raises(
        UserError,
        match="does not fit ldm.conditioning.transformer_text.TransformerText .*depht.*another version",
    ):
        build_untrusted({**TEXT, "depht": 3})
