"""Every command reads every form of remote shards, as it reads the same shards in a local folder."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

import train
from ldm.cli import doctor, encode_latents, index, submit, verify
from ldm.cli.config.compose import compose
from ldm.data.datamodule import ShardDataModule
from ldm.data.demo.scenes import DemoScenes
from ldm.data.order.filters import AspectBuckets, Filter
from ldm.data.order.options import OrderOptions
from ldm.data.prepare.write_shards import write_shards
from ldm.data.shards import transfer
from ldm.data.shards.index import read_index
from ldm.data.shards.remote import Cache
from ldm.data.webdataset import ResampledDataModule
from ldm.errors import UserError
from tests.support.command_line import check_error, run_command
from tests.support.remote_shards import Server, s3_on_disk, serve

NAMES = "{00000..00002}.tar"
FORMS = {
    "http": "{url}/shards",
    "http pattern": f"{{url}}/shards/{NAMES}",
    "file": "file://{root}/shards",
    "file pattern": f"file://{{root}}/shards/{NAMES}",
    "s3": "s3://shards",
    "s3 pattern": f"s3://shards/{NAMES}",
    "pipe": f"pipe:cat {{root}}/shards/{NAMES}",
    "pipe of two commands": f"pipe:cat {{root}}/shards/{NAMES} | cat -",
}


def sampled(*forms: str) -> list:
    """Return all forms, of which only these are tried in the normal run."""
    return [form if form in forms else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three shards of scenes, which the tests do not change, and one of validation."""
    root = tmp_path_factory.mktemp("remote")
    write_shards(DemoScenes("train", 12), root / "shards", shard_size=5)
    write_shards(DemoScenes("held_out", 4), root / "val")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serve(root) as server, s3_on_disk(root):
        yield server


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.data.shards.transfer.time.sleep", lambda _: None)


def spec(form: str, server: Server, root: Path) -> str:
    # a brace pattern is kept, so str.format does not apply
    return FORMS[form].replace("{url}", server.url).replace("{root}", str(root))


def quoted(text: str | list[str]) -> str:
    """Return shards as an override's value."""
    return f"'{text}'" if isinstance(text, str) else f"[{','.join(map(quoted, text))}]"


def index_of(form: str, root: Path) -> str | None:
    """Return the folder of the indexes where a command yields none."""
    return str(root / "shards") if form.startswith("pipe") else None


def loaded(module: ShardDataModule) -> list[dict]:
    """Return the values of all training and validation batches."""
    module.check()
    loaders = [module.train_dataloader(), module.val_dataloader()]
    batches = [batch for loader in loaders for batch in loader]  # type: ignore[union-attr]
    return [{k: v.tolist() if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["shards", "buckets", "webdataset"])
def test_batches_are_those_of_the_local_folder(
    server: Server, root: Path, tmp_path: Path, form: str, kind: str
) -> None:
    def batches(shards: str, index: str | None, cache: Cache | None) -> list[dict]:
        settings = {"val_index": index, "cache": cache}
        if kind == "webdataset":
            return loaded(ResampledDataModule(shards, shards, 4, 32, 6, **settings))
        order = OrderOptions(window=2)
        if kind == "buckets":
            order = OrderOptions(filter=Filter(min_size=32), buckets=AspectBuckets([[32, 32], [16, 32]]))
        return loaded(ShardDataModule(shards, shards, 4, 32, 6, order=order, index=index, **settings))

    remote = batches(spec(form, server, root), index_of(form, root), Cache(str(tmp_path / "cache"), 1))
    local = batches(str(root / "shards"), None, None)
    assert len(local) == 7 and remote == local


@pytest.mark.parametrize("weights", [None, [0.3, 0.3, 0.4]])
def test_lists_of_remote_and_local_folders(
    server: Server, root: Path, tmp_path: Path, weights: list[float] | None
) -> None:
    """As in a list of three local folders, also where the names of the shards are the same."""
    cache, order = Cache(str(tmp_path / "cache"), 1), OrderOptions(weights=weights)
    local = [str(root / "shards"), str(root / "val"), str(root / "shards")]
    mixed = ["s3://shards", str(root / "val"), f"pipe:cat {root}/shards/{NAMES}"]
    index = [None, None, str(root / "shards")]
    expected = loaded(ShardDataModule(local, local[:2], 4, 32, 9, order=order))
    module = ShardDataModule(mixed, mixed[:2], 4, 32, 9, order=order, index=index, cache=cache)
    assert loaded(module) == expected
    assert {b["key"][0] for b in expected} and sum(len(b["key"]) for b in expected) >= 36
    with pytest.raises(UserError, match="data.index has 1 folders for 3 items of data.shards"):
        ShardDataModule(mixed, None, 4, 32, 9, index="x", cache=cache).check()
    with pytest.raises(UserError, match="data.val_index has 1 folders for 2 items of data.val_shards"):
        ShardDataModule(local, mixed[:2], 4, 32, 9, val_index="x", cache=cache).check()


def test_the_commands_of_the_guide_can_be_parsed() -> None:
    """Its patterns and commands have the quotes that Hydra needs."""
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "data.md").read_text()
    commands = re.findall(r"^python train.py experiment=ldm_f8_text (.*data.shards=.*)$", guide, re.MULTILINE)
    words = [["experiment=debug/ae", *shlex.split(command)] for command in commands]
    shards = [compose("train", each).data.shards for each in words]
    assert len(shards) == 4 and shards[1].endswith("/images/{00000..00999}.tar")
    assert shards[2] == ["s3://a/images", "gs://b/images", "data/more"] and shards[3].startswith(
        "pipe:aws s3 cp"
    )


