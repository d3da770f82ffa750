"""Foreign weights: found, downloaded, or missed in one sentence; and never in a checkpoint."""

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
from ldm.pretrained import WEIGHTS, Weights, find, keep_out_of_checkpoints

CONTENT = b"numbers"


@pytest.fixture()
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A known file, published in tmp_path/web, with nothing in the user's folders yet."""
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


@pytest.mark.parametrize("place", ["own", "cache"])
def test_a_file_that_is_there_is_found(tiny: Weights, tmp_path: Path, place: str) -> None:
    (tmp_path / "web" / "tiny.pt").unlink()
    (tmp_path / place).mkdir()
    (tmp_path / place / "tiny.pt").write_bytes(CONTENT)
    assert find("tiny") == tmp_path / place / "tiny.pt"


def test_a_cache_that_names_files_by_hash(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / tiny.sha256).write_bytes(CONTENT)
    assert find("tiny") == tmp_path / "cache" / tiny.sha256


def test_files_of_a_folder_have_different_names() -> None:
    assert len({weights.file for weights in WEIGHTS.values()}) == len(WEIGHTS)


def test_a_file_that_is_nowhere_is_downloaded_once(tiny: Weights, tmp_path: Path) -> None:
    assert find("tiny").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["tiny.pt"]
    (tmp_path / "web" / "tiny.pt").unlink()
    assert find("tiny") == tmp_path / "own" / "tiny.pt"


def test_without_a_network_one_sentence_says_what_to_do(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "web" / "tiny.pt").unlink()
    with pytest.raises(UserError) as error:
        find("tiny")
    message, own = str(error.value), tmp_path / "own"
    assert "\n" not in message and "a tiny net" in message and "LDM_WEIGHTS" in message
    assert f"neither in {own} nor in {tmp_path / 'cache'}" in message
    assert f"`curl -L --create-dirs -o {own / 'tiny.pt'} {tiny.url}`" in message
    assert list(own.iterdir()) == []


def test_another_file_of_that_name_is_refused(tiny: Weights, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiny.pt").write_bytes(b"other")
    with pytest.raises(UserError, match=f"is not a tiny net.*{tiny.sha256[:12]}.*`rm "):
        find("tiny")


def test_half_a_download_leaves_nothing(
    tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = BytesIO(CONTENT[:3])
    half.headers = {"Content-Length": str(len(CONTENT))}
    monkeypatch.setattr(pretrained, "urlopen", lambda url, timeout: half)
    with pytest.raises(UserError, match="closed after 3 of 7 bytes"):
        find("tiny")
    assert list((tmp_path / "own").iterdir()) == []


def test_every_known_file_has_a_whole_hash_and_a_licence() -> None:
    for name, weights in WEIGHTS.items():
        assert len(weights.sha256) == 64 and int(weights.sha256, 16) > 0, name
        assert weights.url.startswith("https://") and weights.licence and "/" not in weights.file
    assert WEIGHTS["clip_vit_l14"].file == "ViT-L-14.pt"


class Owner(nn.Module):
    """A trained head on a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        keep_out_of_checkpoints(self, "frozen")


def test_frozen_weights_stay_out_of_state_dicts_and_strict_loading_still_checks_the_rest() -> None:
    first, second = nn.ModuleList([Owner()]), nn.ModuleList([Owner()])
    kept = second[0].frozen.weight.clone()
    state = first.state_dict()
    assert list(state) == ["0.head.weight", "0.head.bias"]
    second.load_state_dict(state)
    assert torch.equal(second[0].head.weight, first[0].head.weight)
    assert torch.equal(second[0].frozen.weight, kept)
    with pytest.raises(RuntimeError, match="0.head.bias"):
        second.load_state_dict({"0.head.weight": state["0.head.weight"]})


def test_the_frozen_part_itself_still_loads_strictly() -> None:
    owner = Owner()
    with pytest.raises(RuntimeError, match="bias"):
        owner.frozen.load_state_dict({"weight": torch.zeros(2, 2)})


def test_copies_keep_the_rule() -> None:
    for twin in (copy.deepcopy(Owner()), pickle.loads(pickle.dumps(Owner()))):
        assert list(twin.state_dict()) == ["head.weight", "head.bias"]
        twin.load_state_dict(Owner().state_dict())
