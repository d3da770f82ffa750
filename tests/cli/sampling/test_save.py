"""The PNGs that sample.py writes."""

import json

import torch
from PIL import Image

from ldm.cli.sampling.save import Samples, save_samples
from ldm.grid import to_pil
from tests.support.sampling_models import sample_config


def test_images_carry_their_settings(tmp_path):
    cfg = sample_config(f"out={tmp_path}", "n=2", "scale=3.5", "steps=7", "ckpt=runs/x.safetensors")
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    specs = [("a red square, on grey", 5), ("a red square, on grey", 6), ("ü", 5), ("ü", 6)]
    names = ["a5", "a6", "u5", "u6"]
    save_samples(Samples(images, specs, names), cfg, {"step": "3000", "size": "8"})
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["a5.png", "a6.png", "grid.png", "u5.png", "u6.png"]
    for name, image, (prompt, seed) in zip([f"{n}.png" for n in names], images, specs, strict=True):
        saved = Image.open(tmp_path / name)
        assert saved.tobytes() == to_pil(image).tobytes()
        assert saved.text["prompt"] == prompt
        assert json.loads(saved.text["parameters"]) == {
            "prompt": prompt,
            "negative": None,
            "seed": seed,
            "steps": 7,
            "scale": 3.5,
            "guidance": "ldm.diffusion.guidance.classifier_free_guidance",
            "weak": None,
            "sampler": "ldm.diffusion.samplers.ddim.ddim",
            "task": {"_target_": "ldm.cli.sampling.tasks.base.Txt2Img"},
            "also": {},
            "original_size": None,
            "crop": [0, 0],
            "aesthetic": 6.0,
            "negative_aesthetic": None,
            "ckpt": "runs/x.safetensors",
            "trained_steps": "3000",
        }