def train_weights(run: Path, *words: str) -> dict[str, Tensor]:
    """Train and return the tensors of the model file."""
    words = (*words, f"run={run}", f"data.cache.folder={run.parent / 'cache'}", "trainer.max_steps=5")
    status, _, err = run_command(train.main, *words)
    assert status == 0, err
    return load_file(next(run.glob("*.safetensors")))


def check_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


AE = ("experiment=debug/ae", "data.size=64", "data.global_batch_size=4", "data.num_workers=0")


@pytest.fixture(scope="module")
def first_stage(root: Path) -> Path:
    train_weights(root / "ae" / "run", *AE, f"data.shards={root}/shards")
    return root / "ae" / "run" / "autoencoder.safetensors"


@pytest.mark.parametrize("form", sampled("http"))
def test_training_from_a_url_gives_the_weights_of_the_local_folder(
    server: Server, root: Path, tmp_path: Path, form: str, first_stage: Path
) -> None:
    words = [
        f"data.shards={quoted(spec(form, server, root))}",
        f"data.index={index_of(form, root) or 'null'}",
    ]
    remote = train_weights(tmp_path / "remote", *AE, *words, f"data.val_shards={server.url}/val")
    check_equal(remote, load_file(first_stage))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_training_on_the_resampled_stream(server: Server, root: Path, tmp_path: Path, form: str) -> None:
    ae = ("experiment=debug/ae", "data=webdataset", *AE[1:])
    remote = train_weights(tmp_path / "remote", *ae, f"data.shards={quoted(spec(form, server, root))}")
    check_equal(remote, train_weights(tmp_path / "local", *ae, f"data.shards={root}/shards"))


@pytest.mark.slow
def test_encoding_from_a_url_and_training_on_remote_latents(
    server: Server, root: Path, tmp_path: Path, first_stage: Path
) -> None:
    """The latents are those encoded from the local folder, and stage 2 trains on them from S3."""
    common = [f"first_stage={first_stage}", "size=64", "device=cpu"]
    for name, shards in [("local", f"{root}/shards"), ("latents", f"{server.url}/shards")]:
        cache = f"cache.folder={tmp_path / 'cache'}"
        status, out, err = run_command(
            encode_latents.main, *common, f"shards={shards}", f"out={root / name}", cache
        )
        assert status == 0 and "wrote the latents of 12 images" in out, err
    for path in (root / "local").glob("*.tar"):
        assert path.read_bytes() == (root / "latents" / path.name).read_bytes()
    words = ["experiment=debug/text", f"first_stage={first_stage}", "data.size=64", "stage.prompts=[]"]
    remote = train_weights(tmp_path / "remote", *words, "data.shards=s3://latents")
    check_equal(remote, train_weights(tmp_path / "local", *words, f"data.shards={root}/latents"))
    pipe = f"data.shards='pipe:cat {root}/latents/{NAMES}'"
    from_pipe = train_weights(tmp_path / "pipe", *words, pipe, f"data.index={root}/latents")
    check_equal(remote, from_pipe)


