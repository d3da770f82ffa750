"""Images of one, three and many channels: read, packed, verified, and the fields derived from them."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.arrays import to_npy
from ldm.data.fields.decode import decode_pixels
from ldm.data.fields.degradations import BSRGANDegradation, Downsampled, Edges
from ldm.data.fields.image import ImageField
from ldm.data.fields.masks import FullMask, MaskedImage
from ldm.data.fields.multichannel import decode_bands
from ldm.data.fields.spatial import BoxField, SizeField
from ldm.data.fields.unreadable import Unreadable, WrongChannelCount
from ldm.data.latents import LatentHeader
from ldm.data.prepare.verify import verify
from ldm.data.prepare.write_latents import write_latents
from ldm.data.prepare.write_shards import write_shard, write_shards
from ldm.data.shards.reader import BadSample, Sample, open_shards
from ldm.data.sources.folder import Folder
from ldm.data.webdataset import ResampledDataModule
from ldm.errors import UserError

RANDOM = np.random.default_rng(0)


def stack(n: int, height: int = 24, width: int = 40) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, n), np.uint8)


def tiff(array: np.ndarray) -> bytes:
    """One grey page per band."""
    file, pages = BytesIO(), [Image.fromarray(array[..., i]) for i in range(array.shape[2])]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def encoded(array: np.ndarray, format: str) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_three_channels_of_an_image_are_its_rgb(format: str) -> None:
    data = encoded(stack(3, 150, 180), format)
    assert torch.equal(decode_bands(data, 3, (20, 20)), decode_pixels(data, (20, 20)))


def test_one_channel_of_an_image_is_its_luma() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [77, 77, 77]]], np.uint8)
    assert decode_bands(encoded(colours, "PNG"), 1).tolist() == [[[76, 150, 29, 77]]]  # BT.601
    assert decode_bands(encoded(stack(1)[..., 0], "JPEG"), 1, (6, 6)).shape == (1, 12, 20)  # reduced, as RGB


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_an_array_has_its_own_bands(n: int) -> None:
    array = stack(n)
    assert np.array_equal(decode_bands(to_npy(array), n).permute(1, 2, 0), array)


def test_an_array_may_have_two_dimensions_and_sixteen_bits() -> None:
    array = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    assert decode_bands(to_npy(array), 1).tolist() == [[[0, 0, 1, 1, 255]]]


def test_a_tiff_has_the_bands_of_its_pages() -> None:
    array = stack(5)
    assert np.array_equal(decode_bands(tiff(array), 5).permute(1, 2, 0), array)
    deep = array.astype(np.uint16) * 257
    assert np.array_equal(decode_bands(tiff(deep), 5).permute(1, 2, 0), array)
    assert decode_bands(tiff(array), 3).shape == (3, 24, 40)  # as any other image: RGB of the first page


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_the_bands_of_a_turned_image_are_turned(format: str) -> None:
    array, file, exif = stack(4), BytesIO(), Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(array).save(file, format, exif=exif, lossless=True, exact=True)
    bands = decode_bands(file.getvalue(), 4)
    assert np.array_equal(bands.permute(1, 2, 0), np.rot90(array, -1))
    assert decode_bands(file.getvalue(), 3).shape[1:] == bands.shape[1:] == (40, 24)


@pytest.mark.parametrize(
    ("data", "channels", "error", "message"),
    [
        (to_npy(stack(5)), 3, WrongChannelCount, "has 5 bands, not 3"),
        (encoded(stack(3), "JPEG"), 5, WrongChannelCount, "has 3 bands, not 5"),
        (
            tiff(stack(7)),
            5,
            WrongChannelCount,
            "has 6 bands, not 5",
        ),  # it reads no more than one page too many
        (to_npy(stack(5).astype(np.float32)), 5, Unreadable, "an array of float32"),
        (to_npy(stack(5)[0, 0]), 5, Unreadable, r"an array of uint8 \(5,\)"),
        (to_npy(stack(5))[:-9], 5, Unreadable, "ValueError"),
        (b"no image", 5, Unreadable, "no image of a known format"),
    ],
)
def test_another_number_of_bands_or_none_is_unreadable(data, channels, error, message) -> None:
    with pytest.raises(error, match=message):
        decode_bands(data, channels)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("position", range(6))
def test_bands_are_resized_cropped_and_flipped_independently(n: int, position: int) -> None:
    array = stack(n, 48, 80)
    sample = Sample(Path("0.tar"), "7", {"npy": to_npy(array)})
    together = ImageField(16, seed=3, random_crop=True, flip=True, channels=n)(sample, position)
    single_field = ImageField(16, seed=3, random_crop=True, flip=True, channels=1)
    for i in range(n):
        single = Sample(Path("0.tar"), "7", {"npy": to_npy(array[..., i])})
        assert torch.equal(together[i], single_field(single, position)[0])


def test_another_number_of_bands_makes_a_bad_sample_that_says_what_to_set() -> None:
    sample = Sample(Path("0.tar"), "7", {"npy": to_npy(stack(5))})
    with pytest.raises(BadSample, match="sample 7 in 0.tar has 5 bands, not 3: set data.channels"):
        ImageField(16, seed=0)(sample, 0)


def test_boxes_and_sizes_use_the_size_of_an_array() -> None:
    json_ = json.dumps({"boxes": [[2, 0.2, 0, 0.5, 0.5]]}).encode()
    sample = Sample(Path("0.tar"), "7", {"npy": to_npy(stack(5)), "json": json_})
    image_field = ImageField(24, seed=0, channels=5)
    assert BoxField(image_field, 1, num_labels=3)(sample, 0)[0].tolist() == [2, 0, 0, 0.5, 0.5]
    assert SizeField(image_field)(sample, 0).tolist() == [24, 40, 0, 8, 24, 24]


@pytest.mark.parametrize("n", [1, 5])
def test_derived_fields_have_the_bands_of_the_image(n: int) -> None:
    row: dict = {"image": torch.from_numpy(stack(n, 32, 32)).permute(2, 0, 1)}
    assert Downsampled(4)(row, 0)["small"].shape == (n, 8, 8)
    assert BSRGANDegradation(4, seed=0)(row, 0)["small"].shape == (n, 8, 8)
    assert Edges()(row, 0)["edges"].shape == (1, 32, 32)
    assert MaskedImage(-1.0)({**row, **FullMask()(row, 0)}, 0)["masked"].shape == (n, 32, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three arrays of 5 bands, a TIFF of 5 pages and an RGB image, each with a caption."""
    (tmp_path / "files").mkdir()
    for i in range(3):
        (tmp_path / "files" / f"{i}.npy").write_bytes(to_npy(stack(5)))
    (tmp_path / "files" / "3.tif").write_bytes(tiff(stack(5)))
    (tmp_path / "files" / "4.jpg").write_bytes(encoded(stack(3), "JPEG"))
    for i in range(5):
        (tmp_path / "files" / f"{i}.txt").write_text(f"number {i}")
    return tmp_path / "files"


