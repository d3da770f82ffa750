"""Cached latents: shards of posterior moments (`moments.npy`) with a header, `latents.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.atomic import write_atomically
from ldm.data.fields.arrays import ArrayField, VariantField
from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import Field
from ldm.data.shards.manifest import ShardNames
from ldm.data.shards.tar import MAPS, MOMENTS
from ldm.errors import UserError

ENCODE_COMMAND = "`python -m ldm.cli.encode_latents`"
HEADER_FILE = "latents.json"
PREPROCESSING = "RGB on white, short side by antialiased bicubic, square crop, pixel / 127.5 - 1"
TEXT, TEXT_MASK = "text.npy", "text_mask.npy"


@dataclass
class LatentHeader:
    """The settings with which a folder of latents was encoded from square images."""

    autoencoder: str
    """Hash of the autoencoder's weights."""
    size: int
    """Height and width of the images, in pixels."""
    downsampling: int
    """Downsampling factor of the autoencoder."""
    channels: int
    """Channels of a latent; the moments have twice as many."""
    crops: int = 0
    """Random crops per image; 0 is a single centre crop."""
    flip: bool = False
    """Whether each crop is also encoded mirrored."""
    text: str = ""
    """Name and hash of the frozen text encoder whose embeddings of the captions are stored; "" for none."""
    text_shape: tuple[int, ...] = ()
    """Shape of a caption's embeddings."""
    text_mask: bool = False
    """Whether the mask of the text's tokens is stored, 1 for tokens that are no padding."""
    image_channels: int = 3
    """Channels of the images."""
    caption: str = "txt"
    """The source of the captions whose embeddings are stored, as in `CaptionField`."""

    @property
    def variants(self) -> int:
        """Number of encodings per image, one for each crop and flip."""
        return max(self.crops, 1) * (1 + self.flip)

    @property
    def copied_extensions(self) -> tuple[str, ...]:
        """Extensions of the members copied from the image shards; maps only with a single centre crop."""
        return ("txt", "json", "cls") + (MAPS if self.variants == 1 and not self.crops else ())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one encoding: means, then standard deviations."""
        side = self.size // self.downsampling
        return 2 * self.channels, side, side

    def fields(self, seed: int) -> list[Field]:
        """Return the fields of a sample: an encoding, chosen by (seed, position), and the text embeddings."""
        moments: Field = ArrayField(MOMENTS, "moments", self.shape)
        if self.variants > 1:
            moments = VariantField(ArrayField(MOMENTS, "moments", (self.variants, *self.shape)), seed)
        fields = [moments]
        if self.text_shape:
            fields.append(ArrayField(TEXT, "text", self.text_shape))
        if self.text_mask:
            fields.append(ArrayField(TEXT_MASK, "text_mask", self.text_shape[:1]))
        return fields

    def image_fields(self) -> list[Field]:
        """Return the fields that read the crops to encode."""
        if not self.crops:
            return [ImageField(self.size, seed=0, channels=self.image_channels)]
        return [
            ImageField(self.size, seed, True, batch_key=f"crop {seed}", channels=self.image_channels)
            for seed in range(self.crops)
        ]


def write_header(header: LatentHeader, folder: Path) -> None:
    """Write `latents.json`."""
    fields = {"format": 2, **asdict(header), "preprocessing": PREPROCESSING}
    with write_atomically(folder / HEADER_FILE) as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n")


def read_header(*shards: Sequence[Path]) -> LatentHeader | None:
    """Return the header that the folders of these shards share; None if they contain images.

    Raises UserError if their headers differ.
    """
    folders = set[Path]()
    for paths in shards:
        folders |= {paths.folder} if isinstance(paths, ShardNames) else {path.parent for path in paths}
    headers = {folder: read_folder_header(folder) for folder in sorted(folders)}
    first, *others = headers
    for folder in others:
        if headers[folder] != headers[first]:
            raise UserError(
                f"{first} and {folder} contain different latents, or latents and images: encode both "
                f"with the same settings of {ENCODE_COMMAND}"
            )
    return headers[first]


def read_folder_header(folder: Path) -> LatentHeader | None:
    """Return a folder's header, None if it contains images; UserError for other preprocessing."""
    try:
        fields = json.loads((folder / HEADER_FILE).read_text())
    except FileNotFoundError:
        return None
    if fields.pop("format") not in (1, 2) or fields.pop("preprocessing", PREPROCESSING) != PREPROCESSING:
        raise UserError(
            f"the latents in {folder} were encoded by a version of ldm that preprocessed images differently: "
            f"encode them again with {ENCODE_COMMAND}"
        )
    return LatentHeader(**{**fields, "text_shape": tuple(fields.get("text_shape", ()))})
