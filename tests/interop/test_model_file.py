"""Model files: bit for bit, complete or not at all, and one sentence for each kind of wrong file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.errors import UserError
from ldm.interop.model_file import content_hash, load, load_state, read_header, save

CONFIG = {"_target_": "ldm.model.LatentDiffusion", "width": 8, "levels": [1, 2], "null": None, "rate": 1e-4}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(7),
        "d": torch.randn(4, 3).T,
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "model.safetensors"
    save(
        path,
        tensors() | {"e": torch.tensor([1e-45, -0.0])},
        CONFIG,
        "autoencoder",
        {"hash": "12ab", "naïve": "☃"},
    )
    return path


def test_round_trip_bit_for_bit(tmp_path):
    path, saved = tmp_path / "x.safetensors", tensors()
    save(path, saved, CONFIG, "autoencoder", {"hash": "12ab", "naïve": "☃"})
    loaded, config, header = load(path, "autoencoder")
    assert config == CONFIG
    assert header == {
        "format": "ldm",
        "ldm_format": "1",
        "kind": "autoencoder",
        "hash": "12ab",
        "naïve": "☃",
    }
    assert read_header(path, "autoencoder") == header
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_the_config_keeps_its_order(tmp_path):
    """That of the conditions is the order in which their channels are joined."""
    config = {"conditioners": {"masked": {"factor": 4}, "mask": {"low": -1, "factor": 4}}}
    save(tmp_path / "x.safetensors", {}, config, "latent_diffusion", {})
    conditioners = load(tmp_path / "x.safetensors", "latent_diffusion")[1]["conditioners"]
    assert list(conditioners) == ["masked", "mask"] and list(conditioners["mask"]) == ["low", "factor"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {}, "autoencoder", {})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_write_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(file, {"a": torch.zeros(1)}, {}, "autoencoder", {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def refusal(path: Path, kind: str = "autoencoder") -> str:
    with pytest.raises(UserError) as caught:
        load(path, kind)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


def test_missing_and_wrong_kind(file):
    assert "there is no model file" in refusal(file.with_name("none.safetensors"))
    assert "kind 'autoencoder' where one of kind 'latent_diffusion'" in refusal(file, "latent_diffusion")


@pytest.mark.parametrize("keep", [0, 5, 9, 60, -1])
def test_truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    assert "is truncated or corrupt" in refusal(file)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 a pickle in a zip", b"<html>not found</html>", b"ten bytes.", b"\x80\x02}q\x00." * 9],
)
def test_not_safetensors(file, content):
    file.write_bytes(content)
    assert "is not a safetensors file" in refusal(file)


def test_foreign_safetensors(file):
    save_file({"a": torch.zeros(1)}, file)
    assert "was not written by ldm" in refusal(file)


def rewrite_header(file: Path, **changes: str | None) -> None:
    """Write the file again with keys of its header changed, or removed where None."""
    with safe_open(file, framework="pt") as opened:
        header = {k: v for k, v in (opened.metadata() | changes).items() if v is not None}
    save_file(load_file(file), file, metadata=header)


def test_a_file_without_a_format_version_is_refused(file):
    rewrite_header(file, ldm_format=None)
    assert "older version of ldm (no ldm_format)" in refusal(file)
    with pytest.raises(UserError, match="no ldm_format"):
        read_header(file, "autoencoder")


@pytest.mark.parametrize("version", ["0", "2", ""])
def test_another_format_version_is_refused(file, version):
    rewrite_header(file, ldm_format=version)
    assert f"has ldm_format {version}, but this version of ldm reads ldm_format 1" in refusal(file)
    with pytest.raises(UserError, match="ldm_format"):
        read_header(file, "autoencoder")


def test_a_file_saved_again_has_this_version(file):
    weights, config, header = load(file, "autoencoder")
    save(file, weights, config, "autoencoder", header | {"ldm_format": "0"})
    assert read_header(file, "autoencoder")["ldm_format"] == "1"


def test_load_state_takes_every_tensor_or_none():
    source, module = nn.Linear(2, 3), nn.Linear(2, 3)
    load_state(module, source.state_dict(), "x.safetensors")
    assert content_hash(module) == content_hash(source)
    before = content_hash(module)
    for tensors in ({}, {"weight": torch.zeros(3, 2)}, nn.Linear(2, 4).state_dict()):
        with pytest.raises(UserError, match="x.safetensors does not fit .* of 2 tensors differ"):
            load_state(module, tensors, "x.safetensors")
    with pytest.raises(UserError, match="1 of 3 tensors differ, the first is extra"):
        load_state(module, {**source.state_dict(), "extra": torch.zeros(1)}, "x.safetensors")
    assert content_hash(module) == before


def test_the_hash_covers_names_shapes_dtypes_and_bytes():
    def module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    first, other = content_hash(module()), module()
    assert len(first) == 64 and first == content_hash(module())
    assert first == content_hash(module().requires_grad_(False).eval())
    other[0].weight.data[0, 0] = torch.nextafter(other[0].weight.data[0, 0], torch.tensor(9.0))
    assert content_hash(other) != first
    assert content_hash(module().bfloat16()) != first
    assert content_hash(nn.ModuleList(module())) == first  # same names, same state
    assert content_hash(nn.ModuleDict({"x": module()})) != first
    buffers = module()
    buffers[1].running_mean += 1
    assert content_hash(buffers) != first


EMPTY, INTEGERS, LARGEST = torch.zeros(0, 3), torch.tensor([2**62, -1]), torch.tensor([-3.4e38, 3.4e38])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 7, 11])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, dtype, value, position):
    weight = torch.randn(3, 4).to(dtype)
    weight.view(-1)[position] = value
    path = tmp_path / "x.safetensors"
    save(path, tensors() | {"deep.weight": weight, "z": LARGEST}, CONFIG, "autoencoder", {})
    assert f"{path} has NaN or infinity in deep.weight: use an earlier model file" in refusal(path)
    save(
        path, tensors() | {"deep.weight": weight, "f": weight + 0, "g": weight + 0}, CONFIG, "autoencoder", {}
    )
    assert "in deep.weight and 2 other tensors: " in refusal(path)
    assert read_header(path, "autoencoder")["kind"] == "autoencoder", "the header alone is not refused"


def test_empty_integer_and_large_tensors_are_finite(tmp_path):
    saved = tensors() | {"empty": EMPTY, "integers": INTEGERS, "largest": LARGEST}
    save(tmp_path / "x.safetensors", saved, CONFIG, "autoencoder", {})
    assert load(tmp_path / "x.safetensors", "autoencoder")[0].keys() == saved.keys()


READING = {"aten.lift_fresh", "aten.detach", "aten.view", "aten.set_"}
"""What reading a file does to its tensors; none of it copies."""


class LargeResults(TorchDispatchMode):
    """Collects the operations whose results have as many values as a weight: each would be a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, torch.Tensor) and part.numel() >= 1000:
                self.names.append(str(func))
        return result


def test_the_check_of_loaded_weights_copies_none(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {f"w{i}": torch.randn(40, 50) for i in range(5)}, CONFIG, "autoencoder", {})
    with LargeResults() as results:
        load(path, "autoencoder")
    assert {name.rpartition(".")[0] for name in results.names} <= READING
