"""Encode shards of images into shards of latents: posterior moments, captions, and cached text embeddings."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.data.fields.arrays import to_npy
from ldm.data.fields.captions import CaptionField
from ldm.data.fields.metadata import read_json
from ldm.data.fields.spatial import image_size
from ldm.data.latents import LatentHeader, read_folder_header, write_header
from ldm.data.loading.loader import BatchLoader, sequential_loader
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import Index, load_index
from ldm.data.shards.manifest import ShardEntry, write_manifest
from ldm.data.shards.reader import BadSample, Sample, Shards
from ldm.data.shards.tar import MOMENTS
from ldm.errors import UserError

EncodeImages = Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b two_z h w"]]
"""Returns the posterior mean and standard deviation of square images."""

EncodeText = Callable[[list[str]], dict[str, Tensor]]
"""Returns a frozen text encoder's embeddings of captions and their mask, by the member that stores them."""


@dataclass
class EncodingReport:
    """Counts of one rank's share of the images."""

    images: int = 0
    bad: int = 0
    without_caption: int = 0
    """Images whose text embedding is that of the empty caption."""
    unreadable_shards: tuple[str, ...] = ()
    """Errors of the shards that were left out."""


def write_latents(
    images: Shards,
    out: Path,
    header: LatentHeader,
    encode: EncodeImages,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    encode_text: EncodeText | None = None,
) -> EncodingReport:
    """Write the moments of each shard of images, with their captions, into a shard of the same number.

    Rank r of w encodes every w-th shard. Shards that an earlier call finished, with any number of ranks, are
    kept unless their images have changed. Images that cannot be read are logged, counted and left out. With
    `encode_text`, the embeddings of each caption are stored as well. Raises UserError if the folder contains
    other latents.
    """
    _claim_folder(out, header)
    report, total = EncodingReport(), int(images.counts[rank::world_size].sum())
    with tqdm(total=total, desc="encoding", unit=" images", disable=rank > 0) as progress:
        for number in range(rank, len(images), world_size):
            target, count = out / f"{number:05d}.tar", int(images.counts[number])
            try:
                source = images[number].index
            except BadSample as error:
                report.unreadable_shards += (str(error),)
                continue
            if _is_done(target, source, count):
                progress.update(count)
            else:
                _remove_leftovers(target)
                shard = images.select(number)
                batches = sequential_loader(shard, header.image_fields(), batch_size, num_workers)
                samples = _encode_samples(shard, batches, header, encode, encode_text, progress, report)
                write_shard(target, samples, source.content_hash, source.score)
                report.bad += batches.budget.bad
            report.images += len(load_index(target))
    _write_manifest_if_complete(out, len(images))
    return report


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files that a killed run left of a shard."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink()


def _encode_samples(
    shards: Shards,
    batches: BatchLoader,
    header: LatentHeader,
    encode: EncodeImages,
    encode_text: EncodeText | None,
    progress: tqdm,
    report: EncodingReport,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, members) of each sample of the only shard."""
    caption_field = CaptionField({header.caption: 1.0})
    for batch in batches:
        rows = batch["position"].tolist()
        if rows:
            crops = [batch[field.batch_key] for field in header.image_fields()]  # type: ignore[literal-required]
            mirrored = [crop.flip(3) for crop in crops] if header.flip else []
            moments = torch.stack([encode(x) for x in [*crops, *mirrored]], 1)
            moments = moments if header.variants > 1 else moments[:, 0]
            samples = [shards[0].sample(row) for row in rows]
            columns = {MOMENTS: _to_fp16(moments, samples, "the latent of", "the autoencoder")}
            if encode_text is not None:
                captions = [caption_field(sample, 0) for sample in samples]
                report.without_caption += captions.count("")
                for kind, values in encode_text(captions).items():
                    columns[kind] = _to_fp16(values, samples, "the text embedding of", "the text encoder")
            for i, sample in enumerate(samples):
                arrays = {kind: to_npy(column[i]) for kind, column in columns.items()}
                yield sample.key, {**_copied_members(sample, header), **arrays}
        progress.update(len(rows))


def _copied_members(sample: Sample, header: LatentHeader) -> dict[str, bytes]:
    """Return the members to copy, with the size of the upright image in the json, for its boxes and maps.

    Other tools may state the size as stored, before it is turned by EXIF, or none.
    """
    members = {kind: data for kind, data in sample.members.items() if kind in header.copied_extensions}
    metadata, (height, width) = read_json(sample), image_size(sample)
    if (metadata.get("height"), metadata.get("width")) != (height, width):
        members["json"] = json.dumps({**metadata, "height": height, "width": width}).encode()
    return members


def _to_fp16(values: Tensor, samples: Sequence[Sample], what: str, encoder: str) -> np.ndarray:
    """Return values as fp16; UserError names the first sample whose values do not fit."""
    values = values.float().cpu()
    halves = values.half()
    for sample, value, half in zip(samples, values, halves, strict=True):
        if not half.isfinite().all():
            largest = value.abs().max().item()  # of NaN it is NaN
            problem = f"reaches {largest:.3g}, beyond fp16" if math.isfinite(largest) else "is not finite"
            raise UserError(
                f"{what} sample {sample.key} in {sample.shard} {problem}: train or choose {encoder} so that "
                "its output stays below 65504, e.g. with a larger kl_weight, or remove the sample"
            )
    return halves.numpy()


def _is_done(target: Path, source: Index, count: int) -> bool:
    """Whether an earlier call wrote this shard, from the images and captions as they are now.

    Latents of older versions recorded the hash of names and sizes alone.
    """
    try:
        index = load_index(target)
    except (OSError, UserError):
        return False
    if not any(index.source):
        return len(index) == count
    return index.source in (source.content_hash, source.hash)


def _write_manifest_if_complete(out: Path, shards: int) -> None:
    """Write the folder's manifest if all shards are there: the rank that finishes last does."""
    targets = [out / f"{number:05d}.tar" for number in range(shards)]
    if all(target.is_file() for target in targets):
        write_manifest(out, [ShardEntry.from_index(target, load_index(target)) for target in targets])


def _claim_folder(out: Path, header: LatentHeader) -> None:
    """Write the header; UserError if the folder contains images or other latents."""
    out.mkdir(parents=True, exist_ok=True)
    existing = read_folder_header(out)
    if existing is None and any(out.glob("*.tar")):
        raise UserError(f"{out} contains shards of images: choose another out=FOLDER for the latents")
    if existing not in (None, header):
        raise UserError(f"{out} contains latents of another autoencoder or size: choose another out=FOLDER")
    write_header(header, out)
