"""Cached posteriors of an autoencoder: shards of `moments.npy`, and `latents.json` that says whose."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.atomic import replacing
from ldm.data.fields.arrays import ArrayField, VariantField, npy
from ldm.data.fields.captions import CaptionField
from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import Field
from ldm.data.loading.loader import BatchLoader, sequential_loader
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import load_index
from ldm.data.shards.manifest import ShardEntry, ShardNames, write_manifest
from ldm.data.shards.reader import BadSample, Shards
from ldm.data.shards.tar import MAPS, MOMENTS
from ldm.errors import UserError

ENCODE = "`python -m ldm.cli.encode_latents`"
PREPROCESSING = "RGB on white, short side by antialiased bicubic, square crop, pixel / 127.5 - 1"

TEXT = "text.npy"

Encode = Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b two_z h w"]]
"""Mean and standard deviation of square images."""

Describe = Callable[[list[str]], Float[Tensor, "b l d"]]
"""A frozen text encoder's states of captions."""


@dataclass
class LatentHeader:
    """Whose latents a folder holds: posterior means and standard deviations of square images."""

    autoencoder: str
    """Hash of the autoencoder's weights."""
    size: int
    """Side of the images, in pixels."""
    downsampling: int
    channels: int
    """Channels of a latent; the moments have twice as many."""
    crops: int = 0
    """Random crops of each image; 0 is the one at its centre."""
    flip: bool = False
    """Each crop mirrored, too."""
    text: str = ""
    """Which frozen encoder's states of the captions lie beside the moments."""
    text_shape: tuple[int, ...] = ()
    image_channels: int = 3
    """Channels of the images."""

    @property
    def variants(self) -> int:
        """Encodings of each image."""
        return max(self.crops, 1) * (1 + self.flip)

    @property
    def keeps(self) -> tuple[str, ...]:
        """Members of a image's sample that stay: maps only where the crop is the one they would get."""
        return ("txt", "json", "cls") + (MAPS if self.variants == 1 and not self.crops else ())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one encoding: means, then standard deviations."""
        side = self.size // self.downsampling
        return 2 * self.channels, side, side

    def readers(self, seed: int) -> list[Field]:
        """What reads an encoding of a sample, drawn by its position where there are several, and its text."""
        one: Field = ArrayField(MOMENTS, "moments", self.shape)
        several: Field = VariantField(ArrayField(MOMENTS, "moments", (self.variants, *self.shape)), seed)
        moments = one if self.variants == 1 else several
        return [moments, ArrayField(TEXT, "text", self.text_shape)] if self.text_shape else [moments]

    def images(self) -> list[Field]:
        """What reads the crops to encode."""
        if not self.crops:
            return [ImageField(self.size, seed=0, channels=self.image_channels)]
        return [
            ImageField(self.size, seed, True, batch_key=f"crop {seed}", channels=self.image_channels)
            for seed in range(self.crops)
        ]


@dataclass
class EncodingReport:
    """What became of a rank's share of the images."""

    images: int = 0
    bad: int = 0
    unreadable: tuple[str, ...] = ()
    """Why whole shards were left out."""


def write_latents(
    images: Shards,
    out: Path,
    header: LatentHeader,
    encode: Encode,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    describe: Describe | None = None,
) -> EncodingReport:
    """Write the moments of each shard of images, with their captions, into a shard of the same number.

    Rank r of w encodes every w-th shard. Shards that an earlier call finished, on whatever number of ranks,
    are kept unless their images have changed since. Images that cannot be read are left out, named and
    counted. With `describe`, the states of each caption lie beside. UserError where the folder holds other
    latents.
    """
    _claim(out, header)
    done, total = EncodingReport(), int(images.counts[rank::world].sum())
    with tqdm(total=total, desc="encoding", unit=" images", disable=rank > 0) as bar:
        for number in range(rank, len(images), world):
            target, count = out / f"{number:05d}.tar", int(images.counts[number])
            try:
                source = images[number].index.hash
            except BadSample as error:
                done.unreadable += (str(error),)
                continue
            if _is_done(target, source, count):
                bar.update(count)
            else:
                _sweep(target)
                batches = sequential_loader(images.only(number), header.images(), batch_size, num_workers)
                encoded = _encoded(images.only(number), batches, header, encode, bar.update, describe)
                write_shard(target, encoded, source)
                done.bad += batches.tally.bad
            done.images += len(load_index(target))
    _note(out, len(images))
    return done


