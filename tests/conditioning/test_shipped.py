"""Every shipped conditioner fits a shipped denoiser, as its comment says, and the data has its batch keys."""

import json
import re
from functools import cache
from io import BytesIO

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.config.compose import CONFIGS, compose
from ldm.cli.config.instantiate import instantiate
from ldm.conditioning import clip_tower
from ldm.conditioning.rescalers import MaxPoolMask, PixelUnshuffle, Resize
from ldm.data.prepare.write_shards import write_shard
from ldm.diffusion.parameterization import Eps, V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine, ScaledLinear
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.interop.instantiate import build_untrusted
from ldm.model import LatentDiffusion
from ldm.networks.unet import UNet
from tests.support import tiny
from tests.support.configs import options

NAMES = options("conditioner")
DEMO = ["denoiser=demo", "autoencoder=demo"]
MAPS = ["denoiser.context_channels=null", "denoiser.vector_channels=null"]
FITTING = {
    "class_label": ["denoiser=ldm4_imagenet", "autoencoder=vq_f4"],
    "class_number": ["denoiser=dit_xl2"],
    "clip_image": [],
    "clip_vit_h14": ["denoiser=sd2"],
    "clip_vit_l14": [],
    "debug": ["denoiser=debug", "denoiser.context_channels=8", "autoencoder=debug"],
    "depth": ["denoiser=sd2_depth"],
    "edges": ["denoiser.in_channels=68"],
    "inpainting_ldm": ["denoiser=ldm4_inpainting", "autoencoder=vq_f4_noattn"],
    "inpainting_sd": ["denoiser=sd15_inpainting"],
    "inpainting_sd2": ["denoiser=sd2_inpainting"],
    "layout": ["denoiser=ldm4_layout", "autoencoder=vq_f4"],
    "sdxl": ["denoiser=sdxl"],
    "sdxl_refiner": ["denoiser=sdxl_refiner"],
    "sdxl_text": ["denoiser=sdxl", "denoiser.vector_channels=1280"],
    "semantic": ["denoiser=ldm4_semantic", "autoencoder=vq_f4"],
    "semantic_tokens": ["denoiser=ldm4_semantic", "denoiser.context_channels=512", "autoencoder=vq_f4"],
    "super_resolution": ["denoiser=ldm4_super_resolution", "autoencoder=vq_f4"],
    "t5": [],
    "transformer_text": ["denoiser.context_channels=512"],
    "transformer_text_1280": ["denoiser=ldm8_text"],
    "unconditional": ["denoiser=ldm4_faces", "autoencoder=vq_f4"],
    "x4_upscaler": ["denoiser=sd2_x4_upscaler", "autoencoder=kl_f4_upscaler"],
    "demo/class": DEMO,
    "demo/class_depth": [*DEMO, "denoiser.in_channels=72"],
    "demo/depth": [*DEMO, "denoiser.in_channels=72", *MAPS],
    "demo/edges": [*DEMO, "denoiser.in_channels=72", *MAPS],
    "demo/inpainting": [*DEMO, "denoiser.in_channels=80"],
    "demo/inpainting_ldm": [*DEMO, "denoiser.in_channels=17", *MAPS],
    "demo/layout": [*DEMO, "denoiser.vector_channels=null"],
    "demo/image": DEMO,
    "demo/semantic": [*DEMO, "denoiser.in_channels=24", *MAPS],
    "demo/semantic_tokens": [*DEMO, "denoiser.vector_channels=null"],
    "demo/sizes": [*DEMO, "denoiser.vector_channels=240"],
    "demo/super_resolution": [*DEMO, "denoiser.in_channels=20", *MAPS],
    "demo/text": DEMO,
    "demo/unconditional": [*DEMO, *MAPS],
    "demo/upscaler": [*DEMO, "denoiser.in_channels=20", "denoiser.vector_channels=256"],
}
PUBLISHED = {
    "class_label": (512, None, None),
    "inpainting_ldm": (None, None, 4),
    "inpainting_sd": (768, None, 5),
    "inpainting_sd2": (1024, None, 5),
    "sdxl": (2048, 2816, None),
    "sdxl_refiner": (1280, 2560, None),
    "semantic": (None, None, 3),
    "super_resolution": (None, None, 3),
    "x4_upscaler": (1024, 1, 3),
    "depth": (1024, None, 1),
    "layout": (512, None, None),
}
"""Channels of (context, vector, concat)."""


