"""Encode images once: `python -m ldm.cli.encode_latents first_stage=... shards=... out=... size=...`."""

import json
import os
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import build_untrusted, instantiate
from ldm.cli.sampling.files import pick_device
from ldm.cli.sampling.tiling import set_tile
from ldm.cli.training.setup import precision
from ldm.data.latents import Describe, EncodingReport, LatentHeader, write_latents
from ldm.data.shards.reader import open_shards
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.networks.autoencoder import Autoencoder


def load_first_stage(path: str, device: str, tile: int | None = None) -> Autoencoder:
    """The autoencoder of a model file, rebuilt from its header, to compute its maps in parts of `tile`."""
    tensors, config, _ = model_file.load(path, "autoencoder")
    autoencoder: Autoencoder = build_untrusted(config)
    model_file.load_state(autoencoder, tensors, path)
    set_tile(autoencoder, tile)
    return autoencoder.to(pick_device(device)).eval()


def rank_and_world() -> tuple[int, int]:
    """This process among those that torchrun, or srun in a batch script, started; (0, 1) where none did."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def load_encoder(config: DictConfig | None, device: torch.device) -> tuple[Describe | None, str]:
    """A frozen text encoder's states of captions, and its name; UserError where training would change it."""
    if config is None:
        return None, ""
    encoder = instantiate(config)
    if not encoder.identity():
        raise UserError(
            "this conditioner is trained along with the denoiser, so its states cannot be cached: choose a "
            "frozen one, as conditioner=clip_vit_l14"
        )
    encoder.load_pretrained()
    encoder = encoder.to(device).eval()

    @torch.no_grad()
    def describe(captions: list[str]) -> Float[Tensor, "b l d"]:
        return encoder({"caption": captions}).context

    return describe, json.dumps(encoder.identity(), sort_keys=True)


@command("encode_latents")
def main(cfg: DictConfig) -> None:
    """Write each image's posterior mean and std (fp16) beside its caption, under the autoencoder's hash."""
    rank, world = rank_and_world()
    if world > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))
    autoencoder = load_first_stage(cfg.first_stage, cfg.device, cfg.tile)
    device = autoencoder.latent_mean.device
    header = LatentHeader(
        model_file.content_hash(autoencoder),
        cfg.size,
        autoencoder.downsampling,
        autoencoder.latent_channels,
        cfg.crops,
        cfg.flip,
        image_channels=autoencoder.encoder.in_channels,
    )
    bf16 = precision("auto" if device.type == "cuda" else "cpu") != "32-true"

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "b c height width"]) -> Float[Tensor, "b two_z h w"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            posterior = autoencoder.posterior(images.to(device).float() / 127.5 - 1)
        return torch.cat([posterior.mean, posterior.std], 1)

    describe, header.text = load_encoder(cfg.get("conditioner"), device)
    if describe is not None:
        header.text_shape = tuple(describe([""]).shape[1:])
    shards, out = open_shards(cfg.shards), Path(cfg.out)
    done = write_latents(shards, out, header, encode, cfg.batch_size, cfg.num_workers, rank, world, describe)
    say(done, cfg, rank, world)


def say(done: EncodingReport, cfg: DictConfig, rank: int, world: int) -> None:
    """What became of this process's share; UserError where images or shards could not be read."""
    if done.bad and not done.pictures:
        raise UserError(
            f"none of the {done.bad:,} images in {cfg.shards} could be encoded, for what the log says: "
            "give other shards, or another first stage"
        )
    share = "" if world == 1 else f", the share of process {rank} of {world}"
    print(f"wrote the latents of {done.pictures:,} images to {cfg.out}{share}")
    if done.bad:
        print(f"left out {done.bad:,} images that cannot be read")
    if done.unreadable:
        raise UserError(f"{len(done.unreadable)} shards were left out; the first: {done.unreadable[0]}")


if __name__ == "__main__":
    main()
