"""`LatentDiffusion`: its parts, conditions, guidance and sampling."""

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


def randomize_zeros(denoiser: torch.nn.Module) -> None:
    """Replace the zero-initialised weights, which hide the conditions in an untrained U-Net."""
    for p in denoiser.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.03)


@pytest.fixture(scope="module")
def model():
    """An untrained text-to-image model."""
    torch.manual_seed(0)
    model = tiny.diffusion().eval()
    randomize_zeros(model.denoiser)
    return model


class Image(Conditioner):
    """One channel concatenated to the latent, filled with batch["image"]; its null is 0."""

    def forward(self, values):
        return Conditioning(concat=torch.stack([torch.full((1, 4, 4), float(v)) for v in values]))

    def null(self, n, size=None):
        return Conditioning(concat=torch.zeros(n, 1, 4, 4))


@pytest.fixture(scope="module")
def editing_model():
    """A model of an image (concat) and a text (context)."""
    torch.manual_seed(0)
    text = tiny.diffusion().conditioner.conditioners["text"]
    conditioner = Compose({"text": text, "image": Image("image", 0.1)})
    unet = UNet(5, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, tiny.autoencoder(), conditioner, Cosine(100), V()).eval()
    randomize_zeros(model.denoiser)
    return model


def edit(model, scale, guidance, images=(0.5, -0.5)):
    """Sample two images; return them and the batch size of each pass of the network."""
    sizes = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    batch = {"caption": CAPTIONS[:2], "image": list(images)}
    times = trailing(model.schedule, 4)
    samples = model.generate(
        batch, [0, 1], (16, 16), sampler=ddim, times=times, scale=scale, guidance=guidance
    )
    hook.remove()
    return samples, sizes


def test_instruct_pix2pix_guides_image_and_text_with_a_scale_each(editing_model):
    edited, sizes = edit(editing_model, 3.0, partial(instruct_pix2pix_cfg, image_scale=1.5))
    assert sizes == [6] * 4, "null, image, and image with text, in one pass"
    equal_scales, sizes = edit(editing_model, 3.0, partial(instruct_pix2pix_cfg, image_scale=3.0))
    plain, plain_sizes = edit(editing_model, 3.0, classifier_free_guidance)
    torch.testing.assert_close(equal_scales, plain, rtol=0, atol=1e-5)
    assert plain_sizes == [4] * 4 and (edited - plain).norm() > 1e-3
    other, _ = edit(editing_model, 3.0, partial(instruct_pix2pix_cfg, image_scale=1.5), (0.5, 0.5))
    torch.testing.assert_close(edited[0], other[0], rtol=0, atol=1e-5)
    assert (edited[1] - other[1]).norm() > 1e-3


@pytest.mark.parametrize(
    "guidance", [classifier_free_guidance, partial(instruct_pix2pix_cfg, image_scale=1.0), interval_cfg]
)
def test_scale_1_evaluates_the_network_once_per_step(editing_model, guidance):
    plain, plain_sizes = edit(editing_model, 1.0, classifier_free_guidance)
    samples, sizes = edit(editing_model, 1.0, guidance)
    assert plain_sizes == sizes == [2] * 4 and torch.equal(samples, plain)


def test_outside_the_interval_there_is_no_guidance(editing_model):
    times = trailing(editing_model.schedule, 4)[:4]
    ratio = (-editing_model.schedule.lam(times)).exp().flatten()
    guidance = partial(interval_cfg, low=ratio[3].item(), high=ratio[1].item(), guidance=instruct_pix2pix_cfg)
    _, sizes = edit(editing_model, 3.0, guidance)
    assert sizes == [2, 6, 6, 2], "the interval excludes low and includes high"


