import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.fields.captions import CaptionField
from ldm.data.fields.image import ImageField
from ldm.data.fields.spatial import BoxField, SegmentationField, SizeField
from ldm.data.latents import TEXT, LatentHeader, read_header
from ldm.data.loading.loader import sequential_loader
from ldm.data.prepare.write_latents import write_latents
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import load_index, save_index
from ldm.data.shards.reader import Shards, open_shards
from ldm.data.shards.tar import MOMENTS
from ldm.errors import UserError
from tests.data.conftest import png
from tests.data.prepare.test_write_shards import content
from tests.support.image_cases import Case

HEADER = LatentHeader(autoencoder="0123456789abcdef", size=8, downsampling=4, channels=2)


def encode(image: Tensor) -> Tensor:
    """Return moments (b 4 2 2) that equal the image's colours up to a constant."""
    return image[:, (0, 1, 2, 2), ::4, ::4].float() + torch.tensor([0, 0, 0.5, 0.25])[:, None, None]


def test_written_moments_are_read_back_with_their_captions(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    write_latents(pack(5, 3), tmp_path / "new" / "latents", HEADER, encode, batch_size=2)
    shards = open_shards(str(tmp_path / "new" / "latents"))
    assert read_header(shards.paths) == HEADER and HEADER.shape == (4, 2, 2)
    batches = list(sequential_loader(shards, [*HEADER.fields(0), CaptionField()], batch_size=8))
    assert batches[0]["key"][5] == "000010000" and batches[0]["caption"][6] == "s1 r1"
    assert batches[0]["moments"].dtype == torch.float16
    assert batches[0]["moments"][6, :, 0, 0].tolist() == [1, 1, 99.5, 99.25]


def test_a_mirrored_image_is_the_second_variant(tmp_path: Path) -> None:
    image, file = Image.new("RGB", (8, 8)), BytesIO()
    image.paste((200, 100, 50), (0, 0, 4, 8))  # the left half
    image.save(file, "PNG")
    (tmp_path / "images").mkdir()
    write_shard(tmp_path / "images" / "0.tar", [("a", {"png": file.getvalue()})])
    header = replace(HEADER, flip=True)
    write_latents(open_shards(str(tmp_path / "images")), tmp_path / "z", header, encode, batch_size=1)
    moments = np.load(BytesIO(open_shards(str(tmp_path / "z"))[0].sample(0).read(MOMENTS)))
    assert moments.shape == (2, 4, 2, 2) and moments[0, 0].tolist() == [[200, 0], [200, 0]]
    assert np.array_equal(moments[1], moments[0, :, :, ::-1])


@pytest.mark.parametrize("metadata", [{}, {"width": 24, "height": 16}, {"width": 16, "height": 24}])
def test_boxes_and_maps_of_latents_follow_the_upright_image(tmp_path: Path, metadata: dict) -> None:
    boxes = {"boxes": [[1, 0.0, 0.25, 0.5, 0.75]]}
    case = Case("L", "PNG", orientation=6)  # 24 x 16 once upright
    members = {"png": case.data(), "seg.png": case.data(), "json": json.dumps({**boxes, **metadata}).encode()}
    (tmp_path / "images").mkdir()
    write_shard(tmp_path / "images" / "0.tar", [("0", members)])
    images = open_shards(str(tmp_path / "images"))
    write_latents(images, tmp_path / "z", HEADER, encode, batch_size=1)
    latents = open_shards(str(tmp_path / "z"))
    image_field = ImageField(HEADER.size, seed=0)
    fields = [BoxField(image_field, 1, num_labels=2), SizeField(image_field), SegmentationField(image_field)]
    for field in fields:
        ours, theirs = (field(shards[0].sample(0), 0) for shards in (latents, images))
        assert torch.equal(ours, theirs), field
    assert latents[0].index.rows[["width", "height"]].tolist() == [(24, 16)]


def test_finished_shards_are_kept(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images, out = pack(4, 4, 4), tmp_path / "latents"
    calls = 0

    def fail_in_the_second_shard(image: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(image)

    with pytest.raises(KeyboardInterrupt):
        write_latents(images, out, HEADER, fail_in_the_second_shard, batch_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["00000.index", "00000.tar", "latents.json"]
    write_latents(images, out, HEADER, fail_in_the_second_shard, batch_size=2)
    assert calls == 4 + 4 and open_shards(str(out)).counts.tolist() == [4, 4, 4]


def test_a_folder_with_other_contents_is_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images, out = pack(2), tmp_path / "latents"
    write_latents(images, out, HEADER, encode, batch_size=2)
    other = LatentHeader("another", size=8, downsampling=4, channels=2)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        write_latents(images, out, other, encode, batch_size=2)
    with pytest.raises(UserError, match="contains shards of images.*out=FOLDER"):
        write_latents(images, tmp_path / "shards", HEADER, encode, batch_size=2)


def test_the_number_of_ranks_changes_nothing(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images = pack(3, 2, 4, 1, 2)
    write_latents(images, tmp_path / "one", HEADER, encode, batch_size=2)
    for rank in (2, 0, 1):
        report = write_latents(images, tmp_path / "three", HEADER, encode, 2, rank=rank, world_size=3)
        assert report.images == sum(n for i, n in enumerate((3, 2, 4, 1, 2)) if i % 3 == rank)
    one, three = (
        {path.name: content(path) for path in (tmp_path / name).iterdir()} for name in ("one", "three")
    )
    assert one == three and "manifest.npy" in one


def test_a_killed_run_leaves_no_partial_shard_and_continues_on_another_number_of_ranks(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    images, out = pack(3, 3, 3, 3), tmp_path / "latents"
    for rank in range(2):
        calls = iter(range(100))

        def interrupt_in_the_second_shard(image: Tensor, calls: Iterator[int] = calls) -> Tensor:
            if next(calls) == 3:
                (out / f".0000{rank + 2}.tar.99.tmp").write_bytes(b"half")  # noqa: B023
                raise KeyboardInterrupt
            return encode(image)

        with pytest.raises(KeyboardInterrupt):
            write_latents(images, out, HEADER, interrupt_in_the_second_shard, 2, rank=rank, world_size=2)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    before = [(out / f"0000{i}.tar").stat().st_ino for i in range(2)]
    for rank in range(3):
        write_latents(images, out, HEADER, encode, 2, rank=rank, world_size=3)
    assert [(out / f"0000{i}.tar").stat().st_ino for i in range(2)] == before
    assert open_shards(str(out)).counts.tolist() == [3, 3, 3, 3] and not list(out.glob(".*.tmp"))


def test_latents_of_changed_images_are_encoded_again(pack: Callable[..., Shards], tmp_path: Path) -> None:
    out = tmp_path / "latents"
    write_latents(pack(3, 3), out, HEADER, encode, 2)
    before = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    other = [(f"9{row}", {"png": png((row, 7, 7)), "txt": b"another"}) for row in range(3)]
    write_shard(tmp_path / "shards" / "00001.tar", other)
    write_latents(open_shards(str(tmp_path / "shards")), out, HEADER, encode, 2)
    after = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    assert after[0] == before[0] and after[1] != before[1]
    assert open_shards(str(out))[1].sample(0).read("txt") == b"another"


def test_a_caption_that_was_replaced_by_one_of_the_same_length_is_encoded_again(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    out, folder = tmp_path / "latents", tmp_path / "shards"
    images = pack(1, 1)
    write_latents(images, out, HEADER, encode, 2)
    before = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    sample = images[1].sample(0)
    assert sample.read("txt") == b"s1 r0"
    write_shard(folder / "00001.tar", [(sample.key, {**sample.members, "txt": b"other"})])
    write_latents(open_shards(str(folder)), out, HEADER, encode, 2)
    after = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    assert after[0] == before[0] and after[1] != before[1]
    assert open_shards(str(out))[1].sample(0).read("txt") == b"other"


def test_latents_of_an_older_version_are_kept(pack: Callable[..., Shards], tmp_path: Path) -> None:
    out, images = tmp_path / "latents", pack(2)
    write_latents(images, out, HEADER, encode, 2)
    target, old = out / "00000.tar", images[0].index.hash
    save_index(load_index(target).with_header(source=old), target)
    before = target.stat().st_ino
    write_latents(images, out, HEADER, encode, 2)
    assert target.stat().st_ino == before and old != images[0].index.content_hash


def test_unreadable_images_are_left_out_and_counted(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images, out = pack(3, 2), tmp_path / "latents"
    samples = [("a", {"png": png((1, 1, 1))}), ("b", {"png": b"<html>"}), ("c", {"png": b""})]
    write_shard(tmp_path / "shards" / "00000.tar", samples)
    (tmp_path / "shards" / "00001.tar").write_bytes(b"not a tar")
    report = write_latents(Shards(images.paths, [3, 2]), out, HEADER, encode, 2)
    assert (report.images, report.bad, len(report.unreadable_shards)) == (1, 2, 1)
    assert "00001.tar" in report.unreadable_shards[0]
    assert len(open_shards(str(out))[0]) == 1
    calls: list[int] = []
    write_latents(Shards(images.paths, [3, 2]), out, HEADER, lambda x: calls.append(1) or encode(x), 2)
    assert not calls, "the shard is finished, although it has fewer samples"


@pytest.mark.parametrize(
    ("value", "problem"),
    [(float("nan"), "is not finite"), (float("inf"), "is not finite"), (-7e4, "reaches 7e.04, beyond fp16")],
)
@pytest.mark.parametrize("of_text", [False, True])
def test_an_output_that_does_not_fit_fp16_is_refused(
    pack: Callable[..., Shards], tmp_path: Path, value: float, problem: str, of_text: bool
) -> None:
    def spoil(batch: Tensor) -> Tensor:
        batch[-1, -1, -1] = value  # the last sample of the second shard's first batch is bad
        return batch

    def encode_and_spoil(image: Tensor) -> Tensor:
        is_second_shard = image[0, 0, 0, 0] == 1
        return spoil(encode(image)) if is_second_shard and not of_text else encode(image)

    def encode_text(captions: list[str]) -> dict[str, Tensor]:
        states = torch.ones(len(captions), 2, 3)
        return {TEXT: spoil(states) if captions[0].startswith("s1") and of_text else states}

    what, name = ("text embedding", "text encoder") if of_text else ("latent", "autoencoder")
    with pytest.raises(
        UserError, match=f"the {what} of sample 000010001 in .*00001.tar {problem}.* the {name}"
    ):
        out = tmp_path / "latents"
        write_latents(pack(3, 3), out, HEADER, encode_and_spoil, 2, encode_text=encode_text)
    assert [path.name for path in (tmp_path / "latents").glob("*.tar")] == ["00000.tar"]


def test_the_largest_number_of_fp16_is_kept(pack: Callable[..., Shards], tmp_path: Path) -> None:
    out = tmp_path / "latents"
    write_latents(pack(1), out, HEADER, lambda image: torch.full((1, 4, 2, 2), 65504.0), 2)
    (batch,) = sequential_loader(open_shards(str(out)), HEADER.fields(0), batch_size=1)
    assert (batch["moments"] == 65504).all()


def test_embeddings_are_of_the_caption_that_the_header_names(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    samples = [
        ("a", {"png": png((1, 1, 1)), "json": b'{"long": "four"}'}),
        ("b", {"png": png((2, 2, 2)), "json": b"{}", "txt": b"unused"}),
    ]
    write_shard(tmp_path / "shards" / "0.tar", samples)
    header = replace(HEADER, text="lengths", text_shape=(1,), caption="json.long")
    report = write_latents(
        open_shards(str(tmp_path / "shards")),
        tmp_path / "latents",
        header,
        encode,
        batch_size=2,
        encode_text=lambda captions: {TEXT: torch.tensor([[float(len(c))] for c in captions])},
    )
    latents = open_shards(str(tmp_path / "latents"))
    assert read_header(latents.paths) == header and report.without_caption == 1
    (batch,) = sequential_loader(latents, header.fields(0), batch_size=2)
    assert batch["text"].tolist() == [[4], [0]]
