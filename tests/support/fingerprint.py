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
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

import sample
from ldm.callbacks.ema import EMA
from ldm.cli.config.compose import CONFIGS
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
from tests.cli.sampling.test_conditional_tasks import MODELS, composed, save
from tests.cli.sampling.test_several_conditions import SEVERAL
from tests.support import tiny
from tests.support.configs import options

STEPS = 10


def digest(values: dict[str, Tensor]) -> str:
    """A hash of names, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]


def content(values: dict[str, Tensor]) -> str:
    """As `digest`, whatever the tensors are called."""
    return digest({str(number): value for number, value in enumerate(values.values())})


def train(stage: nn.Module, folder: Path, batch_size: int = 4) -> dict[str, Any]:
    """Every logged number of ten steps, and hashes of the weights and their average after them."""
    batches = [tiny.batch(batch_size, batch_size * step) for step in range(STEPS)]
    ema = EMA(0.9)
    trainer = tiny.trainer(STEPS, [ema], log=folder / "metrics.csv")
    trainer.limit_val_batches = 0
    trainer.fit(stage, torch.utils.data.DataLoader(batches, batch_size=None))
    rows = (folder / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    columns = {name: [row.split(",")[i] for row in rows[1:]] for i, name in enumerate(names)}
    return {"log": columns, "weights": content(stage.state_dict()), "ema": content(ema.averages)}


def training(folder: Path) -> dict[str, Any]:
    """Both stages, with and without what is optional."""

    def seeded(make: Any) -> Any:
        torch.manual_seed(0)
        return make()

    runs = {
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
    found = {}
    for name, make in runs.items():
        out = folder / name.replace("/", "_")
        out.mkdir()
        found[name] = train(seeded(make), out)
    return found


class Sampled:
    """Runs sample.py in this process; the float32 images that the first stage decodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.decoded = folder, list[Tensor]()
        decode = Autoencoder.decode

        def recorded(model: Autoencoder, z: Tensor) -> Tensor:
            image = decode(model, z)
            self.decoded += [z.clone(), image.clone()]
            return image

        Autoencoder.decode = recorded

    def __call__(self, model: str, *words: str) -> str:
        self.decoded.clear()
        given = [f"ckpt={model}", f"out={self.folder}/out", "n=2", "steps=6", "device=cpu", *words]
        given += [] if any(word.startswith("scale=") for word in words) else ["scale=1"]
        sys.argv, said = ["sample.py", *given], io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(said):
                sample.main()
        except SystemExit as error:
            raise RuntimeError(f"{words}: {said.getvalue()}") from error
        files = sorted((self.folder / "out").glob("[0-9]*.png"))
        images = {path.name: torch.from_numpy(np.array(Image.open(path))) for path in files}
        for path in files:
            path.unlink()
        return digest(images | {f"decoded {i}": x for i, x in enumerate(self.decoded)})


def inputs(folder: Path) -> dict[str, str]:
    """Maps, masks and images that tasks read, 32 pixels wide."""
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24] = 5
    arrays = {
        "labels": labels,
        "mask": (labels > 0).astype(np.uint8) * 255,
        "grey": np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8),
        "colours": np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    (folder / "boxes.json").write_text(json.dumps([[3, 0.1, 0.1, 0.5, 0.5]]))
    return {name: str(folder / f"{name}.png") for name in arrays} | {"boxes": str(folder / "boxes.json")}


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
"""For each configs/task: the model that it samples from, and its arguments."""

GUIDANCE = {
    "instruct_pix2pix": ("several", ["+task@also.depth=depth", "also.depth.map={grey}"]),
    "nested": (
        "several",
        ["+task@also.depth=depth", "also.depth.map={grey}", "guidance.scales={{depth: 1.5}}"],
    ),
}


