"""Compare first stages: `python -m studies.first_stages files=[...] shards=... out=...`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.device import pick_device
from ldm.cli.sampling.first_stage import load_first_stage
from ldm.data.fields.image import ImageField
from ldm.data.loading.loader import sequential_loader
from ldm.data.shards.reader import open_shards
from ldm.errors import UserError
from ldm.evaluation.reconstruction import Reconstruction, measure, table
from ldm.grid import labelled_grid, to_pil
from ldm.networks.autoencoder import Autoencoder
from studies import CONFIGS, training_log


@command("first_stages", CONFIGS)
def main(cfg: DictConfig) -> None:
    """Measure each autoencoder's reconstructions, latents and speed: a table, and a grid with a row each."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    names = unique_names([Path(file) for file in cfg.files])
    channels, perceptual = common_channels(list(cfg.files)), instantiate(cfg.perceptual)
    perceptual.check(channels)
    perceptual.load_pretrained()
    perceptual = perceptual.to(pick_device(cfg.device))
    batches = list(load_images(cfg.shards, cfg.size, cfg.n, cfg.batch_size, channels))
    examples = batches[0][: cfg.columns]
    rows = [("images", [to_pil(x) for x in examples.float() / 127.5 - 1])]
    measurements: dict[str, Reconstruction] = {}
    for name, file in zip(names, cfg.files, strict=True):
        model = load_first_stage(file, cfg.device)
        measurements[name] = measure(model, batches, perceptual)
        rows.append((f"{name}: {measurements[name].psnr:.1f} dB", reconstruct_examples(model, examples)))
    labelled_grid(rows, cfg.grid_scale).save(out / "first_stages.png")
    logs = {
        name: training_log.summarize(Path(file).parent) for name, file in zip(names, cfg.files, strict=True)
    }
    trainings = {name: summary for name, summary in logs.items() if summary is not None}
    text = f"{table(measurements)}\n\n{training_log.table(trainings)}\n"
    (out / "first_stages.md").write_text(text)
    plain = {name: asdict(row) for name, row in measurements.items()}
    (out / "first_stages.json").write_text(json.dumps(plain, indent=1) + "\n")
    print(text)
    print(f"wrote {out}/first_stages.md, .json and .png")


def common_channels(files: list[str]) -> int:
    """Return the number of image channels of the first stages; UserError if they differ."""
    channels = {file: load_first_stage(file, "cpu").encoder.in_channels for file in files}
    if len(set(channels.values())) > 1:
        listed = ", ".join(f"{file} {n}" for file, n in channels.items())
        raise UserError(
            f"these first stages take images of different channels, {listed}: compare them separately"
        )
    return next(iter(channels.values()))


def load_images(
    shards: str, size: int, n: int, batch_size: int, channels: int = 3
) -> Iterator[UInt8[Tensor, "_ c h w"]]:
    """Yield the first n images in batches, in the order of the shards."""
    image_shards = open_shards(shards)
    left = min(n, int(image_shards.counts.sum()))
    for batch in sequential_loader(image_shards, [ImageField(size, seed=0, channels=channels)], batch_size):
        yield batch["image"][:left]
        left -= len(batch["image"])
        if left <= 0:
            return


@torch.no_grad()
def reconstruct_examples(model: Autoencoder, x: UInt8[Tensor, "b c h w"]) -> list[Image.Image]:
    """Return reconstructions of images from the mean of their posterior."""
    posterior = model.posterior(x.to(model.latent_mean.device).float() / 127.5 - 1)
    return [to_pil(x_hat) for x_hat in model.reconstruct(posterior.mean)]


def unique_names(files: list[Path]) -> list[str]:
    """Return the run of each file, or the file's own name outside a run; UserError if two are equal."""
    names = [file.parent.name if file.stem == "autoencoder" else file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two files would both be named {name!r}: give each its own folder or file name")
    return names


if __name__ == "__main__":
    main()
