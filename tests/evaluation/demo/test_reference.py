"""Rendered scenes and the ceilings of their scores."""

import numpy as np
import torch

from ldm.data.demo.scenes import DemoScenes
from ldm.evaluation.demo.reference import render_scenes, score_ceilings
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import NoBottleneck
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder


def test_scenes_are_rendered_from_the_first_one_on() -> None:
    images = render_scenes(2, (64, 96), first=3)
    assert images.shape == (2, 3, 64, 96) and images.min() >= -1 and images.max() <= 1
    expected = torch.from_numpy(np.array(DemoScenes("val", 5)[4].image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(render_scenes(2, (64, 64), first=3)[1], expected)


def test_a_lossless_first_stage_reaches_the_ceiling() -> None:
    scores = score_ceilings(Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3)), 12)
    assert list(scores) == ["rendered scenes (ceiling)", "reconstructions (ceiling)"]
    assert all(score.n == 12 and score.passed == 1 for score in scores.values())
