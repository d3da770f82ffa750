"""Throughput of data loading: images next to Pillow and WebDataset, latents, indexing, seeking."""

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

from ldm.data.fields.arrays import ArrayField, to_npy
from ldm.data.fields.captions import CaptionField
from ldm.data.fields.decode import decode_pixels, to_tensor
from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import Field, ShardStream
from ldm.data.order.shuffle import SequentialOrder, ShuffledOrder
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import build_index
from ldm.data.shards.reader import Sample, Shards, open_shards
from ldm.data.shards.tar import MOMENTS
from ldm.typing import Pixels, PositiveFloat, PositiveInt

SIZES = [(256, 256), (512, 384), (1024, 768), (2048, 1536)]
MOMENTS_SHAPE = (8, 32, 32)
"""Moments of a 256 px image at f8 with 4 channels: 16 KB."""
LATENTS_PER_SHARD, BATCH_SIZE = 2000, 250


def make_photograph(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG (quality 92, 4:2:0) of noise whose amplitude falls with frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for octave in range(1, 11):
        cells = 2**octave
        coarse = rng.normal(0, 40 * 0.74**octave, (min(cells, height), min(cells, width), 3))
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)) for c in range(3)]
        resized = [layer.resize((width, height), Image.Resampling.BICUBIC) for layer in layers]
        grey = np.asarray(resized[0])[..., None]
        total += 0.8 * grey + 0.3 * np.stack([np.asarray(layer) for layer in resized], -1)
    file = BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92, subsampling=2)
    return file.getvalue()


