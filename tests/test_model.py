"""The model as sampling holds it."""

from functools import partial

import pytest
import torch

from ldm.conditioning.base import Compose, Conditioner
from ldm.conditioning.rescalers import PixelUnshuffle
from ldm.conditioning.spatial import LatentImage, ScalarMap
from ldm.diffusion.guidance import NestedCFG, classifier_free_guidance, instruct_pix2pix_cfg, interval_cfg
from ldm.diffusion.parameterization import Eps, V
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.schedule import Cosine
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.networks.unet import UNet
from ldm.typing import Conditioning
from tests.support import tiny

CAPTIONS = ["a red square", "a green square", "a blue square"]


@pytest.fixture(scope="module")
def model():
    """Not trained, but without the zeros that the U-Net begins with, which hide the text."""
    torch.manual_seed(0)
    model = tiny.diffusion().eval()
    for p in model.denoiser.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.03)
    return model


class Image(Conditioner):
    """One channel beside the latent, of the value that the batch's `image` has; its null is 0."""

    def forward(self, values):
        return Conditioning(concat=torch.stack([torch.full((1, 4, 4), float(v)) for v in values]))

    def null(self, n, size=None):
        return Conditioning(concat=torch.zeros(n, 1, 4, 4))


@pytest.fixture(scope="module")
def edits():
    """A model of a image (concat) and a text (context)."""
    torch.manual_seed(0)
    text = tiny.diffusion().conditioner.conditioners["text"]
    conditioner = Compose({"text": text, "image": Image("image", 0.1)})
    unet = UNet(5, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, tiny.autoencoder(), conditioner, Cosine(100), V()).eval()
    for p in model.denoiser.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.03)
    return model


def edited(model, scale, guidance, pictures=(0.5, -0.5)):
    """(Images, the sizes of the batches that the network was given.)"""
    sizes = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    batch = {"caption": CAPTIONS[:2], "image": list(pictures)}
    times = trailing(model.schedule, 4)
    drawn = model.generate(batch, [0, 1], (16, 16), sampler=ddim, times=times, scale=scale, guidance=guidance)
    hook.remove()
    return drawn, sizes


def test_a_image_and_a_text_guide_with_a_scale_each(edits):
    both, sizes = edited(edits, 3.0, partial(instruct_pix2pix_cfg, image_scale=1.5))
    assert sizes == [6] * 4, "null, image, and image with text, in one pass"
    same, sizes = edited(edits, 3.0, partial(instruct_pix2pix_cfg, image_scale=3.0))
    one, guided_sizes = edited(edits, 3.0, classifier_free_guidance)
    torch.testing.assert_close(same, one, rtol=0, atol=1e-5)  # one scale for both is the plain guidance
    assert guided_sizes == [4] * 4 and (both - one).norm() > 1e-3
    other, _ = edited(edits, 3.0, partial(instruct_pix2pix_cfg, image_scale=1.5), (0.5, 0.5))
    torch.testing.assert_close(both[0], other[0], rtol=0, atol=1e-5)
    assert (both[1] - other[1]).norm() > 1e-3


@pytest.mark.parametrize(
    "guidance", [classifier_free_guidance, partial(instruct_pix2pix_cfg, image_scale=1.0), interval_cfg]
)
def test_scale_1_passes_the_batch_once_as_it_is(edits, guidance):
    plain, sizes = edited(edits, 1.0, classifier_free_guidance)
    drawn, more = edited(edits, 1.0, guidance)
    assert sizes == more == [2] * 4 and torch.equal(drawn, plain)


def test_outside_the_interval_the_batch_passes_once_as_it_is(edits):
    times = trailing(edits.schedule, 4)[:4]
    ratio = (-edits.schedule.lam(times)).exp().flatten()
    within = partial(interval_cfg, low=ratio[3].item(), high=ratio[1].item(), guidance=instruct_pix2pix_cfg)
    _, sizes = edited(edits, 3.0, within)
    assert sizes == [2, 6, 6, 2], "low is outside and high is inside"


