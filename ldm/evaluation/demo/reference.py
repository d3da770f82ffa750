"""Reference images: rendered scenes of the validation split, and the scores that no model of them exceeds."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldm.data.demo.scenes import CANVAS, DemoScenes, caption, draw
from ldm.evaluation.demo.alignment import AlignmentScore, score_alignment
from ldm.evaluation.reconstruction import reconstruct
from ldm.networks.autoencoder import Autoencoder


def render_scenes(n: int, size: tuple[int, int], first: int = 0) -> Float[Tensor, "b 3 h w"]:
    """Render n validation scenes, from scene `first` on, in [-1, 1]."""
    scenes = DemoScenes("val", first + n)
    images = [np.asarray(draw(*scenes.scene(i)).resize(size[::-1])) for i in range(first, first + n)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


def score_ceilings(first_stage: Autoencoder, n: int) -> dict[str, AlignmentScore]:
    """Score n rendered scenes, and their reconstructions by the first stage, against their captions."""
    images, scenes = render_scenes(n, (CANVAS, CANVAS)), DemoScenes("val", n)
    captions = [caption(scenes.scene(i)[0]) for i in range(n)]
    return {
        "rendered scenes (ceiling)": score_alignment(images, captions),
        "reconstructions (ceiling)": score_alignment(reconstruct(first_stage, images), captions),
    }
