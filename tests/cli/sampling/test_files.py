"""A model file's round trip, and what a drawn image knows of itself."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.cli.config import validate
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling import files as sampling_files
from ldm.cli.sampling import tasks
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.grid import to_pil
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from tests.support import tiny

TIMES = trailing(1000, 3)
WANTED = [("a red square", 3), ("a blue circle", 1), ("a red square", 4)]
TINY = [
    "experiment=debug/text",
    "data.shards=shards",
    "autoencoder.encoder.channel_mult=[1,2,2]",
    "autoencoder.decoder.channel_mult=[1,2,2]",
]
"""Factor 4, so that 16 pixels are 4 places."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(stage, its average, its model file) after three steps."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    cfg = compose("train", TINY)
    config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    stage, ema, path = tiny.second_stage(instantiate(cfg.stage.model)), EMA(0.5), folder / "out.safetensors"
    trainer = tiny.trainer(3, [ema, Export(str(path), config, "latent_diffusion", 10)])
    trainer.fit(stage, tiny.data(folder / "shards", 3))
    return stage, ema, str(path)


def settings(*words: str):
    return compose("sample", ["ckpt=c", "prompts=[p]", "n=2", *words])


def draw(model: LatentDiffusion, wanted=WANTED, *words: str):
    cfg = settings(*words)
    weak = sampling_files.load_weak(cfg.weak, model, "cpu")
    inputs = tasks.SamplingContext(model, [tasks.Txt2Img()], cfg, (16, 16), weak)
    return tasks.sample_images(
        inputs, [tasks.SampleSpec(prompt, seed) for prompt, seed in wanted], ddim, TIMES
    )


def test_the_file_draws_what_the_stage_draws_with_its_average(trained):
    stage, ema, path = trained
    loaded, header = sampling_files.load_model(path, "cpu")
    assert header["step"] == "3" and not any(module.training for module in loaded.modules())
    stage.eval()
    with ema.applied(stage):
        expected = draw(stage.model)
    assert torch.equal(draw(loaded), expected)
    assert not torch.equal(draw(stage.model), expected), "without the average it draws something else"


def test_a_image_depends_on_its_own_seed_alone(trained):
    model, _ = sampling_files.load_model(trained[2], "cpu")
    wanted = [(prompt, seed + 10 * i) for i in range(3) for prompt, seed in WANTED][:7]
    together = draw(model, wanted, "batch_size=7")
    alone = draw(model, wanted[::-1], "batch_size=1").flip(0)
    assert ((together - alone).norm() / alone.norm()).item() < 1e-5
    assert (together[0] - together[3]).norm() > 1e-3, "another seed, another image"


def test_a_negative_prompt_leads_away(trained):
    model, _ = sampling_files.load_model(trained[2], "cpu")
    assert not torch.equal(draw(model), draw(model, WANTED, "negative='a blue square'"))
    assert torch.equal(draw(model), draw(model, WANTED, "negative=''")), (
        "the null is the empty prompt's encoding"
    )


def test_guidance_is_a_config_group(trained):
    model, _ = sampling_files.load_model(trained[2], "cpu")
    plain = draw(model)
    assert torch.equal(plain, draw(model, WANTED, "guidance=rescaled", "guidance.phi=0"))
    assert torch.equal(plain, draw(model, WANTED, "guidance=interval", "guidance.low=0", "guidance.high=1e9"))
    for words in (["guidance=rescaled"], ["guidance=interval"], ["guidance=interval_rescaled"]):
        assert not torch.equal(plain, draw(model, WANTED, *words))


def test_an_earlier_model_guides(trained, tmp_path):
    model, header = sampling_files.load_model(trained[2], "cpu")
    tensors, config, _ = model_file.load(trained[2], "latent_diffusion")
    assert torch.equal(draw(model, WANTED, f"weak={trained[2]}"), draw(model, WANTED, "scale=1"))
    earlier, other = str(tmp_path / "earlier.safetensors"), str(tmp_path / "other.safetensors")
    moved = {k: v * 0.9 if k.startswith("denoiser.") else v for k, v in tensors.items()}
    model_file.save(earlier, moved, config, "latent_diffusion", header)
    assert not torch.equal(draw(model, WANTED, f"weak={earlier}"), draw(model, WANTED, "scale=1"))
    with pytest.raises(UserError, match="give one of the two"):
        draw(model, WANTED, f"weak={earlier}", "negative=''")
    config = config | {"parameterization": {"_target_": "ldm.diffusion.parameterization.V"}}
    model_file.save(other, tensors, config, "latent_diffusion", header)
    with pytest.raises(UserError, match="another parameterization than the model"):
        draw(model, WANTED, f"weak={other}")