def draw(model, seeds, captions=None, scale=2.0, eta=0.0, negative=None, size=(16, 16)):
    captions = captions or [CAPTIONS[seed % 3] for seed in seeds]
    times, sampler = trailing(model.schedule, 5), partial(ddim, eta=eta)
    return model.generate(
        {"caption": captions}, seeds, size, sampler=sampler, times=times, scale=scale, negative=negative
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_image_depends_on_its_own_seed_alone(model, eta):
    order = [6, 2, 5, 0, 3, 1, 4]
    together = draw(model, order, eta=eta)
    for place, seed in enumerate(order):
        alone = draw(model, [seed], eta=eta)[0]
        assert (alone - together[place]).norm() / alone.norm() < 1e-5
    assert (together[0] - together[1]).norm() > 0.1


def test_seed_and_caption_each_matter(model):
    one, other = draw(model, [0, 1], CAPTIONS[:1] * 2)
    assert (one - other).norm() > 0.1
    assert (one - draw(model, [0], CAPTIONS[1:2])[0]).norm() > 1e-3
    assert torch.equal(one, draw(model, [0, 1], CAPTIONS[:1] * 2)[0])


def test_images_are_pixels_of_the_size_asked_for(model):
    wide = draw(model, [0, 1], size=(8, 24))
    assert wide.shape == (2, 3, 8, 24) and wide.abs().max() <= 1


def test_the_empty_caption_as_negative_prompt_is_the_null(model):
    plain = draw(model, [0, 1])
    torch.testing.assert_close(plain, draw(model, [0, 1], negative={"caption": ["", ""]}))
    led_away = draw(model, [0, 1], negative={"caption": ["a blue square"] * 2})
    assert (plain - led_away).norm() > 1e-3


def test_scale_1_is_no_guidance(model):
    negative = {"caption": ["a blue square"] * 2}
    assert torch.equal(draw(model, [0, 1], scale=1.0), draw(model, [0, 1], scale=1.0, negative=negative))
    assert (draw(model, [0, 1], scale=1.0) - draw(model, [0, 1], scale=3.0)).norm() > 1e-3


def test_a_trajectory_yields_z_T_and_every_step(model):
    batch, times = {"caption": CAPTIONS[:1]}, trailing(model.schedule, 4)
    denoise = model.denoise(batch, scale=1.0, size=(4, 4))
    with torch.no_grad():
        steps = list(model.trajectory(denoise, [0], (16, 16), ddim, times))
    images = model.generate(batch, [0], (16, 16), sampler=ddim, times=times, scale=1.0)
    assert len(steps) == 5
    assert torch.equal(images, model.first_stage.decode(steps[-1]).clamp(-1, 1))


@pytest.mark.parametrize("size", [(18, 16), (16, 2), (0, 16)])
def test_a_size_that_does_not_divide_is_refused(model, size):
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} .* multiples of .* factor 4"):
        draw(model, [0], size=size)


def test_the_first_stage_is_frozen_from_the_start():
    model = tiny.diffusion()
    assert not any(p.requires_grad for p in model.first_stage.parameters())
    assert model.denoiser.training and not model.first_stage.training
    assert model.train().denoiser.training and not model.first_stage.training


def test_a_parameterization_that_the_schedule_does_not_allow_is_refused():
    class Strict(Eps):
        def check(self, schedule) -> None:
            raise ValueError("eps needs a signal at T")

    parts = tiny.diffusion()
    with pytest.raises(ValueError, match="needs a signal"):
        LatentDiffusion(parts.denoiser, parts.first_stage, parts.conditioner, parts.schedule, Strict())


def conditioned(**dropouts):
    """By text, a map beside the latent and a image's latent, each dropped by its own probability."""
    parts = {
        "text": tiny.diffusion().conditioner.conditioners["text"],
        "depth": ScalarMap("depth", 0.2, 4, PixelUnshuffle(1, 4)),
        "image": LatentImage(4, 0.2, 4, batch_key="image"),
    }
    for name, dropout in dropouts.items():
        parts[name].dropout = dropout
    unet = UNet(4 + 16 + 4, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, tiny.autoencoder(), Compose(parts), Cosine(100, 0.008, 0.999), V()).eval()
    for p in model.denoiser.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.03)
    return model


def given(side=16, n=2):
    g = torch.Generator().manual_seed(2)
    return {
        "caption": CAPTIONS[:n],
        "depth": torch.rand(n, 1, side, side, generator=g) * 2 - 1,
        "image": torch.randint(0, 256, (n, 3, side, side), generator=g).byte(),
    }


def eps_of(denoise, side=4, n=2):
    z_t = torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return denoise(z_t, torch.tensor(50.0))[1]