def decode_with_pillow(data: bytes, size: int) -> UInt8[Tensor, "3 h w"]:
    """Decode at full size, resize bicubically and crop the centre: the usual code."""
    image = Image.open(BytesIO(data)).convert("RGB")
    short = min(image.size)
    width, height = (round(side * size / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return to_tensor(image.crop((left, top, left + size, top + size))).contiguous()


def read_with_webdataset(path: Path, size: int) -> Iterator[Any]:
    """Read with WebDataset's decoder and torchvision's transforms, as in its documentation."""
    steps = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    transform = transforms.Compose([*steps, transforms.PILToTensor()])
    data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return iter(data.decode("pil").to_tuple("jpg", "txt").map_tuple(transform, lambda text: text))


def psnr(ours: UInt8[Tensor, "3 h w"], theirs: UInt8[Tensor, "3 h w"]) -> float:
    """10 log10(255^2 / mean squared error)."""
    return float(10 * torch.log10(255**2 / (ours.double() - theirs.double()).square().mean()))


def measure_rates(methods: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Return each method's items per second of CPU time; they take turns, so other load slows all alike."""
    items, spent = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0.0)
    for method in methods.values():
        method()
    while min(spent.values()) < seconds:
        for name, method in methods.items():
            if spent[name] < seconds:
                start = time.process_time()
                items[name] += method()
                spent[name] += time.process_time() - start
    return {name: items[name] / spent[name] for name in methods}


@dataclass
class DataBenchmark:
    """Reading speed of images and latents, indexing speed and seek time, on one core.

    Args:
        size: side of the crops.
        images: number of images of each source size.
        seconds: CPU time per measurement.
    """

    size: Pixels
    images: PositiveInt
    seconds: PositiveFloat

    def run(self) -> Iterator[str]:
        """Yield the tables line by line."""
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            yield from self._image_table(Path(folder))
            yield from self._latent_table(Path(folder))
        yield from self._seek_time()

    def _image_table(self, folder: Path) -> Iterator[str]:
        yield f"\nimages per second per core, to {self.size} px, from tar to tensor"
        yield "| source | KB | Pillow | WebDataset | ldm | / Pillow | / WebDataset | dB to the full decode |"
        yield "|---|---|---|---|---|---|---|---|"
        for width, height in SIZES:
            path = folder / f"{width}.tar"
            files = [make_photograph(width, height, seed) for seed in range(self.images)]
            write_shard(path, [(f"{i:04d}", {"jpg": f, "txt": b"a"}) for i, f in enumerate(files)])
            rates, quality = self._measure_images(path, files)
            ours, pillow, wds = (rates[name] for name in ("ldm", "Pillow", "WebDataset"))
            kilobytes = sum(map(len, files)) / len(files) / 1000
            yield (
                f"| {width}x{height} | {kilobytes:.0f} | {pillow:.0f} | {wds:.0f} | {ours:.0f} "
                f"| {ours / pillow:.2f} | {ours / wds:.2f} | {quality:.1f} |"
            )

    def _measure_images(self, path: Path, files: list[bytes]) -> tuple[dict[str, float], float]:
        """Return the rate of each method, and the lowest PSNR to the full decode."""
        shards, field = Shards([path], [len(files)]), ImageField(self.size, 0)
        stream = ShardStream(SequentialOrder([len(files)]), shards, [[field, CaptionField()]], len(files), 1)
        methods = {
            "Pillow": lambda: len([decode_with_pillow(data, self.size) for data in files]),
            "WebDataset": lambda: len(list(read_with_webdataset(path, self.size))),
            "ldm": lambda: len(stream.read_batch(0)[0]["key"]),
        }
        ours = [field(Sample(path, "", {"jpg": data}), 0) for data in files]
        full = [field.transform(decode_pixels(data), 0) for data in files]
        worst = min(99.0 if torch.equal(x, y) else psnr(x, y) for x, y in zip(ours, full, strict=True))
        return measure_rates(methods, self.seconds), worst

    def _latent_table(self, folder: Path) -> Iterator[str]:
        out = folder / "latents"
        _write_latents(out)
        shards = open_shards(str(out))
        fields: list[Field] = [ArrayField(MOMENTS, "moments", MOMENTS_SHAPE), CaptionField()]
        stream = ShardStream(ShuffledOrder(shards.counts, 0), shards, [fields], BATCH_SIZE, 10**9)
        steps = iter(range(10**9))

        def read_tar() -> int:
            samples = webdataset.WebDataset(str(out / "00000.tar"), shardshuffle=False)
            return len([np.load(BytesIO(sample[MOMENTS])) for sample in samples])

        rates = measure_rates(
            {
                "ldm": lambda: len(stream.read_batch(next(steps))[0]["key"]),
                "WebDataset": read_tar,
                "index": lambda: LATENTS_PER_SHARD * bool(build_index(out / "00000.tar")),
            },
            self.seconds,
        )
        shape = "x".join(map(str, MOMENTS_SHAPE))
        yield f"\nlatents per second per process, moments of {shape}, in shuffled batches"
        yield f"ldm {rates['ldm']:,.0f}, WebDataset reading the tar in order {rates['WebDataset']:,.0f}"
        yield "\nshards indexed per minute per core, three members per sample"
        for size in (1_500, 10_000):
            yield f"{size:,} samples per shard: {rates['index'] / size * 60:,.0f}"

    def _seek_time(self) -> Iterator[str]:
        shards, samples = 500_000, 10_000
        tracemalloc.start()
        order = ShuffledOrder(np.full(shards, samples), seed=0)
        start = time.perf_counter()
        order.locate(3 * shards * samples + 7_123_456, 256)
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield f"\n{shards:,} shards of {samples:,}: any batch within {seconds:.3f} s, {peak / 1e6:.0f} MB"


def _write_latents(out: Path) -> None:
    """Write four shards of random moments with captions."""
    out.mkdir()
    rng = np.random.default_rng(0)
    data = [to_npy(rng.normal(size=MOMENTS_SHAPE).astype(np.float16)) for _ in range(16)]
    text = {"txt": b"a caption", "json": b"{}"}
    for number in range(4):
        samples = [
            (f"{number:05d}{i:04d}", {MOMENTS: data[i % 16], **text}) for i in range(LATENTS_PER_SHARD)
        ]
        write_shard(out / f"{number:05d}.tar", samples)
