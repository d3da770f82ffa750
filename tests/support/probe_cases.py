"""The smallest arguments of each class and function that configs name, and how to run what they build."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch

from ldm.data.fields.image import ImageField
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import ScaledLinear
from tests.support import tiny
from tests.support.probes import (
    SCHEDULE,
    WIDE,
    Case,
    call,
    make_adversary,
    make_partial,
    run_adversary,
    run_bottleneck,
    run_decoder,
    run_denoiser,
    run_field,
    run_guidance,
    run_image,
    run_loss,
    run_rate,
    run_sampler,
    run_schedule,
    run_spacing,
    run_times,
    run_tokens,
    run_weighting,
)


def cases(names: str, case: Case) -> dict[str, Case]:
    return {f"ldm.{name}": case for name in names.split()}


def conditioner(case: Mapping[str, Any]) -> Case:
    return Case(case, largest=WIDE)


FACTOR = {"dropout": 0.1, "factor": 8}
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_levels": [1],
    "num_heads": 2,
    "head_channels": None,
    "context_channels": 8,
}
DIT = {
    "in_channels": 4,
    "out_channels": 4,
    "patch": 2,
    "channels": 32,
    "depth": 1,
    "num_heads": 2,
    "context_channels": 8,
}
CONV = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1}
DEEP = {"channels": 16, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "attention_levels": []}
DATA = {"shards": "x", "val_shards": None, "global_batch_size": 4, "size": 32, "steps": 5}
ROWS = np.zeros(3, [("width", "u4"), ("height", "u4"), ("caption", "u4"), ("score", "f2")])
TABLES = {"num_steps": 1000}


def with_tokenizer(target: str, **arguments: Any) -> Any:
    words = None if "Clip" in target else ["a", "red"]
    tokenizer = call("ldm.conditioning.tokenizer.ClipTokenizer", length=77, pad_token=49407, words=words)
    return call(target, tokenizer=tokenizer, **arguments)


def with_tower(target: str, **arguments: Any) -> Any:
    tower = with_tokenizer("ldm.conditioning.clip_text.ClipText", name="ViT-B-32", weights="x")
    return call(target, towers=[tower], **arguments)


def with_rescaler(target: str, **arguments: Any) -> Any:
    rescaler = call("ldm.conditioning.rescalers.PixelUnshuffle", channels=1, factor=8)
    return call(target, rescaler=rescaler, **arguments)


def with_model(target: str, **arguments: Any) -> Any:
    stage = tiny.first_stage() if target.endswith("AutoencoderStage") else tiny.second_stage()
    keys = ("perceptual", "adversary", "reconstruction", "optimizer", "weighting", "times")
    parts = {key: getattr(stage, key) for key in keys if hasattr(stage, key)}
    return call(
        target,
        model=stage.model,
        learning_rate=lambda step: 1.0,
        **{"optimizer": tiny.ADAM} | parts | arguments,
    )


CASES: dict[str, Case] = {
    **cases(
        "diffusion.schedule.Cosine diffusion.schedule.Linear diffusion.schedule.ScaledLinear "
        "diffusion.schedule.RectifiedFlow diffusion.schedule.Karras",
        Case(run=run_schedule),
    ),
    **cases("diffusion.times.UniformTimes diffusion.times.LogitNormalTimes", Case(TABLES, run_times)),
    "ldm.diffusion.times.LogNormalTimes": Case({"schedule": ScaledLinear()}, run_times),
    "ldm.diffusion.times.ShiftedTimes": Case(
        TABLES | {"times": call("ldm.diffusion.times.UniformTimes", num_steps=1000)}, run_times
    ),
    **cases(
        "diffusion.weighting.EDM diffusion.weighting.MinSNR diffusion.weighting.SoftMinSNR",
        Case({"parameterization": V()}, run_weighting),
    ),
    "ldm.diffusion.weighting.LearnedUncertainty": Case(
        {"weighting": call("ldm.diffusion.weighting.Uniform")}, run_weighting
    ),
    "ldm.diffusion.parameterization.EDM": Case(
        run=lambda p: [
            p.input_scale(SCHEDULE.alpha(torch.tensor([1.0])), SCHEDULE.sigma(torch.tensor([1.0])))
        ]
    ),
    "ldm.diffusion.times.karras": Case(run=run_spacing, make=make_partial),
    "ldm.diffusion.times.explicit": Case(run=run_spacing, make=make_partial),
    **cases(
        "diffusion.samplers.ddim.ddim diffusion.samplers.dpmpp_2m.dpmpp_2m diffusion.samplers.edm.edm "
        "diffusion.samplers.euler_ancestral.euler_ancestral",
        Case(run=run_sampler, make=make_partial),
    ),
    "ldm.diffusion.samplers.unipc.unipc": Case(
        {"b": resolve_name("ldm.diffusion.samplers.unipc.bh2")}, run_sampler, make=make_partial
    ),
    **cases(
        "diffusion.guidance.instruct_pix2pix_cfg diffusion.guidance.interval_cfg "
        "diffusion.guidance.rescaled_cfg",
        Case(run=run_guidance, make=make_partial),
    ),
    "ldm.diffusion.guidance.NestedCFG": Case(),
    "ldm.losses.adversary.Adversary": Case(
        {"weight": 0.5, "start": 5, "warmup": 2}, run_adversary, make=make_adversary
    ),
    "ldm.losses.equivariance.Equivariance": Case(run=lambda e: [e.scale_length(4), e.scale_length(8, 0.5)]),
    "ldm.losses.logvar.LearnedLogVar": Case(run=lambda s: [s(torch.tensor(0.5))]),
    "ldm.losses.perceptual.LPIPS": Case(largest=-1),
    "ldm.losses.perceptual.MultiScaleSSIM": Case(run=run_loss),
    "ldm.losses.perceptual.RandomVGG": Case({"channels": [4], "convs": [1]}, run_loss),
    "ldm.losses.reconstruction.ReconstructionLoss": Case(run=run_loss),
    "ldm.losses.regularizers.LeCam": Case({"weight": 0.1}),
    "ldm.losses.regularizers.R1": Case(),
    **cases("networks.autoencoder.Encoder", Case(CONV, run_image, WIDE)),
    **cases("networks.autoencoder.Decoder", Case(CONV, run_decoder, WIDE)),
    **cases(
        "networks.patch_autoencoder.PatchEncoder",
        Case({"channels": 8, "patch": 4, "num_res_blocks": 1}, run_image, WIDE),
    ),
    **cases(
        "networks.patch_autoencoder.PatchDecoder",
        Case({"channels": 8, "patch": 4, "num_res_blocks": 1, "in_channels": 4}, run_decoder, WIDE),
    ),
    "ldm.networks.dc_ae.DeepEncoder": Case(DEEP | {"in_channels": 3, "out_channels": 8}, run_image, WIDE),
    "ldm.networks.dc_ae.DeepDecoder": Case(DEEP | {"in_channels": 8, "out_channels": 3}, run_decoder, WIDE),
    "ldm.networks.identity_autoencoder.IdentityEncoder": Case(run=run_image, largest=WIDE),
    "ldm.networks.identity_autoencoder.IdentityDecoder": Case(run=run_decoder, largest=WIDE),
    "ldm.networks.discriminator.PatchDiscriminator": Case({"channels": 8, "num_layers": 1}, run_image, WIDE),
    "ldm.networks.bottleneck.KLBottleneck": Case({"latent_channels": 4}, run_bottleneck, WIDE),
    "ldm.networks.bottleneck.NoBottleneck": Case({}, run_bottleneck, WIDE),
    "ldm.networks.vector_quantizer.VQBottleneck": Case(
        {"latent_channels": 4, "num_codes": 16}, run_bottleneck, WIDE
    ),
    "ldm.networks.unet.UNet": Case(UNET, run_denoiser, WIDE),
    "ldm.networks.dit.DiT": Case(DIT, run_denoiser, WIDE),
    "ldm.stages.AutoencoderStage": Case(make=with_model),
    "ldm.stages.LatentDiffusionStage": Case({"first_stage_weights": None}, make=with_model),
    "ldm.stages.learning_rate.WarmUp": Case(run=run_rate),
    "ldm.stages.learning_rate.WarmUpCosine": Case({"total_steps": 1000}, run_rate),
    **cases(
        "callbacks.checkpoint.Checkpoint callbacks.skip_bad_steps.SkipBadSteps callbacks.watchdog.Watchdog",
        Case({"folder": "x"}),
    ),
    **cases("callbacks.ema.EMA callbacks.progress.ProgressBar callbacks.preemption.Preemption", Case()),
    "ldm.callbacks.loggers.wandb.WandbLogger": Case({"folder": "x", "project": "x", "name": "x"}),
    "ldm.callbacks.image_logger.ImageLogger": Case({"folder": "x", "every_n_steps": 5}),
    "ldm.callbacks.posthoc_ema.PostHocEMA": Case({"folder": "x", "every_n_steps": 5, "lengths": [0.1]}),
    "ldm.conditioning.boxes.BoxTokens": conditioner(
        {"num_labels": 3, "width": 8, "num_boxes": 2, "dropout": 0.1, "depth": 1, "num_heads": 2}
    ),
    "ldm.conditioning.class_label.ClassLabel": conditioner({"num_classes": 3, "width": 8, "dropout": 0.1}),
    "ldm.conditioning.class_label.ClassNumber": conditioner({"num_classes": 3, "dropout": 0.1}),
    "ldm.conditioning.coordinates.Coordinates": conditioner({}),
    "ldm.conditioning.image_encoder.ImageEncoder": conditioner(
        {"size": 16, "patch": 4, "width": 8, "depth": 1, "num_heads": 2, "patches": True, "dropout": 0.1}
    ),
    "ldm.conditioning.scalars.Scalars": conditioner(
        {"batch_key": "sizes", "n": 2, "width": 4, "dropout": 0.1}
    ),
    "ldm.conditioning.tokenizer.ClipTokenizer": conditioner({"length": 6, "pad_token": 0}),
    "ldm.conditioning.transformer_text.TransformerText": Case(
        {"width": 8, "depth": 1, "num_heads": 2}, largest=WIDE, make=with_tokenizer
    ),
    "ldm.conditioning.spatial.ScalarMap": Case({"batch_key": "depth", **FACTOR}, make=with_rescaler),
    "ldm.conditioning.spatial.SemanticMap": Case({"num_labels": 3, **FACTOR}, make=with_rescaler),
    "ldm.conditioning.spatial.Mask": Case({"background": 0, **FACTOR}, make=with_rescaler),
    "ldm.conditioning.spatial.LatentImage": Case({"channels": 4, **FACTOR}),
    "ldm.conditioning.spatial.MapTokens": Case(
        {"in_channels": 3, "width": 8, "patch": 4, "side": 4}, run_tokens, WIDE
    ),
    "ldm.conditioning.low_resolution.LowResolution": Case(
        FACTOR | {"schedule": SCHEDULE, "factor": 1}, make=with_rescaler
    ),
    "ldm.conditioning.rescalers.LearnedRescaler": Case({"in_channels": 3, "out_channels": 2}, largest=WIDE),
    "ldm.conditioning.rescalers.MaxPoolMask": Case(),
    "ldm.conditioning.rescalers.PixelUnshuffle": Case({"channels": 1, "factor": 2}),
    "ldm.conditioning.rescalers.Resize": Case({"mode": "nearest"}),
    "ldm.conditioning.pretrained_text.PretrainedText": conditioner({"name": "x", "width": 4}),
    **cases("data.fields.degradations.BSRGANDegradation", Case({"factor": 2, "seed": 0}, run_field)),
    **cases("data.fields.degradations.Downsampled", Case({}, run_field)),
    "ldm.data.fields.degradations.NoiseAugmentation": Case({"max_noise_level": 5, "seed": 0}),
    **cases("data.fields.masks.BrushMask data.fields.masks.RectangleMask", Case({"seed": 0}, run_field)),
    "ldm.data.fields.masks.MaskedImage": Case({}, run_field),
    "ldm.data.fields.masks.RandomChoice": Case(
        {"ways": [call("ldm.data.fields.masks.FullMask")], "weights": [1], "seed": 0}, run_field
    ),
    "ldm.data.fields.metadata.ClassField": Case(),
    "ldm.data.fields.metadata.MetadataField": Case(),
    "ldm.data.fields.spatial.BoxField": Case({"image_field": ImageField(24, 0), "count": 2, "num_labels": 3}),
    **cases("data.datamodule.ShardDataModule", Case(DATA)),
    **cases("data.webdataset.ResampledDataModule", Case(DATA | {"buffer": 10})),
    "ldm.data.demo.scenes.DemoScenes": Case(),
    "ldm.data.order.filters.AspectBuckets": Case(run=lambda buckets: buckets(ROWS)),
    "ldm.data.order.filters.Filter": Case(run=lambda keep: keep(ROWS)),
    "ldm.data.order.options.OrderOptions": Case(),
    "ldm.data.shards.remote.Cache": Case({"folder": "x"}),
    "ldm.cli.benchmark_data.DataBenchmark": Case({"size": 32, "images": 1, "seconds": 0.1}),
    "ldm.cli.sampling.tasks.conditional.Class": Case({"labels": 0}),
    "ldm.cli.sampling.tasks.conditional.InpaintingModel": Case({"image": "x", "mask": "x"}),
    "ldm.cli.sampling.tasks.conditional.SuperResolution": Case({"image": "x"}),
    "ldm.cli.sampling.tasks.img2img.Img2Img": Case({"image": "x"}),
    "ldm.cli.sampling.tasks.inpaint.Inpaint": Case({"image": "x", "mask": "x", "repeats": 1, "jump": 1}),
    "ldm.cli.sampling.tasks.interpolate.Interpolate": Case(),
    "ldm.cli.sampling.tasks.invert.Invert": Case({"image": "x", "prompt": None}),
    "ldm.conditioning.clip_image.ClipImage": Case(
        {"name": "ViT-B-32", "weights": "x", "dropout": 0.1}, largest=-2
    ),
    "ldm.conditioning.clip_text.ClipText": Case(
        {"name": "ViT-B-32", "weights": "x"}, largest=-2, make=with_tokenizer
    ),
    "ldm.conditioning.clip_text.ClipTexts": Case(largest=-2, make=with_tower),
}