@pytest.mark.parametrize("form", sampled("http"))
def test_index_and_verify(server: Server, root: Path, tmp_path: Path, form: str) -> None:
    """The index is the one that pack wrote; it is written to a folder here, with which training starts."""
    words = [f"shards={quoted(spec(form, server, root))}", "workers=1", "facts=true", "sums=true"]
    check_error(
        *run_command(index.main, *words)[::2], ["cannot be written", "out=FOLDER", "data.index=FOLDER"]
    )
    status, out, err = run_command(index.main, *words, f"out={tmp_path / 'index'}")
    assert status == 0 and "12 samples in 3 shards, 3 of them new" in out, err
    for name in ("00000", "00001", "00002"):
        ours, packed = (
            read_index(folder / f"{name}.index") for folder in (tmp_path / "index", root / "shards")
        )
        assert ours is not None and packed is not None and ours.hash == packed.hash
        assert (
            np.array_equal(ours.rows, packed.rows, equal_nan=False)
            or ours.rows.tobytes() == packed.rows.tobytes()
        )
        assert ours.checksums is not None and np.array_equal(ours.checksums, packed.checksums)
    module = ShardDataModule(
        spec(form, server, root), None, 4, 32, 3, index=str(tmp_path / "index"), cache=Cache(str(tmp_path), 1)
    )
    assert len(loaded(module)) == 3
    again = run_command(index.main, *words, f"out={tmp_path / 'index'}")[1]
    assert "3 of them new" in again if form.startswith("pipe") else "0 of them new" in again
    words = [words[0], f"index={tmp_path / 'index'}", "workers=1"]
    status, out, err = run_command(verify.main, *words)
    assert status == 0 and "12 samples in 3 shards" in out and "no errors" in out, err


def test_an_unchanged_remote_shard_is_not_fetched_to_index_it_again(
    server: Server, root: Path, tmp_path: Path
) -> None:
    write_shards(DemoScenes("train", 6), root / "other", shard_size=3)
    words = [f"shards={server.url}/other", f"out={tmp_path}", "workers=1"]
    run_command(index.main, *words)
    server.requests.clear()
    assert "0 of them new" in run_command(index.main, *words)[1]
    assert "/other/00000.tar" not in server.requests and "/other/manifest.npy" in server.requests
    write_shards(DemoScenes("held_out", 5), root / "third", shard_size=4)
    (root / "third" / "00000.tar").replace(root / "other" / "00001.tar")
    out = run_command(index.main, *words)[1]
    assert f"{server.url}/other/00001.tar holds 4 samples and was written with 3" in out
    (root / "other" / "00001_stats.json").unlink()
    assert "1 of them new" in run_command(index.main, *words)[1]
    assert server.requests["/other/00001.tar"] == 2 and "/other/00000.tar" not in server.requests


def test_verify_names_the_url_of_what_is_wrong(server: Server, root: Path, tmp_path: Path) -> None:
    write_shards(DemoScenes("train", 6), root / "broken", shard_size=3)
    with open(root / "broken" / "00001.tar", "rb+") as file:
        file.seek(520)
        file.write(b"\xff")
    server.denied.add("/broken/00000.tar")
    words = [f"shards={server.url}/broken", "workers=1", f"out={tmp_path}/report.json"]
    status, out, err = run_command(verify.main, *words)
    check_error(status, err, ["errors in", f"{server.url}/broken"])
    assert "3 samples in 2 shards" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["unreachable shard"] == [f"{server.url}/broken/00000.tar: 403 Forbidden"]
    assert any(
        f"sample number 0 of {server.url}/broken/00001.tar" in x
        for x in report["changed since it was indexed"]
    )


