"""State dicts of diffusers' networks under our names, for the parity tests."""

import re

import torch
from torch import Tensor

LEAVES = (
    (r"conv_shortcut", "shortcut"),
    (r"time_emb_proj", "time"),
    (r"conv_norm_out", "norm_out"),
    (r"add_embedding", "class_embedding"),
    (r"(time|class)_embedding\.linear_1", r"\1_embedding.linear_in"),
    (r"(time|class)_embedding\.linear_2", r"\1_embedding.linear_out"),
    (r"class_embedding\.weight", "vector_embedding.table.weight"),
    (r"class_embedding", "vector_embedding"),
)

TRANSFORMER = (
    (r"transformer_blocks", "blocks"),
    (r"attn0\.to_q", "first_attention.q"),
    (r"attn0\.to_k", "first_attention.kv#0"),
    (r"attn0\.to_v", "first_attention.kv#1"),
    (r"attn0\.to_out\.0", "first_attention.out"),
    (r"attn1\.to_q", "self_attention.qkv#0"),
    (r"attn1\.to_k", "self_attention.qkv#1"),
    (r"attn1\.to_v", "self_attention.qkv#2"),
    (r"attn2\.to_q", "cross_attention.q"),
    (r"attn2\.to_k", "cross_attention.kv#0"),
    (r"attn2\.to_v", "cross_attention.kv#1"),
    (r"attn1\.to_out\.0", "self_attention.out"),
    (r"attn2\.to_out\.0", "cross_attention.out"),
    (r"ff\.net\.2", "feed_forward.out"),
)

PLAIN_ATTENTION = (
    (r"(attentions?(?:\.\d+)?)\.group_norm", r"\1.norm"),
    (r"(attentions?(?:\.\d+)?)\.to_q", r"\1.attention.qkv#0"),
    (r"(attentions?(?:\.\d+)?)\.to_k", r"\1.attention.qkv#1"),
    (r"(attentions?(?:\.\d+)?)\.to_v", r"\1.attention.qkv#2"),
    (r"(attentions?(?:\.\d+)?)\.to_out\.0", r"\1.attention.out"),
)

UNET = (
    (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.blocks.\3.residual"),
    (r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.\2.blocks.\3.attention"),
    (r"down_blocks\.(\d+)\.downsamplers\.0(?:\.conv\b)?", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.(\d)", r"middle.\1.residual"),
    (r"mid_block\.attentions\.0", "middle.0.attention"),
)

AUTOENCODER = (
    (r"(down|up)_blocks\.(\d+)\.resnets", r"\1.\2.residuals"),
    (r"(down|up)_blocks\.(\d+)\.attentions", r"\1.\2.attentions"),
    (r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0", r"\1.\2.resample"),
    (r"mid_block\.resnets\.0", "middle.residual1"),
    (r"mid_block\.resnets\.1", "middle.residual2"),
    (r"mid_block\.attentions\.0", "middle.attention"),
    (r"post_quant_conv", "bottleneck.from_latent"),
    (r"quantize\.embedding", "bottleneck.codebook"),
)


DIT = (
    (r"pos_embed\.proj", "patches_in"),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1", "time_embedding.linear_in"),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2", "time_embedding.linear_out"),
    (r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table", "vector_embedding.table"),
    (r"norm1\.linear", "modulation"),
    (r"ff\.net\.0\.proj", "fc1"),
    (r"ff\.net\.2", "fc2"),
    (r"proj_out_1", "modulation_out"),
    (r"proj_out_2", "patches_out"),
)


def unet_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a UNet2DConditionModel or UNet2DModel under the names of ldm.networks.unet.UNet."""
    cross_only = {
        name.removesuffix("to_k.weight")
        for name, k in theirs.items()
        if name.endswith("attn1.to_k.weight") and k.shape[1] != theirs[name.replace("to_k", "to_q")].shape[1]
    }
    state = {}
    for name, value in theirs.items():
        prefix, separator, rest = name.partition("attn1.")
        state[f"{prefix}attn0.{rest}" if prefix + separator in cross_only else name] = value
    return _fuse(_rename(state, UNET + TRANSFORMER + PLAIN_ATTENTION + LEAVES))


def dit_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a DiTTransformer2DModel whose blocks share one embedding, under our names."""
    state = _fuse(_rename(theirs, DIT + TRANSFORMER))
    return {name: value for name, value in state.items() if ".emb." not in name and "pos_embed" not in name}


def autoencoder_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an AutoencoderKL or VQModel under our names, without latent statistics."""
    projection = "to_latent" if "quantize.embedding.weight" in theirs else "to_moments"
    rules = (*AUTOENCODER, (r"quant_conv", f"bottleneck.{projection}"))
    return _fuse(_rename(theirs, rules + PLAIN_ATTENTION + LEAVES))


def _rename(theirs: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    state = {}
    for name, value in theirs.items():
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        # Diffusers has 1x1 convolutions for Stable Diffusion 1; ours are always linear layers.
        if re.search(r"proj_(in|out)\.weight", name):
            value = value.flatten(1)
        if "ff.net.0.proj" in name:
            halves = [name.replace("ff.net.0.proj", f"feed_forward.{half}") for half in ("value", "gate")]
            state |= dict(zip(halves, value.chunk(2), strict=True))
        else:
            state[name] = value
    return state


def _fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `name#0.weight`, `name#1.weight`, ... to `name.weight`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        parts.setdefault(re.sub(r"#\d", "", name), {})[name] = value
    return {name: torch.cat([group[key] for key in sorted(group)]) for name, group in parts.items()}
