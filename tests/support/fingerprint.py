"""Record the numbers that a refactor must not change: `python -m tests.support.fingerprint OUT.json`.

Tiny networks with random weights and fixed seeds: ten training steps of both stages (losses, gradient norms,
final weights), the float32 samples of every sampler, time spacing, guidance and task, and the first 100
samples of every order. Run it at two commits on one machine and compare the files: equal means bit for bit.
"""

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import sample
from ldm.callbacks.ema import EMA
from ldm.data.order.filters import AspectBuckets, Filter
from ldm.data.order.mixture import SourceShards
from ldm.data.order.options import OrderOptions
from ldm.data.order.shuffle import SequentialOrder
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import load_index, save_index
from ldm.data.shards.reader import open_shards
from ldm.data.webdataset import ResampledDataModule
from ldm.diffusion.parameterization import V
from ldm.diffusion.weighting import LearnedUncertainty, MinSNR
from ldm.losses.equivariance import Equivariance
from ldm.losses.logvar import LearnedLogVar
from ldm.networks.autoencoder import Autoencoder
from tests.support import tiny
from tests.support.command_line import run_command
from tests.support.configs import options
from tests.support.sampling_models import ModelFiles, write_inputs

STEPS = 10


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def hash_values(tensors: dict[str, Tensor]) -> str:
    """Return a hash of shapes and bytes in the given order, whatever the tensors are called."""
    return hash_tensors({str(number): tensor for number, tensor in enumerate(tensors.values())})