def test_a_images_latent_is_the_posteriors_mean_normalised():
    model, batch = conditioned(), given()
    model.first_stage.set_latent_statistics([0.1] * 4, [2.0] * 4)
    x = batch["image"].float() / 127.5 - 1
    with torch.no_grad():
        expected = (model.first_stage.posterior(x).mean - 0.1) / 2
        concat = model.condition(batch).concat
    torch.testing.assert_close(concat[:, 16:], expected, rtol=1e-4, atol=1e-5)
    assert not concat.requires_grad and torch.equal(concat[:, 16:], model.encode(x))


def test_guidance_keeps_what_training_never_drops():
    model, batch = conditioned(depth=0.0, image=0.0), given()
    y, null = (eps_of(model.denoise(batch, scale=1.0, active=active)) for active in (None, ()))
    torch.testing.assert_close(
        eps_of(model.denoise(batch, scale=3.0)), null + 3 * (y - null), rtol=1e-3, atol=1e-4
    )
    kept = eps_of(model.denoise({**batch, "depth": -batch["depth"]}, scale=1.0, active=()))
    assert (kept - null).norm() > 1e-3, "the depth is in the null, for the network knows no absence of it"
    away = model.denoise(batch, scale=3.0, negative={"caption": ["a red square"] * 2})
    other = eps_of(model.denoise({**batch, "caption": ["a red square"] * 2}, scale=1.0))
    torch.testing.assert_close(eps_of(away), other + 3 * (y - other), rtol=1e-3, atol=1e-4)


def test_a_negative_prompt_leaves_the_other_conditions_null():
    model, batch = conditioned(), given()
    y, other = (
        eps_of(model.denoise({**batch, "caption": words}, scale=1.0, active=active))
        for words, active in ((batch["caption"], None), (["a red square"] * 2, {"text"}))
    )
    away = eps_of(model.denoise(batch, scale=3.0, negative={"caption": ["a red square"] * 2}))
    torch.testing.assert_close(away, other + 3 * (y - other), rtol=1e-3, atol=1e-4)


def test_several_conditions_are_guided_by_a_scale_each():
    model, batch = conditioned(), given()
    guidance = NestedCFG({"image": 1.5, "depth": 2.0})
    e0, e1, e2, e3 = (
        eps_of(model.denoise(batch, scale=1.0, active=active))
        for active in ((), {"image"}, {"image", "depth"}, {"image", "depth", "text"})
    )
    expected = e0 + 1.5 * (e1 - e0) + 2.0 * (e2 - e1) + 4.0 * (e3 - e2)
    got = eps_of(model.denoise(batch, scale=4.0, guidance=guidance))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="no condition 'pose': .* text, depth, image"):
        model.denoise(batch, scale=4.0, guidance=NestedCFG({"pose": 2.0}))


def test_it_draws_beyond_the_training_size_and_says_what_has_another():
    model, times = conditioned(), trailing(100, 2)
    images = model.generate(given(32), [0, 1], (32, 32), sampler=ddim, times=times, scale=2.0)
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all()
    with pytest.raises(UserError, match="'depth' is for 4x4 latents but these are 8x8"):
        model.generate(given(16), [0, 1], (32, 32), sampler=ddim, times=times, scale=2.0)


def test_guidance_without_a_dropped_condition_is_refused():
    model = conditioned(text=0.0, depth=0.0, image=0.0)
    with pytest.raises(UserError, match="scale=2 needs classifier-free guidance"):
        model.denoise(given(), scale=2.0)
    assert eps_of(model.denoise(given(), scale=1.0)).isfinite().all()


def test_a_denoiser_that_takes_other_conditions_is_refused():
    parts = conditioned()
    for numbers, message in [
        ((4, 8, 8), "the latent has 4 and the concatenated conditions 20: set denoiser.in_channels=24"),
        ((24, None, 8), "a context of no channels, but the conditions give 8 channels: set denoiser.context_channels=8"),
        ((24, 8, 9), "a vector of 9 channels, but the conditions give 8 .* denoiser.vector_channels=8"),
        ((24, 8, None), "a vector of no channels"),
    ]:  # fmt: skip
        unet = UNet(numbers[0], 4, 16, (1, 2), 1, (1,), 2, None, *numbers[1:])
        with pytest.raises(UserError, match=message):
            LatentDiffusion(unet, parts.first_stage, parts.conditioner, parts.schedule, V())