@cache
def leaf(group, name):
    """Return a group's config; only those with defaults are composed by Hydra, which is slow."""
    plain = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    required = ["name=x", "trainer.max_steps=1", "stage=latent_diffusion", "data.shards=a", "first_stage=b"]
    return compose("train", [*required, f"{group}={name}"])[group] if "defaults" in plain else plain


def model(*words):
    """Return the model of `group=name` and `group.key=value`, on the meta device."""
    choices = dict(word.split("=") for word in words if "." not in word.split("=")[0])
    groups = {"denoiser": "sd15", "autoencoder": "kl_f8"} | choices
    cfg = OmegaConf.create({group: leaf(group, name) for group, name in groups.items()})
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([w for w in words if "." in w.split("=")[0]]))
    with torch.device("meta"):
        parts = [instantiate(cfg[group]) for group in ("denoiser", "autoencoder", "conditioner")]
        return LatentDiffusion(*parts, ScaledLinear(), Eps())


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_a_denoiser_which_its_comment_names(name):
    words = FITTING[name]
    assert model(f"conditioner={name}", *words)
    comment = re.match(r"(#.*\n)+", (CONFIGS / "conditioner" / f"{name}.yaml").read_text())[0]
    for word in words if name not in ("debug", "sdxl_text") else ():
        if word.startswith("denoiser.") and not name.startswith(("transformer", "semantic_tokens")):
            assert word in comment


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_channels_are_the_published_ones(name):
    null = model(f"conditioner={name}", *FITTING[name]).null(2, (32, 32))
    widths = [None if v is None else v.shape for v in (null.context, null.vector, null.concat)]
    assert tuple(w and (w[1] if len(w) == 4 else w[-1]) for w in widths) == PUBLISHED[name]
    assert all(w is None or w[0] == 2 for w in widths)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conditioner=demo/depth", *DEMO, *MAPS], "10 input channels, .* 8 .* 64.*denoiser.in_channels=72"),
        (["conditioner=demo/class", *DEMO, "denoiser.in_channels=8"], "denoiser.in_channels=10"),
        (["conditioner=clip_vit_h14"], "context of 768 channels, .* 1024.*denoiser.context_channels=1024"),
        (["conditioner=demo/layout", *DEMO], "no vector: set denoiser.vector_channels=null"),
        (["conditioner=demo/class", *DEMO, "denoiser.context_channels=null"], "takes no context"),
        (["conditioner=clip_vit_l14", "denoiser=sd2_unclip", "denoiser.context_channels=768"],
         "a vector of 2048 channels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_numbers(words, message):
    with pytest.raises(UserError, match=message):
        model(*words)


@pytest.mark.parametrize(
    ("name", "order", "background", "rescaler"),
    [
        ("inpainting_ldm", ["masked", "mask"], -1, Resize),
        ("inpainting_sd", ["text", "mask", "masked"], 0, Resize),
        ("inpainting_sd2", ["text", "mask", "masked"], 0, Resize),
        ("demo/inpainting_ldm", ["masked", "mask"], -1, MaxPoolMask),
        ("demo/inpainting", ["text", "mask", "masked"], 0, PixelUnshuffle),
    ],
)
def test_inpainting_has_the_published_order(name, order, background, rescaler):
    """Latent diffusion: z, masked latent, mask -1 or 1; Stable Diffusion: z, mask 0 or 1, masked latent."""
    parts = model(f"conditioner={name}", *FITTING[name]).conditioner.conditioners
    assert list(parts) == order
    assert parts["mask"].background == background and type(parts["mask"].rescaler) is rescaler


SECOND_STAGE = [
    name for name in options("experiment") if not name.startswith(("ae_", "debug/", "demo/ae", "emoji/ae"))
]
HEIGHT, WIDTH, MAX_SIZE = 300, 340, 128


@pytest.fixture(scope="module")
def whole_shard(tmp_path_factory):
    """A shard of images with every kind of annotation: caption, class, maps, boxes, sizes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards")

    def png(*shape, numbers=180):
        file = BytesIO()
        Image.fromarray(rng.integers(0, numbers, shape, np.uint8)).save(file, "PNG")
        return file.getvalue()

    metadata = {"boxes": [[3, 0.1, 0.1, 0.9, 0.8], [7, 0.3, 0.3, 0.7, 0.7]], "aesthetic": 5.5}
    metadata |= {"width": WIDTH, "height": HEIGHT}
    samples = []
    for row in range(8):
        members = {"png": png(HEIGHT, WIDTH, 3), "txt": b"a red circle", "cls": b"3"}
        maps = {"seg.png": png(HEIGHT, WIDTH, numbers=13), "depth.png": png(HEIGHT, WIDTH)}
        maps["mask.png"] = png(HEIGHT, WIDTH)
        samples.append((f"{row:09d}", {**members, **maps, "json": json.dumps(metadata).encode()}))
    write_shard(folder / "00000.tar", samples)
    return str(folder)


@pytest.mark.parametrize("name", SECOND_STAGE)
def test_the_data_of_an_experiment_have_the_batch_keys_of_its_model(name, whole_shard):
    """A real batch becomes conditions that the denoiser accepts; on the meta device, so without weights."""
    settings = [f"data.shards={whole_shard}", "init=a", "first_stage=b"]
    cfg = compose(
        "train", [f"experiment={name}", *settings, "data.global_batch_size=4", "data.num_workers=0"]
    )
    size = cfg.data.size = min(cfg.data.size, MAX_SIZE)  # the demo's conditions need its own size
    if cfg.data.order.buckets is not None:
        cfg.data.order.buckets.shapes = [[size, size]]
    batch = next(iter(instantiate(cfg.data).train_dataloader()))
    with torch.device("meta"):
        model = instantiate(cfg.stage.model)
        needed = {key for part in model.conditioner.conditioners.values() for key in part.batch_keys}
        assert needed <= batch.keys() and batch["image"].shape == (4, 3, size, size)
        z, h, w = model.latent_shape(size, size)
        u = torch.rand(4, len(model.conditioner), device="cpu")
        model.denoiser.check(torch.zeros(4, z, h, w), model.condition(batch, u, (h, w)))


def test_a_model_without_any_condition_trains_and_samples():
    unet = UNet(4, 4, 16, (1, 2), 1, (1,), 2, None, None)
    unconditional = build_untrusted(OmegaConf.to_container(leaf("conditioner", "unconditional")))
    model = LatentDiffusion(unet, tiny.autoencoder(), unconditional, Cosine(100, 0.008, 0.999), V())
    stage = tiny.second_stage(model)
    assert stage.training_losses(tiny.batch(2)).isfinite().all() and not model.supports_guidance
    images = model.generate(
        {"caption": [""]}, [0], (16, 16), sampler=ddim, times=trailing(model.schedule, 2), scale=1.0
    )
    assert images.shape == (1, 3, 16, 16)


def test_the_null_of_the_refiner_is_the_encoded_empty_prompt(tmp_path, monkeypatch):
    """As published; the null of SDXL's base is zeros."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    vision = {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-refiner.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-refiner.json")
    node = leaf("conditioner", "sdxl_refiner").copy()
    node.conditioners.text.name = "tiny-refiner"
    conditioner = instantiate(node)
    for p in conditioner.parameters():
        torch.nn.init.normal_(p, std=0.2)
    monkeypatch.setattr(clip_tower, "load_tower", lambda *_: None)
    conditioner.load_pretrained()
    empty, null = conditioner({"caption": [""]}, active={"text"}), conditioner.null(1)
    torch.testing.assert_close(null.context, empty.context)
    torch.testing.assert_close(null.vector, empty.vector)
    assert null.context.abs().min() > 0 and null.vector[:, :8].abs().min() > 0