def sample(model, seeds, captions=None, scale=2.0, eta=0.0, negative=None, size=(16, 16)):
    captions = captions or [CAPTIONS[seed % 3] for seed in seeds]
    times, sampler = trailing(model.schedule, 5), partial(ddim, eta=eta)
    return model.generate(
        {"caption": captions}, seeds, size, sampler=sampler, times=times, scale=scale, negative=negative
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_own_seed_only(model, eta):
    seeds = [6, 2, 5, 0, 3, 1, 4]
    together = sample(model, seeds, eta=eta)
    for i, seed in enumerate(seeds):
        alone = sample(model, [seed], eta=eta)[0]
        assert (alone - together[i]).norm() / alone.norm() < 1e-5
    assert (together[0] - together[1]).norm() > 0.1


def test_an_image_depends_on_seed_and_caption(model):
    first, second = sample(model, [0, 1], CAPTIONS[:1] * 2)
    assert (first - second).norm() > 0.1
    assert (first - sample(model, [0], CAPTIONS[1:2])[0]).norm() > 1e-3
    assert torch.equal(first, sample(model, [0, 1], CAPTIONS[:1] * 2)[0])


def test_images_have_the_given_size_and_are_clamped(model):
    wide = sample(model, [0, 1], size=(8, 24))
    assert wide.shape == (2, 3, 8, 24) and wide.abs().max() <= 1


def test_the_empty_caption_as_negative_prompt_is_the_null_condition(model):
    plain = sample(model, [0, 1])
    torch.testing.assert_close(plain, sample(model, [0, 1], negative={"caption": ["", ""]}))
    with_negative = sample(model, [0, 1], negative={"caption": ["a blue square"] * 2})
    assert (plain - with_negative).norm() > 1e-3


def test_scale_1_is_no_guidance(model):
    negative = {"caption": ["a blue square"] * 2}
    plain = sample(model, [0, 1], scale=1.0)
    assert torch.equal(plain, sample(model, [0, 1], scale=1.0, negative=negative))
    assert (plain - sample(model, [0, 1], scale=3.0)).norm() > 1e-3


def test_a_trajectory_yields_z_T_and_every_step(model):
    batch, times = {"caption": CAPTIONS[:1]}, trailing(model.schedule, 4)
    denoise = model.denoise(batch, scale=1.0, size=(4, 4))
    with torch.no_grad():
        steps = list(model.trajectory(denoise, [0], (16, 16), ddim, times))
    images = model.generate(batch, [0], (16, 16), sampler=ddim, times=times, scale=1.0)
    assert len(steps) == 5
    assert torch.equal(images, model.first_stage.decode(steps[-1]).clamp(-1, 1))


@pytest.mark.parametrize("size", [(18, 16), (16, 2), (0, 16)])
def test_a_size_that_is_no_multiple_of_the_factor_is_refused(model, size):
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} .* multiples of .* factor 4"):
        sample(model, [0], size=size)


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


