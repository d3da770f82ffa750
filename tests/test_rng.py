"""Random numbers keyed by (seed, position, stream)."""

import torch

from ldm import rng


def test_a_samples_numbers_do_not_depend_on_its_batch():
    whole = rng.normal(3, range(10), "eps", (4, 2))
    assert torch.equal(whole[[7, 2]], rng.normal(3, [7, 2], "eps", (4, 2)))
    assert torch.equal(rng.uniform(3, range(10), "u")[[7, 2]], rng.uniform(3, [7, 2], "u"))


def test_seed_position_and_stream_each_matter():
    numbers = [rng.uniform(seed, [p], s).item() for seed in (0, 1) for p in (0, 1) for s in ("u", "drop")]
    assert len(set(numbers)) == 8
    assert rng.uniform(1, [11], "u") != rng.uniform(11, [1], "u"), "1/11 is not 11/1"


def test_the_numbers_never_change():
    """A run that was started with an older version resumes with the same noise."""
    assert rng.uniform(0, [0, 5], "u").tolist() == [0.735084593296051, 0.6875144243240356]


def test_the_global_generator_is_unchanged():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    rng.normal(0, range(5), "eps", (3,))
    assert torch.equal(torch.rand(1), expected)


def test_the_distributions():
    normal, uniform = rng.normal(0, range(500), "eps", (40,)), rng.uniform(0, range(500), "u", (40,))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert rng.uniform(0, range(3), "u").shape == (3,) and normal.dtype == torch.float32
