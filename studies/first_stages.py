"""First stages side by side: `python -m studies.first_stages files=[...] shards=... out=...`."""

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
from ldm.cli.encode_latents import load_first_stage
from ldm.cli.sampling.files import pick_device
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
    """Measure each autoencoder's reconstructions, latents and speed: a table, a image with a row each."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    names = unique([Path(file) for file in cfg.files])
    channels, perceptual = common_channels(list(cfg.files)), instantiate(cfg.perceptual)
    perceptual.check(channels)
    perceptual.load_pretrained()
    perceptual = perceptual.to(pick_device(cfg.device))
    batches = list(images(cfg.shards, cfg.size, cfg.n, cfg.batch_size, channels))
    shown = batches[0][: cfg.columns]
    rows = [("images", [to_pil(x) for x in shown.float() / 127.5 - 1])]
    measured: dict[str, Reconstruction] = {}
    for name, file in zip(names, cfg.files, strict=True):
        model = load_first_stage(file, cfg.device)
        measured[name] = measure(model, batches, perceptual)
        rows.append((f"{name}: {measured[name].psnr:.1f} dB", reconstructed(model, shown)))
    labelled_grid(rows, cfg.grid_scale).save(out / "first_stages.png")
    logs = {name: training_log.read(Path(file).parent) for name, file in zip(names, cfg.files, strict=True)}
    text = f"{table(measured)}\n\n{history.table({k: v for k, v in logs.items() if v is not None})}\n"
    (out / "first_stages.md").write_text(text)
    (out / "first_stages.json").write_text(
        json.dumps({k: asdict(v) for k, v in measured.items()}, indent=1) + "\n"
    )
    print(text)
    print(f"wrote {out}/first_stages.md, .json and .png")


def common_channels(files: list[str]) -> int:
    """How many the images have that every first stage takes; UserError where they do not take the same."""
    found = {file: load_first_stage(file, "cpu").encoder.in_channels for file in files}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{file} {channels}" for file, channels in found.items())
        raise UserError(f"these first stages take images of different channels, {said}: compare them apart")
    return next(iter(found.values()))


def images(
    shards: str, size: int, n: int, batch_size: int, channels: int = 3
) -> Iterator[UInt8[Tensor, "_ c h w"]]:
    """The first n images, as they lie."""
    opened = open_shards(shards)
    left = min(n, int(opened.counts.sum()))
    for batch in sequential_loader(opened, [ImageField(size, seed=0, channels=channels)], batch_size):
        yield batch["image"][:left]
        left -= len(batch["image"])
        if left <= 0:
            return


@torch.no_grad()
def reconstructed(model: Autoencoder, x: UInt8[Tensor, "b c h w"]) -> list[Image.Image]:
    """Images there and back."""
    posterior = model.posterior(x.to(model.latent_mean.device).float() / 127.5 - 1)
    return [to_pil(x_hat) for x_hat in model.reconstruct(posterior.mean)]


def unique(files: list[Path]) -> list[str]:
    """Each file's run, or its own name where it lies in no run's folder; UserError where two are alike."""
    names = [file.parent.name if file.stem == "autoencoder" else file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two files would be called {name!r}: give each its own folder or name")
    return names


if __name__ == "__main__":
    main()