def sampling(folder: Path) -> dict[str, str]:
    """Every sampler, spacing, guidance and task."""
    files, models = inputs(folder), {}
    words = {name: list(found) for name, found in MODELS.items()}
    words |= {"text": [], "several": SEVERAL}
    for name, changes in words.items():
        node = composed(*changes)
        if name in ("unconditional", "one_band", "five_bands"):
            node.conditioner.conditioners = {}
        if name.startswith("inpaint"):
            node.conditioner.conditioners.masked.channels = 4
        if name == "several":
            for file, condition in (("debug", "text"), ("demo/depth", "depth")):
                found = OmegaConf.load(CONFIGS / "conditioner" / f"{file}.yaml").conditioners
                OmegaConf.update(node.conditioner.conditioners, condition, found[condition], force_add=True)
            node.conditioner.conditioners.depth.dropout = 0.1
        config = OmegaConf.to_container(node, resolve=True)
        models[name] = save(f"{folder}/{name}.safetensors", config, 1.0 if name == "several" else 0.2)
    run, prompt = Sampled(folder), "prompts=['a red square','a blue circle']"
    found = {}
    for sampler in options("sampler"):
        found[f"sampler={sampler}"] = run(models["text"], f"sampler={sampler}", prompt, "scale=3")
    for spacing in options("timestep_spacing"):
        found[f"spacing={spacing}"] = run(
            models["text"], f"timestep_spacing={spacing}", prompt, "sampler=dpmpp_2m"
        )
    for guidance in options("guidance"):
        model, more = GUIDANCE.get(guidance, ("text", [prompt]))
        more = [word.format(**files) for word in more]
        if model == "several":
            more += [prompt]
            more += ["task=class", "task.labels=[3]"] if "label" in node_names(models[model]) else []
        found[f"guidance={guidance}"] = run(models[model], f"guidance={guidance}", "scale=3", *more)
    for task in options("task"):
        model, more = TASKS[task]
        more = [word.format(**files) for word in more]
        found[f"task={task}"] = run(models[model], f"task={task}", *more)
    more = [prompt, "scale=3"]
    found["negative"] = run(models["text"], "negative='a green square'", *more)
    found["weak"] = run(models["text"], f"weak={models['text']}", *more)
    found["tile"] = run(models["text"], "tile=2", *more)
    return found


def node_names(path: str) -> str:
    """The header of a model file as text."""
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode()


def pack(folder: Path, counts: tuple[int, ...]) -> Path:
    """Indexed shards of small images whose index has sizes of several shapes."""
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


def orders(folder: Path) -> dict[str, Any]:
    """(shard, row) of the first 100 samples of every order, and their keys under WebDataset's own."""
    big, small = pack(folder / "big", (30, 17, 40, 23, 9)), pack(folder / "small", (4, 4, 4))
    one = SourceShards([open_shards(str(big))])
    two = SourceShards([open_shards(str(big)), open_shards(str(small))])
    squares = AspectBuckets([(64, 64), (64, 32), (32, 64)])
    made = {
        "shuffled": (OrderOptions(), one),
        "lanes": (OrderOptions(lanes=2, window=1), one),
        "window": (OrderOptions(window=2), one),
        "mixture": (OrderOptions(weights=[3, 1]), two),
        "filtered": (OrderOptions(filter=Filter(min_size=60)), one),
        "buckets": (OrderOptions(buckets=squares), one),
        "mixture of buckets": (OrderOptions(weights=[3, 1], buckets=squares), two),
    }
    found: dict[str, Any] = {}
    for name, (arrangement, sources) in made.items():
        order = arrangement.build(sources, 7, 20)
        batches = [order.locate(first, 20).tolist() for first in range(0, 100, 20)]
        found[name] = [sources[shard].sample(row).key for batch in batches for shard, row in batch]
        found[f"{name}: instead"] = [list(order.replacement(p, a)) for p in range(0, 100, 9) for a in (0, 1)]
    found["in order"] = SequentialOrder(one.parts[0].counts).locate(0, 100).tolist()
    module = ResampledDataModule(str(big), None, 4, 8, 25, seed=3, buffer=20)
    found["resampled"] = [key for batch in module.train_dataloader() for key in batch["key"]]
    return found


def main() -> None:
    """Write everything to the file named on the command line."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"training": training, "sampling": sampling, "orders": orders}
        found = {}
        for part, record in parts.items():
            (folder / part).mkdir()
            found[part] = record(folder / part)
    out.write_text(json.dumps(found, indent=1))
    total = sum(map(len, found.values()))
    print(f"{total} records, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
