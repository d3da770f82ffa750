"""Encode pictures once: `python -m ldm.cli.encode_latents first_stage=... shards=... out=... size=...`."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.build import build_untrusted
from ldm.cli.entry import command
from ldm.cli.sampling import pick_device
from ldm.cli.training import precision
from ldm.data.latents import LatentHeader, write_latents
from ldm.data.reader import open_shards
from ldm.interop import safetensors
from ldm.networks.autoencoder import Autoencoder


def load_first_stage(path: str, device: str) -> Autoencoder:
    """The autoencoder of a sampling file, rebuilt from its header."""
    tensors, config, _ = safetensors.load(path, "autoencoder")
    autoencoder: Autoencoder = build_untrusted(config)
    safetensors.fill(autoencoder, tensors, path)
    return autoencoder.to(pick_device(device)).eval()


@command("encode_latents")
def main(cfg: DictConfig) -> None:
    """Write each picture's posterior mean and std (fp16) beside its caption, under the autoencoder's hash."""
    autoencoder = load_first_stage(cfg.first_stage, cfg.device)
    device = autoencoder.latent_mean.device
    header = LatentHeader(
        safetensors.content_hash(autoencoder), cfg.size, autoencoder.downsampling, autoencoder.latent_channels
    )
    bf16 = precision("auto" if device.type == "cuda" else "cpu") != "32-true"

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "b 3 height width"]) -> Float[Tensor, "b two_z h w"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            posterior = autoencoder.posterior(images.to(device).float() / 127.5 - 1)
        return torch.cat([posterior.mean, posterior.std], 1)

    shards = open_shards(cfg.shards)
    write_latents(shards, Path(cfg.out), header, encode, cfg.batch_size, cfg.num_workers)
    print(f"wrote the latents of {int(shards.counts.sum()):,} pictures to {cfg.out}")


if __name__ == "__main__":
    main()
