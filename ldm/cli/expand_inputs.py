"""Weights to begin another experiment with: `python -m ldm.cli.expand_inputs experiment=... ckpt=... out=...`."""

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
    """Write the file that an experiment's `init` takes, from a model of fewer or other conditions."""
    model = instantiate(cfg.stage.model)
    if not isinstance(model, LatentDiffusion):
        raise UserError("only models of stage 2 are widened: give experiment=..., as sd15_inpainting512")
    old, _, _ = model_file.load(cfg.ckpt, "latent_diffusion")
    made = expand_inputs(model.state_dict(), old)
    config: Any = OmegaConf.to_container(cfg.stage.model, resolve=True)
    extra = {"step": "0", "size": str(cfg.data.size), "widened_from": str(cfg.ckpt)}
    model_file.save(cfg.out, made.tensors, config, "latent_diffusion", model.identity() | extra)
    kept = len(made.tensors) - len(made.widened) - len(made.new)
    print(f"wrote {cfg.out}: {kept} tensors as they were")
    for names, said in (
        (made.widened, "with zeros for more channels in"),
        (made.new, "new"),
        (made.left, "left behind"),
    ):
        if names:
            print(f"{len(names)} {said}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")


if __name__ == "__main__":
    main()
