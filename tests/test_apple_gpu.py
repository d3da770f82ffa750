"""Training and sampling on an emulated Apple GPU: no float64 there, no operation between GPU and CPU."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from omegaconf import OmegaConf

import sample
import train
from ldm.callbacks.ema import EMA
from ldm.cli import encode_latents
from ldm.cli.config.compose import CONFIGS
from ldm.cli.config.instantiate import instantiate
from ldm.cli.device import pick_device
from ldm.diffusion.schedule import ScaledLinear
from ldm.diffusion.times import LogitNormalTimes
from tests.support import tiny
from tests.support.apple_gpu import GPUTensor, apple_gpu
from tests.support.command_line import run_command
from tests.support.configs import options
from tests.support.fingerprint import GUIDANCE, PROMPTS, TASKS
from tests.support.sampling_models import ModelFiles, write_inputs

FUSED = partial(torch.optim.AdamW, lr=3e-3, fused=True)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    with apple_gpu(monkeypatch):
        yield


def test_the_emulated_gpu_behaves_as_a_real_one():
    x = torch.arange(3.0, device="mps:0")
    assert isinstance(x, GPUTensor) and x.device.type == "mps" and (x * 2).cpu().tolist() == [0, 2, 4]
    for operation in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device="mps:0")):
        with pytest.raises(TypeError, match="float64"):
            operation()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    layer = torch.nn.Linear(3, 1).to("mps:0")
    layer(x).sum().backward()
    assert isinstance(layer.weight.grad, GPUTensor) and layer.weight.grad.cpu().tolist() == [[0, 1, 2]]


def first_stage():
    return tiny.first_stage(adversary=tiny.adversary(start=1), optimizer=FUSED)


def second_stage():
    stage = tiny.second_stage(optimizer=FUSED, prompts=["a red square"], strata=4)
    stage.times = LogitNormalTimes(100)
    return stage


@pytest.mark.parametrize("build", [first_stage, second_stage])
def test_a_stage_trains_as_on_the_cpu(build, tmp_path, monkeypatch):
    """Three steps, the second of them rejected by a guard; validation, previews and statistics."""
    data, weights = tiny.data(tmp_path, 3), []

    class RejectSecondStep(Callback):
        def on_fit_start(self, trainer, stage) -> None:
            stage.step_guard = lambda norms: torch.zeros_like(norms[0]) + (stage.global_step == 1)

        def on_train_batch_end(self, trainer, stage, *_) -> None:
            self.before = getattr(self, "after", None)
            self.after = [p.detach().cpu().clone() for p in stage.averaged_parameters().values()]
            if self.before is not None:
                equal = all(map(torch.equal, self.before, self.after))
                assert equal == (trainer.global_step == 2), "only a rejected step changes nothing"

    for accelerator in ("mps", "cpu"):
        torch.manual_seed(0)
        stage = build()
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_steps=3,
            max_epochs=-1,
            callbacks=[EMA(0.9), RejectSecondStep()],
            logger=False,
            val_check_interval=3,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(stage, data)
        weights.append({name: p.detach().cpu() for name, p in stage.averaged_parameters().items()})
        stage.to(pick_device(accelerator))  # the trainer has moved it to the CPU
        stage.preview_images(data)
        stage.on_export(data)
        assert all(value.isfinite().all() for value in weights[-1].values())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


QUICK = ("edm", "unipc", "dpm_solver_2", "karras", "align_your_steps")
"""Those with the most arithmetic on times; the others run in the slow tests."""
GROUPS = ("sampler", "timestep_spacing")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(group, name, marks=[] if name in QUICK else [pytest.mark.slow])
        for group in GROUPS
        for name in options(group)
    ],
)
def test_samples_are_those_of_the_cpu(group, name):
    torch.manual_seed(0)
    model = tiny.diffusion()
    model.schedule = ScaledLinear()
    choices = {"sampler": "dpmpp_2m", "timestep_spacing": "trailing", group: name}
    files = [CONFIGS / part / f"{option}.yaml" for part, option in choices.items()]
    sampler, spacing = (instantiate(OmegaConf.load(file)) for file in files)
    batch, images = {"caption": ["a red square"]}, []
    for device in ("mps", "cpu"):
        times = spacing(model.to(pick_device(device)).schedule, 3)
        images.append(model.generate(batch, [0], (16, 16), sampler=sampler, times=times, scale=2).cpu())
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-4)


def run(main, *words: object) -> str:
    """Run a command that must succeed; return what it prints."""
    status, out, err = run_command(main, *words)
    assert status == 0, err
    return out


@pytest.mark.slow
def test_both_stages_train_encode_and_resume_by_command(tmp_path, monkeypatch):
    # The check builds the model on the meta device, which PyTorch sees in place of the emulated GPU.
    monkeypatch.setattr("ldm.cli.training.preflight.check_memory", lambda *_: None)
    shards, first = tiny.shards(tmp_path / "images"), tmp_path / "ae" / "autoencoder.safetensors"
    words = [f"data.shards={shards}", f"data.val_shards={shards}", "trainer=mps", "data.size=16"]
    words += ["trainer.max_steps=6", "trainer.precision=auto", "callbacks.checkpoint.every_n_steps=3"]
    out = run(train.main, "experiment=debug/ae", f"run={tmp_path / 'ae'}", *words)
    assert "MPSAccelerator in 32-true" in out
    latents = tmp_path / "latents"
    run(encode_latents.main, f"first_stage={first}", f"shards={shards}", f"out={latents}", "size=16")
    text = [*words, f"first_stage={first}", "stage.strata=4", "weighting=learned", "times=log_normal"]
    run(train.main, "experiment=debug/text", f"run={tmp_path / 'text'}", *text)
    text += [
        f"data.shards={latents}",
        f"data.val_shards={latents}",
        "data=demo_latents",
        "times=logit_normal",
    ]
    run(train.main, "experiment=debug/text", f"run={tmp_path / 'cached'}", *text)
    resumed = [*text, "resume=auto", "trainer.max_steps=8"]
    run(train.main, "experiment=debug/text", f"run={tmp_path / 'cached'}", *resumed)
    for name, steps in (("ae", 6), ("text", 6), ("cached", 8)):
        losses = tiny.read_column(tmp_path / name / "metrics.csv", "train/loss")
        assert set(losses) == set(range(1, steps + 1))
        assert torch.tensor(list(losses.values())).isfinite().all()


def sampling_cases() -> list[tuple[str, list[str]]]:
    """Return a model and overrides for every sampler, timestep spacing, guidance and task."""
    cases = [("text", [f"sampler={name}", PROMPTS, "scale=3"]) for name in options("sampler")]
    cases += [("text", [f"timestep_spacing={name}", PROMPTS]) for name in options("timestep_spacing")]
    for name in options("guidance"):
        model, words = GUIDANCE.get(name, ("text", [PROMPTS]))
        cases.append((model, [f"guidance={name}", "scale=3", *words]))
    for name in options("task"):
        model, words = TASKS[name]
        cases.append((model, [f"task={name}", *words]))
    return [*cases, ("text", ["tile=2", PROMPTS])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"), [pytest.param(*case, id=case[1][0]) for case in sampling_cases()]
)
def test_sampling_by_command(model, words, folder, tmp_path):
    inputs, models = write_inputs(folder), ModelFiles(folder)
    for name, path in {**inputs, "model": models[model]}.items():
        words = [word.replace(f"{{{name}}}", path) for word in words]
    settings = ["device=mps", "n=2", "steps=4", "scale=1", f"out={tmp_path}"]
    run(sample.main, f"ckpt={models[model]}", *settings, *words)
    assert len(list(tmp_path.glob("0*.png"))) >= 2
