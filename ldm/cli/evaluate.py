"""Score a demo model by the exact checker: `python -m ldm.cli.evaluate ckpt=... out=...`."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from ldm.cli.config.command import command
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files, tasks
from ldm.data.demo.scenes import DemoScenes, Split, captions
from ldm.evaluation.demo.alignment import AlignmentScore, chance, score, table
from ldm.grid import labelled_grid, to_pil
from ldm.model import LatentDiffusion


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Draw one image for each of n seen and n held-out captions and let the checker read them back."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    model, header = files.load_model(cfg.ckpt, cfg.device)
    size = files.image_size(model, cfg, header)
    weak = files.load_weak(cfg.weak, model, cfg.device)
    inputs = tasks.SamplingContext(model, [tasks.Txt2Img()], cfg, size, weak)
    scores = ceilings(model, cfg.n)
    times = instantiate(cfg.timestep_spacing)(model.schedule, cfg.steps)
    splits: dict[str, Split] = {"seen": "train", "held-out": "held_out"}
    for label, split in splits.items():
        wanted = captions(split, cfg.n)
        each = [tasks.SampleSpec(caption, cfg.seed + i) for i, caption in enumerate(wanted)]
        images = tasks.sample_images(inputs, each, instantiate(cfg.sampler), times)
        scores |= {
            f"samples, {label} captions": score(images, wanted),
            f"  chance ({label})": chance(images, wanted),
        }
        pictures = [to_pil(x) for x in images]
        rows = [(wanted[i], pictures[i : i + 1]) for i in range(min(12, cfg.n))]
        labelled_grid(rows, 1).save(out / f"{split}.png")
    print(table(scores))
    (out / "scores.json").write_text(json.dumps({k: asdict(v) for k, v in scores.items()}, indent=1) + "\n")
    print(f"wrote {out / 'scores.json'}")


def ceilings(model: LatentDiffusion, n: int) -> dict[str, AlignmentScore]:
    """What the checker says of drawn images, and of their reconstructions by the first stage."""
    scenes = DemoScenes("val", n)
    records = [scenes[i] for i in range(n)]
    pictures = torch.from_numpy(np.stack([np.asarray(r.image) for r in records])).permute(0, 3, 1, 2)
    x = pictures.float() / 127.5 - 1
    wanted = [r.caption for r in records]
    return {
        "drawn images (ceiling)": score(x, wanted),
        "their reconstructions (ceiling)": score(reconstructions(model, x), wanted),
    }


@torch.no_grad()
def reconstructions(model: LatentDiffusion, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Through the first stage and back, from the posterior's mean."""
    first_stage, device = model.first_stage, next(model.denoiser.parameters()).device
    parts = [
        first_stage.reconstruct(first_stage.posterior(p.to(device)).mean).float().cpu() for p in x.split(100)
    ]
    return torch.cat(parts).clamp(-1, 1)


if __name__ == "__main__":
    main()
