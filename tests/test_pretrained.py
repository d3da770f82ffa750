"""Pretrained weights: found, downloaded, or a one-sentence error; and never in a checkpoint."""

import copy
import hashlib
import pickle
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm import pretrained
from ldm.errors import UserError
from ldm.pretrained import WEIGHTS, Weights, exclude_from_state_dict, find_or_download, weights_folder

CONTENT = b"numbers"


@pytest.fixture()
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """An entry of WEIGHTS, published in tmp_path/web; the user's folders are empty."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "tiny.pt").write_bytes(CONTENT)
    weights = Weights(
        title="a tiny net",
        url=(tmp_path / "web" / "tiny.pt").as_uri(),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        cache=str(tmp_path / "cache"),
    )
    monkeypatch.setitem(WEIGHTS, "tiny", weights)
    monkeypatch.setenv("LDM_WEIGHTS", str(tmp_path / "own"))
    return weights


@pytest.mark.parametrize("folder", ["own", "cache"])
def test_an_existing_file_is_found(tiny: Weights, tmp_path: Path, folder: str) -> None:
    (tmp_path / "web" / "tiny.pt").unlink()
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "tiny.pt").write_bytes(CONTENT)
    assert find_or_download("tiny") == tmp_path / folder / "tiny.pt"


def test_a_cache_that_names_files_by_hash(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / tiny.sha256).write_bytes(CONTENT)
    assert find_or_download("tiny") == tmp_path / "cache" / tiny.sha256


def test_a_url_is_not_taken_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_WEIGHTS", "s3://bucket/weights")
    with pytest.raises(UserError, match="LDM_WEIGHTS=s3://bucket/weights is a URL"):
        weights_folder()


def test_file_names_are_unique() -> None:
    assert len({weights.file_name for weights in WEIGHTS.values()}) == len(WEIGHTS)


def test_a_missing_file_is_downloaded_once(tiny: Weights, tmp_path: Path) -> None:
    assert find_or_download("tiny").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["tiny.pt"]
    (tmp_path / "web" / "tiny.pt").unlink()
    assert find_or_download("tiny") == tmp_path / "own" / "tiny.pt"


def test_without_network_access_one_sentence_says_what_to_do(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "web" / "tiny.pt").unlink()
    with pytest.raises(UserError) as error:
        find_or_download("tiny")
    message, own = str(error.value), tmp_path / "own"
    assert "\n" not in message and "a tiny net" in message and "LDM_WEIGHTS" in message
    assert f"neither in {own} nor in {tmp_path / 'cache'}" in message
    assert f"`curl -L --create-dirs -o {own / 'tiny.pt'} {tiny.url}`" in message
    assert list(own.iterdir()) == []


def test_a_file_with_another_hash_is_refused(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiny.pt").write_bytes(b"other")
    with pytest.raises(UserError, match=f"is not a tiny net.*{tiny.sha256[:12]}.*`rm "):
        find_or_download("tiny")


def test_an_interrupted_download_leaves_no_file(
    tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = BytesIO(CONTENT[:3])
    partial.headers = {"Content-Length": str(len(CONTENT))}
    monkeypatch.setattr(pretrained, "urlopen", lambda url, timeout: partial)
    with pytest.raises(UserError, match="closed after 3 of 7 bytes"):
        find_or_download("tiny")
    assert list((tmp_path / "own").iterdir()) == []


def test_every_file_has_a_full_hash_and_a_licence() -> None:
    for name, weights in WEIGHTS.items():
        assert len(weights.sha256) == 64 and int(weights.sha256, 16) > 0, name
        assert weights.url.startswith("https://") and weights.licence and "/" not in weights.file_name
    assert WEIGHTS["clip_vit_l14"].file_name == "ViT-L-14.pt"


class Owner(nn.Module):
    """A trained head on a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        exclude_from_state_dict(self, "frozen")


def test_frozen_weights_stay_out_of_state_dicts_and_strict_loading_still_checks_the_rest() -> None:
    first, second = nn.ModuleList([Owner()]), nn.ModuleList([Owner()])
    frozen_weight = second[0].frozen.weight.clone()
    state = first.state_dict()
    assert list(state) == ["0.head.weight", "0.head.bias"]
    second.load_state_dict(state)
    assert torch.equal(second[0].head.weight, first[0].head.weight)
    assert torch.equal(second[0].frozen.weight, frozen_weight)
    with pytest.raises(RuntimeError, match="0.head.bias"):
        second.load_state_dict({"0.head.weight": state["0.head.weight"]})


def test_the_frozen_layer_itself_still_loads_strictly() -> None:
    owner = Owner()
    with pytest.raises(RuntimeError, match="bias"):
        owner.frozen.load_state_dict({"weight": torch.zeros(2, 2)})


def test_copies_also_leave_the_frozen_layer_out() -> None:
    for twin in (copy.deepcopy(Owner()), pickle.loads(pickle.dumps(Owner()))):
        assert list(twin.state_dict()) == ["head.weight", "head.bias"]
        twin.load_state_dict(Owner().state_dict())
