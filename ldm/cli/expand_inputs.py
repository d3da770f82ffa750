"""Expand a trained model's inputs: `python -m ldm.cli.expand_inputs experiment=... ckpt=... out=...`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.interop.expand_inputs import expand_inputs
from ldm.model import LatentDiffusion


@command("expand_inputs")
def main(cfg: DictConfig) -> None:
    """Write the model file for an experiment's `init`, from a model with fewer or other conditions."""
    model = instantiate(cfg.stage.model)
    if not isinstance(model, LatentDiffusion):
        raise UserError(
            "only models of stage 2 can be expanded, not an autoencoder: give an experiment of stage 2, such"
            " as experiment=sd15_inpainting512"
        )
    old, _, _ = model_file.load(cfg.ckpt, "latent_diffusion")
    expanded = expand_inputs(model.state_dict(), old)
    config: Any = OmegaConf.to_container(cfg.stage.model, resolve=True)
    extra = {"step": "0", "size": str(cfg.data.size), "widened_from": str(cfg.ckpt)}
    model_file.save(
        cfg.out, expanded.tensors, config, "latent_diffusion", model.describe_frozen_weights() | extra
    )
    num_copied = len(expanded.tensors) - len(expanded.padded) - len(expanded.new)
    print(f"wrote {cfg.out}: {num_copied} tensors copied unchanged")
    for names, change in (
        (expanded.padded, "padded with zeros for the added input channels"),
        (expanded.new, "new, at their initialisation"),
        (expanded.unused, "of the old model left out"),
    ):
        if names:
            print(f"{len(names)} {change}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")


if __name__ == "__main__":
    main()