def test_images_know_how_they_were_made(tmp_path):
    cfg = settings(f"out={tmp_path}", "n=2", "scale=3.5", "steps=7", "ckpt=runs/x.safetensors")
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    wanted = [("a red square, on grey", 5), ("a red square, on grey", 6), ("ü", 5), ("ü", 6)]
    names = ["a5", "a6", "u5", "u6"]
    sampling_files.save_samples(
        sampling_files.Samples(images, wanted, names), cfg, {"step": "3000", "size": "8"}
    )
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["a5.png", "a6.png", "grid.png", "u5.png", "u6.png"]
    for name, image, (prompt, seed) in zip([f"{n}.png" for n in names], images, wanted, strict=True):
        picture = Image.open(tmp_path / name)
        assert picture.tobytes() == to_pil(image).tobytes()
        assert picture.text["prompt"] == prompt
        assert json.loads(picture.text["parameters"]) == {
            "prompt": prompt,
            "negative": None,
            "seed": seed,
            "steps": 7,
            "scale": 3.5,
            "guidance": "ldm.diffusion.guidance.guided",
            "weak": None,
            "sampler": "ldm.diffusion.samplers.ddim.ddim",
            "task": {"_target_": "ldm.cli.sampling.tasks.Txt2Img"},
            "also": {},
            "original_size": None,
            "crop": [0, 0],
            "aesthetic": 6.0,
            "negative_aesthetic": None,
            "ckpt": "runs/x.safetensors",
            "trained_steps": "3000",
        }


def test_prompts_are_a_list_or_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blue square \n")
    assert sampling_files.read_prompts(str(file)) == ["a red circle", "a blue square"]
    assert sampling_files.read_prompts(OmegaConf.create(["a red circle", 7])) == ["a red circle", "7"]
    with pytest.raises(UserError, match=r"there is no prompt file a red circle: give a file, or captions as"):
        sampling_files.read_prompts("a red circle")
    for odd in (7, "a long caption " * 40):
        with pytest.raises(UserError, match="there is no prompt file"):
            sampling_files.read_prompts(odd)
    assert sampling_files.read_prompts(None) is None
    file.write_bytes("\ufeffein grüner Kreis\n".encode())
    assert sampling_files.read_prompts(str(file)) == ["ein grüner Kreis"]
    file.write_text("\n")
    with pytest.raises(UserError, match="there is no prompt in"):
        sampling_files.read_prompts(str(file))


def test_the_size_is_the_trained_one_unless_given(trained):
    model, header = trained[0].model, {"size": "64"}
    for words, size in (([], (64, 64)), (["size=[32,48]"], (32, 48)), (["size=40"], (40, 40))):
        assert sampling_files.image_size(model, settings(*words), header) == size
    said = r"size=\[36,60\], and this model draws images whose sides divide by 8: give size=\[32,64\], say"
    with pytest.raises(UserError, match=said):  # 4 divides both, and the U-Net halves once
        sampling_files.image_size(model, settings("size=[36,60]"), header)


def test_what_is_wrong_in_the_settings_is_said(tmp_path):
    validate.sampling(settings(f"out={tmp_path}/new/er", "original_size=512", "guidance=nested"))
    assert not (tmp_path / "new").exists()
    for words, sentence in ASKED:
        with pytest.raises(UserError) as error:
            validate.sampling(settings(f"out={tmp_path}", *words))
        assert str(error.value).startswith(sentence)


ASKED = [
    (["seed=1.5"], "seed must be a whole number, not 1.5"),
    (["grid_scale=0"], "grid_scale must be 1 or more, not 0"),
    (["steps=2.0"], "steps must be a whole number, not 2.0: write 2"),
    (["scale=nan"], "scale must be a finite number, not nan"),
    (["aesthetic=null"], "aesthetic must be a finite number, not null"),
    (["negative_aesthetic=low"], "negative_aesthetic must be a finite number, not low"),
    (
        ["size=large"],
        "size=large is no pair of pixels: give two whole numbers of 1 or more, as in size=[64,96]",
    ),
    (["size=[64.5,64]"], "size=[64.5, 64] is no pair of pixels"),
    (["size=0"], "size=0 is no pair of pixels"),
    (["crop=null"], "crop=None is no pair of pixels"),
    (["also=depth"], "also=depth names no condition: write +task@also.NAME=depth"),
    (
        ["guidance=nested", "guidance.scales={depth: a}"],
        "guidance.scales.depth must be a finite number, not a",
    ),
    (["out="], "out is empty: give it a folder"),
]


def test_the_wrong_kind_of_file_is_said(tmp_path):
    path = str(tmp_path / "autoencoder.safetensors")
    model_file.save(path, tiny.autoencoder().state_dict(), {}, "autoencoder", {})
    with pytest.raises(UserError, match=r"'autoencoder' where one of kind 'latent_diffusion' is needed"):
        sampling_files.load_model(path, "cpu")


def test_other_frozen_encoders_than_in_training_are_refused(trained, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "identity", lambda self: {"text.sha256": "abc"})
    with pytest.raises(UserError, match=r"trained with text\.sha256 None and this version of ldm has abc"):
        sampling_files.load_model(trained[2], "cpu")


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sampling_files.pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="device=gpu is none that PyTorch knows: give auto, cpu or cuda"):
        sampling_files.pick_device("gpu")
    with pytest.raises(UserError, match="no GPU that PyTorch can use: give device=cpu"):
        sampling_files.pick_device("cuda")