def train(stage: nn.Module, folder: Path, batch_size: int = 4) -> dict[str, Any]:
    """Return every logged number of ten steps, and hashes of the final weights and of their EMA."""
    batches = [tiny.batch(batch_size, batch_size * step) for step in range(STEPS)]
    ema = EMA(0.9)
    trainer = tiny.trainer(STEPS, [ema], log=folder / "metrics.csv")
    trainer.limit_val_batches = 0
    trainer.fit(stage, torch.utils.data.DataLoader(batches, batch_size=None))
    rows = (folder / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    columns = {name: [row.split(",")[i] for row in rows[1:]] for i, name in enumerate(names)}
    return {"log": columns, "weights": hash_values(stage.state_dict()), "ema": hash_values(ema.averages)}


def record_training(folder: Path) -> dict[str, Any]:
    """Return the records of both stages, trained with and without their options."""
    stages = {
        "autoencoder": lambda: tiny.first_stage(adversary=tiny.adversary(2, 1, 2)),
        "autoencoder/micro_batches": lambda: tiny.first_stage(
            adversary=tiny.adversary(2, 1, 2), micro_batch_size=2
        ),
        "autoencoder/eq_vae_and_logvar": lambda: tiny.first_stage(
            logvar=LearnedLogVar(0.0), equivariance=Equivariance(0.5, 0.5)
        ),
        "latent_diffusion": lambda: tiny.second_stage(tiny.diffusion(0.1)),
        "latent_diffusion/micro_batches": lambda: tiny.second_stage(tiny.diffusion(0.1), micro_batch_size=2),
        "latent_diffusion/min_snr": lambda: tiny.second_stage(weighting=MinSNR(V(), 5.0)),
        "latent_diffusion/options": lambda: tiny.second_stage(
            weighting=LearnedUncertainty(MinSNR(V()), 8), strata=4, offset_noise=0.1, input_perturbation=0.1
        ),
    }
    records = {}
    for name, build in stages.items():
        out = folder / name.replace("/", "_")
        out.mkdir()
        torch.manual_seed(0)
        records[name] = train(build(), out)
    return records


class SampleRecorder:
    """Runs sample.py in this process and hashes its images and the float32 images that were decoded."""

    def __init__(self, folder: Path) -> None:
        self.out, self.models = folder / "out", ModelFiles(folder)
        self.inputs, self.decoded = write_inputs(folder), list[Tensor]()
        decode = Autoencoder.decode

        def recorded_decode(model: Autoencoder, z: Tensor) -> Tensor:
            image = decode(model, z)
            self.decoded += [z.clone(), image.clone()]
            return image

        Autoencoder.decode = recorded_decode

    def __call__(self, model: str, *overrides: str) -> str:
        """Sample with a model of `MODELS`; `{name}` is replaced by the path of an input file."""
        self.decoded.clear()
        for name, path in {**self.inputs, "model": self.models[model]}.items():
            overrides = tuple(override.replace(f"{{{name}}}", path) for override in overrides)
        defaults = [
            f"ckpt={self.models[model]}",
            f"out={self.out}",
            "n=2",
            "steps=6",
            "device=cpu",
            "scale=1",
        ]
        status, out, err = run_command(sample.main, *defaults, *overrides)
        if status != 0:
            raise RuntimeError(f"{overrides}: {out}{err}")
        paths = sorted(self.out.glob("[0-9]*.png"))
        images = {path.name: torch.from_numpy(np.array(Image.open(path))) for path in paths}
        for path in paths:
            path.unlink()
        return hash_tensors(images | {f"decoded {i}": x for i, x in enumerate(self.decoded)})


TASKS = {
    "txt2img": ("text", ["prompts=['a red square']"]),
    "unconditional": ("unconditional", []),
    "class": ("class", ["task.labels=[3,4]"]),
    "layout": ("layout", ["task.boxes={boxes}"]),
    "semantic": ("semantic", ["task.map={labels}"]),
    "depth": ("depth", ["task.map={grey}"]),
    "edges": ("edges", ["task.map={grey}"]),
    "inpaint_model": ("inpaint_model", ["task.image={colours}", "task.mask={mask}"]),
    "super_resolution": ("upscaler", ["task.image={colours}", "task.noise_level=20"]),
    "variation": ("variation", ["task.image={colours}"]),
    "img2img": ("text", ["task.image={colours}", "prompts=['a red square']"]),
    "inpaint": (
        "text",
        [
            "task.image={colours}",
            "task.mask={mask}",
            "task.repeats=2",
            "task.jump=2",
            "prompts=['a red square']",
        ],
    ),
    "interpolate": ("text", ["prompts=['a red square','a blue square']", "scale=2", "n=3"]),
    "invert": (
        "text",
        ["task.image={colours}", "task.prompt=a red square", "prompts=['a blue square','a red square']"],
    ),
}
"""For each configs/task: the model that it samples from, and its overrides."""
PROMPTS = "prompts=['a red square','a blue circle']"
SEVERAL = ["+task@also.depth=depth", "also.depth.map={grey}", PROMPTS, "task=class", "task.labels=[3]"]
GUIDANCE = {
    "instruct_pix2pix": ("several", SEVERAL),
    "nested": ("several", [*SEVERAL, "guidance.scales={depth: 1.5}"]),
}
"""For each configs/guidance that needs several conditions: its model and overrides."""


def record_sampling(folder: Path) -> dict[str, str]:
    """Return a hash of the samples of every sampler, time spacing, guidance and task."""
    run, guided = SampleRecorder(folder), [PROMPTS, "scale=3"]
    records = {}
    for sampler in options("sampler"):
        records[f"sampler={sampler}"] = run("text", f"sampler={sampler}", *guided)
    for spacing in options("timestep_spacing"):
        overrides = [f"timestep_spacing={spacing}", PROMPTS, "sampler=dpmpp_2m"]
        records[f"spacing={spacing}"] = run("text", *overrides)
    for guidance in options("guidance"):
        model, overrides = GUIDANCE.get(guidance, ("text", [PROMPTS]))
        records[f"guidance={guidance}"] = run(model, f"guidance={guidance}", "scale=3", *overrides)
    for task in options("task"):
        model, overrides = TASKS[task]
        records[f"task={task}"] = run(model, f"task={task}", *overrides)
    records["negative"] = run("text", "negative='a green square'", *guided)
    records["weak"] = run("text", "weak={model}", *guided)
    records["tile"] = run("text", "tile=2", *guided)
    return records


def write_indexed_shards(folder: Path, counts: tuple[int, ...]) -> Path:
    """Write shards of small images, of which the index claims several sizes and scores."""
    folder.mkdir()
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    for shard, count in enumerate(counts):
        samples = [
            (f"s{shard}r{row}", {"png": file.getvalue(), "txt": f"{shard} {row}".encode()})
            for row in range(count)
        ]
        write_shard(folder / f"{shard:05d}.tar", samples)
    sizes = [(100, 100), (100, 50), (50, 100), (30, 30), (101, 99), (400, 200), (90, 160)]
    for number, path in enumerate(open_shards(str(folder)).paths):
        index = load_index(path)
        index.rows = np.array(index.rows)
        index.header["has_metadata"] = True
        for row in range(len(index)):
            index.rows["width"][row], index.rows["height"][row] = sizes[(row + number) % len(sizes)]
            index.rows["score"][row] = row / 4
        save_index(index, path)
    return folder


def record_orders(folder: Path) -> dict[str, Any]:
    """Return the keys of the first 100 samples of every order."""
    large = write_indexed_shards(folder / "big", (30, 17, 40, 23, 9))
    small = write_indexed_shards(folder / "small", (4, 4, 4))
    one_source = SourceShards([open_shards(str(large))])
    two_sources = SourceShards([open_shards(str(large)), open_shards(str(small))])
    buckets = AspectBuckets([(64, 64), (64, 32), (32, 64)])
    cases = {
        "shuffled": (OrderOptions(), one_source),
        "lanes": (OrderOptions(lanes=2, window=1), one_source),
        "window": (OrderOptions(window=2), one_source),
        "mixture": (OrderOptions(weights=[3, 1]), two_sources),
        "filtered": (OrderOptions(filter=Filter(min_size=60)), one_source),
        "buckets": (OrderOptions(buckets=buckets), one_source),
        "mixture of buckets": (OrderOptions(weights=[3, 1], buckets=buckets), two_sources),
    }
    records: dict[str, Any] = {}
    for name, (order_options, shards) in cases.items():
        order = order_options.build(shards, 7, 20)
        batches = [order.locate(first, 20).tolist() for first in range(0, 100, 20)]
        records[name] = [shards[shard].sample(row).key for batch in batches for shard, row in batch]
        records[f"{name}: instead"] = [
            list(order.replacement(position, attempt)) for position in range(0, 100, 9) for attempt in (0, 1)
        ]
    records["in order"] = SequentialOrder(one_source.parts[0].counts).locate(0, 100).tolist()
    module = ResampledDataModule(str(large), None, 4, 8, 25, seed=3, buffer=20)
    records["resampled"] = [key for batch in module.train_dataloader() for key in batch["key"]]
    return records


def main() -> None:
    """Write all records to the file named on the command line."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    records = {}
    with tempfile.TemporaryDirectory() as root:
        parts = {"training": record_training, "sampling": record_sampling, "orders": record_orders}
        for part, record in parts.items():
            folder = Path(root) / part
            folder.mkdir()
            records[part] = record(folder)
    out.write_text(json.dumps(records, indent=1))
    total = sum(map(len, records.values()))
    print(f"{total} records, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