def three_conditions(**dropouts):
    """A model of a text, a depth map (concat) and an image's latent (concat), each dropped in training."""
    parts = {
        "text": tiny.diffusion().conditioner.conditioners["text"],
        "depth": ScalarMap("depth", 0.2, 4, PixelUnshuffle(1, 4)),
        "image": LatentImage(4, 0.2, 4, batch_key="image"),
    }
    for name, dropout in dropouts.items():
        parts[name].dropout = dropout
    unet = UNet(4 + 16 + 4, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    model = LatentDiffusion(unet, tiny.autoencoder(), Compose(parts), Cosine(100, 0.008, 0.999), V()).eval()
    randomize_zeros(model.denoiser)
    return model


def random_batch(size=16, n=2):
    """Return captions, and random depth maps and images of this height and width."""
    g = torch.Generator().manual_seed(2)
    return {
        "caption": CAPTIONS[:n],
        "depth": torch.rand(n, 1, size, size, generator=g) * 2 - 1,
        "image": torch.randint(0, 256, (n, 3, size, size), generator=g).byte(),
    }


def predict_eps(denoise, size=4, n=2):
    z_t = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return denoise(z_t, torch.tensor(50.0))[1]


def test_an_image_condition_is_the_normalised_posterior_mean():
    model, batch = three_conditions(), random_batch()
    model.first_stage.set_latent_statistics([0.1] * 4, [2.0] * 4)
    x = batch["image"].float() / 127.5 - 1
    with torch.no_grad():
        expected = (model.first_stage.posterior(x).mean - 0.1) / 2
        concat = model.condition(batch).concat
    torch.testing.assert_close(concat[:, 16:], expected, rtol=1e-4, atol=1e-5)
    assert not concat.requires_grad and torch.equal(concat[:, 16:], model.encode(x))


def test_the_null_keeps_conditions_that_training_never_drops():
    model, batch = three_conditions(depth=0.0, image=0.0), random_batch()
    cond, null = (predict_eps(model.denoise(batch, scale=1.0, active=active)) for active in (None, ()))
    guided = predict_eps(model.denoise(batch, scale=3.0))
    torch.testing.assert_close(guided, null + 3 * (cond - null), rtol=1e-3, atol=1e-4)
    other_depth = {**batch, "depth": -batch["depth"]}
    null_of_other_depth = predict_eps(model.denoise(other_depth, scale=1.0, active=()))
    assert (null_of_other_depth - null).norm() > 1e-3, "the null contains the depth map"
    guided = predict_eps(model.denoise(batch, scale=3.0, negative={"caption": ["a red square"] * 2}))
    negative = predict_eps(model.denoise({**batch, "caption": ["a red square"] * 2}, scale=1.0))
    torch.testing.assert_close(guided, negative + 3 * (cond - negative), rtol=1e-3, atol=1e-4)


def test_with_a_negative_prompt_the_other_conditions_are_null():
    model, batch = three_conditions(), random_batch()
    cond, negative = (
        predict_eps(model.denoise({**batch, "caption": captions}, scale=1.0, active=active))
        for captions, active in ((batch["caption"], None), (["a red square"] * 2, {"text"}))
    )
    guided = predict_eps(model.denoise(batch, scale=3.0, negative={"caption": ["a red square"] * 2}))
    torch.testing.assert_close(guided, negative + 3 * (cond - negative), rtol=1e-3, atol=1e-4)


def test_nested_guidance_has_a_scale_per_condition():
    model, batch = three_conditions(), random_batch()
    guidance = NestedCFG({"image": 1.5, "depth": 2.0})
    e0, e1, e2, e3 = (
        predict_eps(model.denoise(batch, scale=1.0, active=active))
        for active in ((), {"image"}, {"image", "depth"}, {"image", "depth", "text"})
    )
    expected = e0 + 1.5 * (e1 - e0) + 2.0 * (e2 - e1) + 4.0 * (e3 - e2)
    guided = predict_eps(model.denoise(batch, scale=4.0, guidance=guidance))
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="'pose': .* text, depth, image"):
        model.denoise(batch, scale=4.0, guidance=NestedCFG({"pose": 2.0}))


def test_images_can_be_larger_than_in_training_if_the_conditions_are():
    model, times = three_conditions(), trailing(100, 2)
    images = model.generate(random_batch(32), [0, 1], (32, 32), sampler=ddim, times=times, scale=2.0)
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all()
    with pytest.raises(UserError, match="'depth' .* 4x4 .* 8x8"):
        model.generate(random_batch(16), [0, 1], (32, 32), sampler=ddim, times=times, scale=2.0)


def test_guidance_without_condition_dropout_is_refused():
    model = three_conditions(text=0.0, depth=0.0, image=0.0)
    with pytest.raises(UserError, match="scale=2 .* scale=1"):
        model.denoise(random_batch(), scale=2.0)
    assert predict_eps(model.denoise(random_batch(), scale=1.0)).isfinite().all()


def test_a_denoiser_with_other_channels_than_the_conditions_is_refused():
    parts = three_conditions()
    for channels, message in [
        ((4, 8, 8), "latent has 4 .* 20: set denoiser.in_channels=24"),
        ((24, None, 8), "takes no context.* 8 channels: set denoiser.context_channels=8"),
        ((24, 8, 9), "vector of 9 .* 8 .* denoiser.vector_channels=8"),
        ((24, 8, None), "takes no vector"),
    ]:
        in_channels, *condition_channels = channels
        unet = UNet(in_channels, 4, 16, (1, 2), 1, (1,), 2, None, *condition_channels)
        with pytest.raises(UserError, match=message):
            LatentDiffusion(unet, parts.first_stage, parts.conditioner, parts.schedule, V())
