"""Load the models that `sample.py` and the evaluation use."""

import torch

from ldm.cli.device import pick_device
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.interop.instantiate import build_untrusted
from ldm.model import LatentDiffusion


def load_model(path: str, device: str) -> tuple[LatentDiffusion, dict[str, str]]:
    """Return the model of a model file, built by classes of `ldm` only, and the rest of the file's header."""
    target = pick_device(device)
    tensors, config, header = model_file.load(path, "latent_diffusion")
    model: LatentDiffusion = build_untrusted(config)
    for name, value in model.describe_frozen_weights().items():
        if header.get(name) != value:
            raise UserError(
                f"{path} was trained with {name} {header.get(name)}, but this version of ldm has {value}: "
                "sample with the version that trained it"
            )
    model.conditioner.load_pretrained()
    model_file.load_state(model, tensors, path)
    return model.to(target).eval(), header


def load_weak_model(path: str | None, model: LatentDiffusion, device: str) -> LatentDiffusion | None:
    """Return the smaller or less trained model for autoguidance.

    UserError unless schedule, parameterization and first stage are those of `model`.
    """
    if path is None:
        return None
    weak, _ = load_model(path, device)
    t = torch.arange(1.0, model.schedule.num_steps + 1)
    equal = {
        "schedule": type(weak.schedule) is type(model.schedule)
        and torch.equal(weak.schedule.lam(t), model.schedule.lam(t)),
        "parameterization": type(weak.parameterization) is type(model.parameterization)
        and vars(weak.parameterization) == vars(model.parameterization),
        "first stage": model_file.content_hash(weak.first_stage)
        == model_file.content_hash(model.first_stage),
    }
    for part, is_equal in equal.items():
        if not is_equal:
            raise UserError(f"weak={path} has another {part} than ckpt: choose a model with the same {part}")
    return weak
