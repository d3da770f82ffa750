"""Tiny models of every kind for tests of sampling: configs, model files, and inputs for tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ldm.cli.config.compose import CONFIGS, compose
from ldm.cli.config.instantiate import instantiate
from ldm.interop import model_file

TINY = [
    "experiment=debug/text",
    "data.shards=shards",
    "autoencoder.encoder.channel_mult=[1,2,2]",
    "autoencoder.decoder.channel_mult=[1,2,2]",
]
"""A text-to-image model of factor 4: 16x16 pixels are 4x4 latents."""
FACTOR_8 = [
    *TINY[:2],
    "autoencoder.encoder.channel_mult=[1,1,2,2]",
    "autoencoder.decoder.channel_mult=[1,1,2,2]",
]
NO_CONTEXT = ["denoiser.context_channels=null"]
UNCONDITIONAL = ["conditioner=unconditional", *NO_CONTEXT]
SIZES = ["conditioner=demo/sizes", "conditioner.conditioners.text.width=8", "denoiser.in_channels=6",
    "+denoiser.vector_channels=120", "denoiser.model_channels=64"]  # fmt: skip
"""64 channels: a group norm over groups of one channel would remove what the vector adds to it."""
SEVERAL = ["conditioner=demo/class", "conditioner.conditioners.label.width=8", "denoiser.in_channels=70",
    "+denoiser.vector_channels=8", "denoiser.model_channels=64"]  # fmt: skip
"""Class, text and depth, see `model_config`."""
MODELS = {
    "text": [],
    "class": ["conditioner=demo/class", "denoiser.in_channels=6", "conditioner.conditioners.label.width=8",
        "+denoiser.vector_channels=8"],
    "layout": ["conditioner=demo/layout", "denoiser.in_channels=6",
        "conditioner.conditioners.boxes.width=8"],
    "semantic": ["conditioner=demo/semantic", "denoiser.in_channels=20", *NO_CONTEXT],
    "depth": ["conditioner=demo/depth", "denoiser.in_channels=68", *NO_CONTEXT],
    "inpaint_model": ["conditioner=demo/inpainting_ldm", "denoiser.in_channels=9",
        "conditioner.conditioners.masked.channels=4", *NO_CONTEXT],
    "inpaint_model_sd": ["conditioner=demo/inpainting", "denoiser.in_channels=72",
        "conditioner.conditioners.masked.channels=4", "conditioner.conditioners.text.width=8",
        "+denoiser.vector_channels=8"],
    "super_resolution": ["conditioner=demo/super_resolution", "denoiser.in_channels=16", *NO_CONTEXT],
    "upscaler": ["conditioner=demo/upscaler", "conditioner.conditioners.text.width=8",
        "denoiser.in_channels=16", "+denoiser.vector_channels=136"],
    "variation": ["conditioner=demo/image", "conditioner.conditioners.image.width=8",
        "denoiser.in_channels=6", "+denoiser.vector_channels=8"],
    "edges": ["conditioner=demo/edges", "denoiser.in_channels=68", *NO_CONTEXT],
    "dit": ["conditioner=class_number", "conditioner.conditioners.label.num_classes=12", "denoiser=dit_b2",
        "~denoiser.model_channels", "denoiser.num_labels=13", "denoiser.channels=16", "denoiser.depth=1",
        "denoiser.num_heads=2", *NO_CONTEXT],
    "unconditional": UNCONDITIONAL,
    "grey": [*UNCONDITIONAL, "autoencoder.encoder.in_channels=1", "autoencoder.decoder.out_channels=1"],
    "five_channels": [*UNCONDITIONAL, "autoencoder.encoder.in_channels=5",
        "autoencoder.decoder.out_channels=5"],
    "sizes": SIZES,
    "sizes_always_on": [*SIZES, "conditioner.conditioners.sizes.dropout=0.0",
        "conditioner.conditioners.aesthetic.dropout=0.0"],
    "several": SEVERAL,
    "several_depth_always_on": SEVERAL,
}  # fmt: skip
"""For each model, its overrides of `FACTOR_8`."""


def sample_config(*overrides: str) -> DictConfig:
    """Return the config of sample.py for 2 images of one prompt."""
    return compose("sample", ["ckpt=c", "prompts=[p]", "n=2", *overrides])


def model_config(name: str) -> dict[str, Any]:
    """Return the config of a model of `MODELS`."""
    model: DictConfig = compose("train", [*FACTOR_8, *MODELS[name]]).stage.model
    conditioners = model.conditioner.conditioners
    if MODELS[name] is SEVERAL:
        for file, condition in (("debug", "text"), ("demo/depth", "depth")):
            source = OmegaConf.load(CONFIGS / "conditioner" / f"{file}.yaml").conditioners
            OmegaConf.update(conditioners, condition, source[condition], force_add=True)
        conditioners.depth.dropout = 0.1 if name == "several" else 0.0
    config = OmegaConf.to_container(model, resolve=True)
    assert isinstance(config, dict)
    return config


class ModelFiles:
    """Model files of random weights for images of 32x32 pixels, each written when it is first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> str:
        """Return the path of the file of a model of `MODELS`."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            config = model_config(name)
            torch.manual_seed(0)
            model = instantiate(config)
            condition_std = 1.0 if MODELS[name] is SEVERAL else 0.2
            for (
                key,
                p,
            ) in model.named_parameters():  # also the zero-initialised ones, or conditions change nothing
                is_condition = key.startswith("conditioner") or "cross_attention" in key
                torch.nn.init.normal_(p, std=condition_std if is_condition else 0.2)
            model_file.save(path, model.state_dict(), config, "latent_diffusion", {"size": "32", "step": "0"})
        return str(path)


def write_inputs(folder: Path) -> dict[str, str]:
    """Write images, maps, masks of 32x32 pixels and boxes for tasks; return their paths by name."""
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
