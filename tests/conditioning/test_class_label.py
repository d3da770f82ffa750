"""Class labels: a token, a vector, or the number itself; the null is an extra class."""

import pytest
import torch

from ldm.conditioning.class_label import ClassLabel, ClassNumber
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.model import LatentDiffusion
from ldm.networks.dit import DiT
from tests.support import tiny

LABELS = torch.tensor([2, 0, 2])


def test_the_published_one_has_1001_embeddings_of_512():
    label = ClassLabel(1000, 512, 0.1)
    assert label.embedding.weight.shape == (1001, 512)
    assert torch.equal(label.null(2).context, label.embedding.weight[[1000, 1000], None])
    assert label.null(2).vector is None


def test_a_class_is_one_token_a_vector_or_both():
    label = ClassLabel(3, 4, 0.1, vector=True)
    cond = label(LABELS)
    assert cond.context.shape == (3, 1, 4) and torch.equal(cond.context[:, 0], cond.vector)
    assert torch.equal(cond.vector, label.embedding.weight[[2, 0, 2]])
    assert ClassLabel(3, 4, 0.1, context=False, vector=True)(LABELS).context is None
    with pytest.raises(ValueError, match="context or vector"):
        ClassLabel(3, 4, 0.1, context=False)


def test_the_null_is_learned():
    label = ClassLabel(3, 4, 0.1)
    label.null(2).context.sum().backward()
    assert label.embedding.weight.grad.nonzero()[:, 0].unique().tolist() == [3]


def test_a_transformer_that_embeds_labels_gets_the_numbers():
    number = ClassNumber(3, 0.1)
    assert number(LABELS).vector.tolist() == [[2], [0], [2]] and number.null(2).vector.tolist() == [[3], [3]]
    dit = DiT(4, 4, 1, 8, 1, 2, num_labels=4)
    conditioner = tiny.Compose({"label": number})
    model = LatentDiffusion(dit, tiny.autoencoder(), conditioner, Cosine(100, 0.008, 0.999), V())
    for cond in (model.condition({"label": LABELS}), model.null(3)):
        assert model.denoiser(torch.randn(3, 4, 4, 4), torch.ones(3), cond).shape == (3, 4, 4, 4)