def _sweep(target: Path) -> None:
    """Remove what a run that was killed left of a shard."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink()


def _encoded(
    shards: Shards,
    batches: BatchLoader,
    header: LatentHeader,
    encode: Encode,
    count: Callable[[int], object],
    describe: Describe | None,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for batch in batches:
        rows = batch["position"].tolist()
        if rows:
            crops = [batch[reader.batch_key] for reader in header.images()]  # type: ignore[literal-required]
            mirrored = [crop.flip(3) for crop in crops] if header.flip else []
            moments = torch.stack([encode(x) for x in [*crops, *mirrored]], 1).to("cpu", torch.float16)
            moments = moments if header.variants > 1 else moments[:, 0]
            read = [shards[0].sample(row) for row in rows]
            states = None if describe is None else describe([CaptionField()(sample, 0) for sample in read])
            for i, (sample, own) in enumerate(zip(read, moments.numpy(), strict=True)):
                kept = {kind: data for kind, data in sample.members.items() if kind in header.keeps}
                if states is not None:
                    kept[TEXT] = npy(states[i].to("cpu", torch.float16).numpy())
                yield sample.key, {MOMENTS: npy(own), **kept}
        count(len(rows))


def _is_done(target: Path, source: bytes, count: int) -> bool:
    """Whether an earlier call wrote this shard, from the images as they are now."""
    try:
        index = load_index(target)
    except (OSError, UserError):
        return False
    return index.source == source if any(index.source) else len(index) == count


def _note(out: Path, shards: int) -> None:
    """The folder's manifest, by whichever rank comes last."""
    targets = [out / f"{number:05d}.tar" for number in range(shards)]
    if all(target.is_file() for target in targets):
        write_manifest(out, [ShardEntry.of(target, load_index(target)) for target in targets])


def _claim(out: Path, header: LatentHeader) -> None:
    out.mkdir(parents=True, exist_ok=True)
    before = _read_header(out)
    if before is None and any(out.glob("*.tar")):
        raise UserError(f"{out} holds shards of images: choose another out=FOLDER for the latents")
    if before not in (None, header):
        raise UserError(f"{out} holds latents of another autoencoder or size: choose another out=FOLDER")
    write_header(header, out)


def write_header(header: LatentHeader, folder: Path) -> None:
    """Write `latents.json`."""
    fields = {"format": 2, **asdict(header), "preprocessing": PREPROCESSING}
    with replacing(folder / "latents.json") as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n")


def read_header(*shards: Sequence[Path]) -> LatentHeader | None:
    """The header of the folders that these shards lie in; None where they hold images."""
    folders = set[Path]()
    for paths in shards:
        folders |= {paths.folder} if isinstance(paths, ShardNames) else {path.parent for path in paths}
    headers = {folder: _read_header(folder) for folder in sorted(folders)}
    first, *others = headers
    for folder in others:
        if headers[folder] != headers[first]:
            raise UserError(f"{first} and {folder} differ in what they hold: write both alike, with {ENCODE}")
    return headers[first]


def _read_header(folder: Path) -> LatentHeader | None:
    try:
        fields = json.loads((folder / "latents.json").read_text())
    except FileNotFoundError:
        return None
    if fields.pop("format") not in (1, 2) or fields.pop("preprocessing", PREPROCESSING) != PREPROCESSING:
        raise UserError(
            f"the latents in {folder} were made by another version, from images prepared in another way: "
            f"encode them again with {ENCODE}"
        )
    return LatentHeader(**{**fields, "text_shape": tuple(fields.get("text_shape", ()))})
