"""The smallest networks, shards and trainers, for tests that train."""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm.callbacks.checkpoint import AtomicCheckpointIO
from ldm.callbacks.loggers.csv import CSVLogger
from ldm.conditioning.base import Compose
from ldm.conditioning.tokenizer import ClipTokenizer
from ldm.conditioning.transformer_text import TransformerText
from ldm.data.datamodule import ShardDataModule
from ldm.data.prepare.write_shards import write_shard
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.diffusion.times import UniformTimes
from ldm.diffusion.weighting import Uniform, Weighting
from ldm.losses.adversary import Adversary
from ldm.losses.equivariance import Equivariance
from ldm.losses.perceptual import RandomVGG
from ldm.losses.reconstruction import ReconstructionLoss
from ldm.model import LatentDiffusion
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.discriminator import PatchDiscriminator
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.unet import UNet
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.learning_rate import WarmUpCosine
from ldm.typing import Batch

SIZE, WORDS = 16, ("a", "red", "green", "blue", "square")
COLOURS = {"red": (230, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
ADAM = partial(torch.optim.Adam, lr=3e-3)


def autoencoder() -> Autoencoder:
    """16x16 pixels to 4x4 latents of 4 channels; 10,000 parameters."""
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=8)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4)
    return Autoencoder(encoder, decoder, KLBottleneck(4))


def adversary(start: int = 2, warmup: int = 1, ramp_steps: int = 0) -> Adversary:
    return Adversary(PatchDiscriminator(channels=4, num_layers=1), 0.5, start, warmup, ramp_steps)


def first_stage(
    model: Autoencoder | None = None,
    adversary: Adversary | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    decoder_only: bool = False,
    init: str | None = None,
    micro_batch_size: int = 0,
    log_every: int = 1,
    logvar: nn.Module | None = None,
    equivariance: Equivariance | None = None,
) -> AutoencoderStage:
    return AutoencoderStage(
        model or autoencoder(),
        ReconstructionLoss(),
        RandomVGG([4], [1]),
        adversary,
        optimizer,
        WarmUpCosine(500, warmup_steps=2),
        logvar=logvar,
        equivariance=equivariance,
        decoder_only=decoder_only,
        init=init,
        statistics_batches=3,
        micro_batch_size=micro_batch_size,
        log_every=log_every,
    )


def diffusion(dropout: float = 0.0) -> LatentDiffusion:
    """Text to images; `dropout` is the U-Net's, that of the caption is 0.3."""
    text = TransformerText(ClipTokenizer(6, 49407, WORDS), 8, 1, 2, pooled=True, dropout=0.3)
    unet = UNet(4, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8, dropout=dropout)
    return LatentDiffusion(unet, autoencoder(), Compose({"text": text}), Cosine(100, 0.008, 0.999), V())


def second_stage(
    model: LatentDiffusion | None = None,
    first_stage_weights: str | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    init: str | None = None,
    micro_batch_size: int = 0,
    prompts: Sequence[str] = (),
    weighting: Weighting | None = None,
    strata: int = 1,
    offset_noise: float = 0.0,
    input_perturbation: float = 0.0,
) -> LatentDiffusionStage:
    return LatentDiffusionStage(
        model or diffusion(),
        weighting or Uniform(),
        UniformTimes(100),
        optimizer,
        WarmUpCosine(500, warmup_steps=2),
        first_stage_weights,
        init=init,
        prompts=prompts,
        preview_steps=2,
        micro_batch_size=micro_batch_size,
        log_every=1,
        strata=strata,
        offset_noise=offset_noise,
        input_perturbation=input_perturbation,
    )


def batch(n: int, first: int = 0) -> Batch:
    """n images of coloured squares at different positions, with captions."""
    images = torch.full((n, 3, SIZE, SIZE), 20, dtype=torch.uint8)
    captions = []
    for i, position in enumerate(range(first, first + n)):
        name = list(COLOURS)[position % 3]
        y, x = position % 5, 2 * position % 7
        images[i, :, y : y + 8, x : x + 8] = torch.tensor(COLOURS[name], dtype=torch.uint8)[:, None, None]
        captions.append(f"a {name} square")
    positions = torch.arange(first, first + n)
    return {"position": positions, "key": [str(p) for p in range(n)], "image": images, "caption": captions}


def shards(folder: Path, n: int = 12) -> str:
    """Write the images of `batch(n)` as one shard; return its folder."""
    images = batch(n)
    samples = []
    for i, (image, caption) in enumerate(zip(images["image"], images["caption"], strict=True)):
        file = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        samples.append((f"{i:09d}", {"png": file.getvalue(), "txt": caption.encode()}))
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "00000.tar", samples)
    return str(folder)


def data(folder: Path, steps: int, batch_size: int = 4) -> ShardDataModule:
    """Training and validation on the same images."""
    path = str(folder) if (folder / "00000.tar").exists() else shards(folder)
    return ShardDataModule(path, path, batch_size, SIZE, steps, val_batches=2)


def trainer(
    max_steps: int,
    callbacks: Sequence[Callback] = (),
    log: Path | None = None,
    validate_every: int = 10**6,
    processes: int = 1,
    precision: Any = "32-true",
) -> Trainer:
    """As configs/trainer/cpu.yaml, in fp32 and without output."""
    fp16 = [MixedPrecision("16-mixed", "cpu")] if precision == "16-mixed" else []
    return Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork",
        precision=None if fp16 else precision,  # Lightning would replace fp16 by bf16 on a CPU
        max_steps=max_steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False if log is None else CSVLogger(str(log)),
        plugins=[AtomicCheckpointIO(), *fp16],
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(
    stage: Any,
    batches: list[Batch],
    callbacks: Sequence[Callback] = (),
    max_steps: int | None = None,
    precision: Any = "32-true",
) -> Trainer:
    """Train one step per batch, without validation."""
    lightning_trainer = trainer(max_steps or len(batches), callbacks, precision=precision)
    lightning_trainer.limit_val_batches = 0
    lightning_trainer.fit(stage, DataLoader(batches, batch_size=None))
    return lightning_trainer


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed_names(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that have changed by any bit."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def read_column(log: Path, name: str) -> dict[int, float]:
    """Return step -> value of one column of metrics.csv, for the rows that have a value."""
    with open(log, newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}
