"""How fast samples are read: images against Pillow and WebDataset, latents, indexes, seeking."""

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision import transforms

from ldm.data.fields.arrays import ArrayField, npy
from ldm.data.fields.captions import CaptionField
from ldm.data.fields.decode import pixels, to_tensor
from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import Field, ShardStream
from ldm.data.order.shuffle import SequentialOrder, ShuffledOrder
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import build_index
from ldm.data.shards.reader import Sample, Shards, open_shards
from ldm.data.shards.tar import MOMENTS

SIZES = [(256, 256), (512, 384), (1024, 768), (2048, 1536)]
LATENT = (8, 32, 32)
"""Moments of a 256 px image at f8 with 4 channels: 16 KB."""
LATENTS, BATCH = 2000, 250


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG (quality 92, 4:2:0) of noise whose amplitude falls with its frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for octave in range(1, 11):
        cells = 2**octave
        coarse = rng.normal(0, 40 * 0.74**octave, (min(cells, height), min(cells, width), 3))
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)) for c in range(3)]
        grown = [layer.resize((width, height), Image.Resampling.BICUBIC) for layer in layers]
        grey = np.asarray(grown[0])[..., None]
        total += 0.8 * grey + 0.3 * np.stack([np.asarray(layer) for layer in grown], -1)
    file = BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92, subsampling=2)
    return file.getvalue()


def pillow(data: bytes, size: int) -> UInt8[Tensor, "3 h w"]:
    """The whole image decoded, bicubic, cut out at the centre: what everybody writes."""
    image = Image.open(BytesIO(data)).convert("RGB")
    short = min(image.size)
    width, height = (round(side * size / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return to_tensor(image.crop((left, top, left + size, top + size))).contiguous()


def usual_webdataset(path: Path, size: int) -> Iterator[Any]:
    """WebDataset's decoder and torchvision's transforms, as in its documentation."""
    steps = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    prepared = transforms.Compose([*steps, transforms.PILToTensor()])
    data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return iter(data.decode("pil").to_tuple("jpg", "txt").map_tuple(prepared, lambda text: text))


def psnr(ours: UInt8[Tensor, "3 h w"], theirs: UInt8[Tensor, "3 h w"]) -> float:
    """10 log10(255^2 / mean squared error)."""
    return float(10 * torch.log10(255**2 / (ours.double() - theirs.double()).square().mean()))


def rates(ways: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Items a second of processor time of each way, run in turns so that other load hits them alike."""
    items, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way()
    while min(spent.values()) < seconds:
        for name, way in ways.items():
            if spent[name] < seconds:
                began = time.process_time()
                items[name] += way()
                spent[name] += time.process_time() - began
    return {name: items[name] / spent[name] for name in ways}


@dataclass
class DataBenchmark:
    """The numbers of issue point 4, on one core.

    Args:
        size: side of the crops.
        images: drawn for each source size.
        seconds: of processor time a measurement.
    """

    size: int
    images: int
    seconds: float

    def run(self) -> Iterator[str]:
        """The tables, line by line."""
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            yield from self._images(Path(folder))
            yield from self._latents(Path(folder))
        yield from self._seeking()

    def _images(self, folder: Path) -> Iterator[str]:
        yield f"\nimages a second a core, to {self.size} px, from tar to tensor"
        yield "| source | KB | Pillow | WebDataset | ours | / Pillow | / WebDataset | dB to the full decode |"
        yield "|---|---|---|---|---|---|---|---|"
        for width, height in SIZES:
            path = folder / f"{width}.tar"
            files = [photograph(width, height, seed) for seed in range(self.images)]
            write_shard(path, [(f"{i:04d}", {"jpg": f, "txt": b"a"}) for i, f in enumerate(files)])
            found, quality = self._measured(path, files)
            ours, plain, usual = (found[name] for name in ("ours", "Pillow", "WebDataset"))
            kilobytes = sum(map(len, files)) / len(files) / 1000
            yield (
                f"| {width}x{height} | {kilobytes:.0f} | {plain:.0f} | {usual:.0f} | {ours:.0f} "
                f"| {ours / plain:.2f} | {ours / usual:.2f} | {quality:.1f} |"
            )

    def _measured(self, path: Path, files: list[bytes]) -> tuple[dict[str, float], float]:
        shards, read = Shards([path], [len(files)]), ImageField(self.size, 0)
        stream = ShardStream(SequentialOrder([len(files)]), shards, [[read, CaptionField()]], len(files), 1)
        ways = {
            "Pillow": lambda: len([pillow(data, self.size) for data in files]),
            "WebDataset": lambda: len(list(usual_webdataset(path, self.size))),
            "ours": lambda: len(stream.batch(0)[0]["key"]),
        }
        pairs = [(read(Sample(path, "", {"jpg": data}), 0), data) for data in files]
        full = [(ours, read.transform(pixels(data), 0)) for ours, data in pairs]
        worst = min(psnr(ours, theirs) if not torch.equal(ours, theirs) else 99.0 for ours, theirs in full)
        return rates(ways, self.seconds), worst

    def _latents(self, folder: Path) -> Iterator[str]:
        out = folder / "latents"
        out.mkdir()
        rng = np.random.default_rng(0)
        data = [npy(rng.normal(size=LATENT).astype(np.float16)) for _ in range(16)]
        for number in range(4):
            also = {"txt": b"a caption", "json": b"{}"}
            samples = [(f"{number:05d}{i:04d}", {MOMENTS: data[i % 16], **also}) for i in range(LATENTS)]
            write_shard(out / f"{number:05d}.tar", samples)
        shards = open_shards(str(out))
        readers: list[Field] = [ArrayField(MOMENTS, "moments", LATENT), CaptionField()]
        stream = ShardStream(ShuffledOrder(shards.counts, 0), shards, [readers], BATCH, 10**9)
        steps = iter(range(10**9))

        def walk() -> int:
            files = webdataset.WebDataset(str(out / "00000.tar"), shardshuffle=False)
            return len([np.load(BytesIO(sample[MOMENTS])) for sample in files])

        found = rates(
            {
                "ours": lambda: len(stream.batch(next(steps))[0]["key"]),
                "WebDataset": walk,
                "index": lambda: LATENTS * bool(build_index(out / "00000.tar")),
            },
            self.seconds,
        )
        yield f"\nlatents a second a process, moments of {'x'.join(map(str, LATENT))}, in shuffled batches"
        yield f"ours {found['ours']:,.0f}, WebDataset's tar walk {found['WebDataset']:,.0f}"
        yield "\nshards indexed a minute a core, three members a sample"
        for size in (1_500, 10_000):
            yield f"{size:,} samples a shard: {found['index'] / size * 60:,.0f}"

    def _seeking(self) -> Iterator[str]:
        shards, samples = 500_000, 10_000
        tracemalloc.start()
        order = ShuffledOrder(np.full(shards, samples), seed=0)
        began = time.perf_counter()
        order.locate(3 * shards * samples + 7_123_456, 256)
        took = time.perf_counter() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield f"\n{shards:,} shards of {samples:,}: any batch within {took:.3f} s, {peak / 1e6:.0f} MB"
