"""Cache latents: `python -m ldm.cli.encode_latents first_stage=... shards=... out=... size=...`."""

import os
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.device import default_precision
from ldm.cli.sampling.first_stage import load_first_stage
from ldm.conditioning.base import Compose
from ldm.conditioning.text import cached_encoder, encoder_identity
from ldm.data.latents import TEXT, TEXT_MASK, LatentHeader
from ldm.data.prepare.write_latents import EncodeText, EncodingReport, write_latents
from ldm.data.shards.reader import open_shards
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.typing import Conditioning


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size) as set by torchrun, or by srun in a job script; (0, 1) otherwise."""
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world_size in os.environ:
            return int(os.environ[rank]), int(os.environ[world_size])
    return 0, 1


def load_encoder(config: DictConfig | None, device: torch.device) -> tuple[EncodeText | None, str]:
    """Return a function that encodes captions by a frozen text encoder, and the encoder's identity.

    UserError for a conditioner that is trained.
    """
    if config is None:
        return None, ""
    encoder: Compose = instantiate(config)
    if cached_encoder(encoder) is None:
        raise UserError(
            "only the states of one frozen text encoder without a pooled vector can be cached: choose one "
            "such as conditioner=clip_vit_l14 or t5, or encode without a conditioner"
        )
    encoder.load_pretrained()
    encoder = encoder.to(device).eval()

    @torch.no_grad()
    def encode_text(captions: list[str]) -> dict[str, Tensor]:
        cond: Conditioning = encoder({"caption": captions})
        assert cond.context is not None
        masks = {} if cond.context_mask is None else {TEXT_MASK: cond.context_mask}
        return {TEXT: cond.context, **masks}

    return encode_text, encoder_identity(encoder)


@command("encode_latents")
def main(cfg: DictConfig) -> None:
    """Write each image's posterior mean and std (fp16) and caption; the header has the autoencoder's hash."""
    rank, world_size = rank_and_world_size()
    if world_size > 1 and torch.cuda.is_available():
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
    bf16 = default_precision(device.type) == "bf16-mixed"  # the range of fp16 is too small for an encoder

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "b c height width"]) -> Float[Tensor, "b two_z h w"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            posterior = autoencoder.posterior(images.to(device).float() / 127.5 - 1)
        return torch.cat([posterior.mean, posterior.std], 1)

    encode_text, header.text = load_encoder(cfg.get("conditioner"), device)
    if encode_text is not None:
        empty = encode_text([""])
        header.text_shape, header.text_mask = tuple(empty[TEXT].shape[1:]), TEXT_MASK in empty
        header.caption = cfg.caption
    shards, out = open_shards(cfg.shards, cfg.index, instantiate(cfg.cache)), Path(cfg.out)
    result = write_latents(
        shards, out, header, encode, cfg.batch_size, cfg.num_workers, rank, world_size, encode_text
    )
    print_report(result, cfg, rank, world_size)


def print_report(result: EncodingReport, cfg: DictConfig, rank: int, world_size: int) -> None:
    """Print how many images this process encoded; UserError if images or shards could not be read."""
    if result.bad and not result.images:
        raise UserError(
            f"none of the {result.bad:,} images in {cfg.shards} could be encoded, see the log for the "
            "reasons: use other shards, or another first_stage"
        )
    share = "" if world_size == 1 else f", the share of process {rank} of {world_size}"
    print(f"wrote the latents of {result.images:,} images to {cfg.out}{share}")
    if result.without_caption:
        print(f"{result.without_caption:,} of them have no caption ({cfg.caption}), or an empty one")
    if result.bad:
        print(f"left out {result.bad:,} images that cannot be read")
    if shards := result.unreadable_shards:
        raise UserError(f"{len(shards)} shards were left out; the first: {shards[0]}")


if __name__ == "__main__":
    main()