@pytest.mark.parametrize("size", [None, 12])
def test_a_folder_of_bands_is_packed_and_read(folder: Path, tmp_path: Path, size: int | None) -> None:
    report = write_shards(Folder(str(folder)), tmp_path / "shards", size=size, channels=5)
    assert report.packed == 4 and report.names == {
        "with another number of channels": ["4.jpg (has 3 bands, not 5)"]
    }
    shards = open_shards(str(tmp_path / "shards"))
    sample = shards[0].sample(0)
    metadata = json.loads(sample.members["json"])
    expected = (24, 40) if size is None else (12, 20)
    assert (metadata["height"], metadata["width"]) == expected and metadata["original_width"] == 40
    original = (folder / "0.npy").read_bytes()
    assert (bytes(sample.members["npy"]) == original) == (size is None)
    images = [ImageField(12, 0, channels=5)(shards[0].sample(row), 0) for row in range(4)]
    assert all(x.shape == (5, 12, 12) for x in images)
    assert verify(shards.paths).num_errors == 0
    with pytest.raises(UserError, match="was packed with channels=5, not 3"):
        write_shards(Folder(str(folder)), tmp_path / "shards", size=size)


def test_a_folder_packed_before_the_channels_option_can_be_continued(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    report = write_shards(Folder(str(folder)), out)
    assert report.packed == 2 and report.skipped == {
        "with another number of channels": 3
    }  # the TIFF's first page
    settings = json.loads((out / "pack.json").read_text())
    assert settings.pop("channels") == 3
    (out / "pack.json").write_text(json.dumps(settings))
    assert write_shards(Folder(str(folder)), out).packed == 2


def module(folder: Path, kind=ShardDataModule, **changes) -> ShardDataModule:
    settings = {"val_shards": None, "global_batch_size": 2, "size": 12, "steps": 3}
    return kind(str(folder), **{**settings, **changes})


@pytest.mark.parametrize("kind", [ShardDataModule, ResampledDataModule])
def test_batches_have_the_requested_channels(folder: Path, tmp_path: Path, kind) -> None:
    write_shards(Folder(str(folder)), tmp_path / "shards", channels=5)
    data = module(tmp_path / "shards", kind, channels=5)
    data.check()
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 5, 12, 12)
    data.check_channels(5)
    with pytest.raises(UserError, match="images of 3 channels .*data.channels=5: .*data.channels=3"):
        data.check_channels(3)


def test_shards_with_another_number_of_bands_are_rejected_before_training(
    folder: Path, tmp_path: Path
) -> None:
    write_shards(Folder(str(folder)), tmp_path / "shards", channels=5)
    with pytest.raises(UserError, match="100 bad samples in a row.* has 5 bands, not 3: set data.channels "):
        module(tmp_path / "shards").check()


def test_fields_derived_from_images_are_rejected_on_latents(tmp_path: Path) -> None:
    members = [(str(i), {"npy": to_npy(stack(5)), "txt": b"a"}) for i in range(4)]
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "00000.tar", members)
    header = LatentHeader("0123", size=12, downsampling=4, channels=2, image_channels=5)

    def encode(x: Tensor) -> Tensor:
        assert x.shape[1] == 5
        return x[:, :4, ::4, ::4].float()

    assert write_latents(open_shards(str(tmp_path / "shards")), tmp_path / "z", header, encode, 2).bad == 0
    data = module(tmp_path / "z", derived_fields=[FullMask()])
    with pytest.raises(
        UserError, match="FullMask in data.derived_fields needs 'image', but .* provides only moments, cap"
    ):
        data.check()
    data.check_channels(3)  # only checks images: the first stage of latents is identified by its hash
    module(tmp_path / "z").check()
