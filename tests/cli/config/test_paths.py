"""A URL where a path of this machine is needed is refused by its key, and no folder named s3: appears."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import sample
import train
from ldm.cli import compare, ema, encode_latents, evaluate, expand_inputs, index, pack, submit, verify
from ldm.cli.config.compose import CONFIGS
from ldm.cli.config.paths import INPUTS, OUTPUTS, check_local_paths
from ldm.data.shards.transfer import is_remote
from ldm.errors import UserError
from tests.support.command_line import check_error, run_command

TRAIN = ["experiment=debug/ae", "data.shards=x"]
SAMPLE = ["ckpt=x", "prompts=[a]"]
ENCODE = ["first_stage=x", "shards=x", "out=x", "size=8"]
KEYS: list[tuple[Callable[[], None], list[str], str]] = [
    *((train.main, TRAIN, key) for key in ("run", "resume", "init", "first_stage", "data.index")),
    *((train.main, TRAIN, key) for key in ("data.val_index", "data.cache.folder", "logger.csv.path")),
    (train.main, TRAIN, "callbacks.checkpoint.folder"),
    *((submit.main, [*TRAIN, "dry=true"], key) for key in ("run", "init")),
    *((sample.main, SAMPLE, key) for key in ("ckpt", "weak", "out")),
    (sample.main, [*SAMPLE, "task=img2img"], "task.image"),
    (sample.main, [*SAMPLE, "task=inpaint", "task.image=x"], "task.mask"),
    (sample.main, [*SAMPLE, "task=depth"], "task.map"),
    (sample.main, [*SAMPLE, "task=layout"], "task.boxes"),
    (evaluate.main, ["ckpt=x", "out=x"], "ckpt"),
    (evaluate.main, ["ckpt=x", "out=x"], "out"),
    (pack.main, ["source.path=x", "out=x"], "source.path"),
    (pack.main, ["source.path=x", "out=x"], "out"),
    (pack.main, ["source=table", "source.path=x", "out=x"], "source.path"),
    (pack.main, ["source=emoji", "out=x"], "source.font"),
    (index.main, ["shards=x"], "out"),
    *((verify.main, ["shards=x"], key) for key in ("index", "out")),
    *((encode_latents.main, ENCODE, key) for key in ("first_stage", "index", "out", "cache.folder")),
    *(
        (ema.main, ["ckpt=x", "snapshots=x", "length=0.1", "out=x"], key)
        for key in ("ckpt", "snapshots", "out")
    ),
    *(
        (expand_inputs.main, ["experiment=sd15_inpainting512", "ckpt=x", "out=x"], key)
        for key in ("ckpt", "out")
    ),
]
URLS = ("s3://bucket/x", "https://host/x.safetensors", "file:///tmp/x", "'pipe:cat x'")
FEW = ("run", "out", "weak")


@pytest.mark.parametrize(
    ("main", "words", "key", "url"),
    [
        pytest.param(*case, url, marks=[] if is_tried and url == URLS[0] else pytest.mark.slow)
        for case in KEYS
        for is_tried in [case[2] in FEW and case[0] in (train.main, sample.main)]
        for url in URLS
    ],
)
def test_a_url_as_a_path_is_refused(
    main: Callable[[], None],
    words: list[str],
    key: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command(main, *words, f"{key}={url}")
    check_error(status, err, [f"{key}={url.strip(chr(39))} is a URL"])
    assert not list(tmp_path.iterdir())


def test_compare_refuses_a_url(tmp_path: Path) -> None:
    check_error(*run_command(compare.main, "s3://b/run")[::2], ["RUN=s3://b/run is a URL"])
    check_error(
        *run_command(compare.main, str(tmp_path), "--out", "s3://b/x")[::2], ["--out=s3://b/x is a URL"]
    )


def test_every_key_of_a_path_is_known() -> None:
    """Keys whose comment or default in configs/ speaks of a file or folder are in the lists."""
    known, found = {*INPUTS, *OUTPUTS, "shards", "val_shards", "prompts"}, set()
    for file in CONFIGS.rglob("*.yaml"):
        for line in file.read_text().splitlines():
            match = re.fullmatch(r"\s*(\w+): (\S.*?)(?: # (.*))?", line)
            if match and re.search(r"\b(file|folder|path of)\b|\$\{run\}/", f"{match[2]} {match[3]}"):
                found.add(match[1])
    assert {"run", "resume", "ckpt", "first_stage", "init", "folder", "index", "val_index", "out"} <= found
    assert found - known <= {"name", "_target_"}, found - known


def test_what_is_not_a_path_may_look_like_a_url() -> None:
    config = yaml.safe_load(
        "{negative: 'http://a', prompts: ['s3://a'], data: {shards: s3://a, index: null}}"
    )
    check_local_paths(config)
    with pytest.raises(UserError, match="data.index=s3://a is a URL"):
        check_local_paths({"data": {"index": ["x", "s3://a"]}})
    assert not any(map(is_remote, ["a://", "data/x", "/a:b", "C:\\x", "./s3://x", "${run}/s3://"][1:]))