def test_doctor_reads_remote_shards_and_submit_does_not(server: Server, root: Path, tmp_path: Path) -> None:
    words = [
        f"data.shards={server.url}/shards",
        f"run={tmp_path / 'run'}",
        f"data.cache.folder={tmp_path / 'c'}",
    ]
    words = ["experiment=debug/ae", *words]
    status, out, err = run_command(submit.main, *words, "dry=true", "gpus=0", "tasks=1")
    assert status == 0 and not list((tmp_path / "c").glob("*/*.tar")), err
    status, out, err = run_command(doctor.main, *words)
    assert status == 0 and f"12 samples in 3 shard(s) of {server.url}/shards" in out, err
    words[1] = f"data.shards={server.url}/nowhere"
    for main in (train.main, submit.main, doctor.main):
        status, out, err = run_command(
            main, *words, *(["dry=true", "gpus=0", "tasks=1"] if main == submit.main else [])
        )
        assert status == 2 and "/nowhere has no manifest.npy" in out + err


@pytest.mark.slow
def test_submit_leaves_shards_that_it_cannot_reach_to_the_job(server: Server, tmp_path: Path) -> None:
    words = ["experiment=debug/ae", f"run={tmp_path / 'run'}", f"data.cache.folder={tmp_path / 'c'}"]
    job = ["dry=true", "gpus=0", "tasks=1"]
    server.denied.add("/shards/manifest.npy")
    for shards in (f"{server.url}/shards", "http://127.0.0.1:9/shards"):
        status, out, err = run_command(submit.main, *words, f"data.shards={shards}", *job)
        assert status == 0 and "not checked here" in err and f"{shards}/manifest.npy cannot be read" in err
        check_error(
            *run_command(train.main, *words, f"data.shards={shards}")[::2],
            ["cannot be read", "check the URL"],
        )
    check_error(
        *run_command(submit.main, *words, "data.shards=gs://bucket/x", *job)[::2], ["gs://bucket", "gcsfs"]
    )


def test_a_server_that_fails_at_first_is_asked_again(server: Server, root: Path, tmp_path: Path) -> None:
    """Three failures of each kind are survived, in the manifest and in a shard; a fourth ends the run."""

    def module() -> ShardDataModule:
        return ShardDataModule(f"{server.url}/shards", None, 4, 32, 3, cache=Cache(str(tmp_path), 1))

    server.failures = {"/shards/manifest.npy": [503, 0, 500], "/shards/00000.tar": [0, 0, 503]}
    expected = loaded(ShardDataModule(str(root / "shards"), None, 4, 32, 3))
    assert loaded(module()) == expected and server.requests["/shards/00000.tar"] == 4
    server.failures = {"/shards/manifest.npy": [503] * transfer.MAX_ATTEMPTS}
    with pytest.raises(
        UserError, match=r"/shards/manifest.npy cannot be read \(503 .*\): check the URL and the network"
    ):
        module().check()


def test_a_resampled_stream_skips_a_shard_that_cannot_be_read(
    server: Server, root: Path, tmp_path: Path
) -> None:
    def module() -> ResampledDataModule:
        cache = Cache(str(tmp_path), 1)
        return ResampledDataModule(
            f"{server.url}/shards", None, 4, 32, 20, buffer=5, max_bad_rate=1, cache=cache
        )

    server.denied.add("/shards/00001.tar")
    loader = module().train_dataloader()
    batches = list(loader)
    assert {int(Path(key).name[:5]) for batch in batches for key in batch["key"]} == {0, 2}
    assert loader.budget.bad > 0 and len(batches) == 20
    server.denied |= {"/shards/00000.tar", "/shards/00002.tar"}
    for path in tmp_path.glob("*/*.tar"):
        path.unlink()
    with pytest.raises(
        UserError, match="100 bad samples in one batch; the last: .*/shards/0000.*403 Forbidden"
    ):
        list(module().train_dataloader())


def test_a_cached_shard_that_has_changed_is_fetched_again(server: Server, root: Path, tmp_path: Path) -> None:
    def values(module: Callable[..., ShardDataModule], shards: str) -> list[dict]:
        return loaded(module(shards, None, 4, 32, 6, cache=Cache(str(tmp_path), 1)))

    for scenes in ("train", "held_out"):
        folder = root / f"changing {scenes}"
        write_shards(DemoScenes(scenes, 12 if scenes == "train" else 10), folder, shard_size=5)
    link = root / "changing"
    for scenes in ("train", "held_out"):
        link.unlink(missing_ok=True)
        link.symlink_to(root / f"changing {scenes}")
        for module in (ShardDataModule, ResampledDataModule):
            assert values(module, f"{server.url}/changing") == values(module, str(link))
