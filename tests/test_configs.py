"""Every shipped config composes, resolves and builds."""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from omegaconf import OmegaConf

from ldm.cli.config.compose import CONFIGS, choices, compose
from ldm.cli.config.instantiate import instantiate
from ldm.data.datamodule import ShardDataModule
from ldm.diffusion.guidance import Guidance, Prediction
from ldm.diffusion.parameterization import Eps
from ldm.diffusion.schedule import ScaledLinear
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.stages import AutoencoderStage, LatentDiffusionStage
from ldm.stages.base import Stage
from ldm.typing import Conditioning
from studies import CONFIGS as STUDIES
from tests.support.configs import options

EXPERIMENTS = options("experiment")
SMALL = ("debug/", "demo/", "emoji/")
"""Prefixes of experiments without a published size."""
REQUIRED = ["data.shards=shards", "init=weights.safetensors", "first_stage=weights.safetensors"]
"""The keys that some experiments require."""
COUNTS = {
    "ae_kl_f4": {"": 55_312_063},
    "ae_kl_f8": {"": 83_653_863},
    "ae_kl_f8_finetune": {"": 83_653_863},
    "ae_kl_f16": {"": 69_610_963},
    "ae_kl_f32": {"": 103_880_131},
    "ae_vq_f4": {"": 55_322_782},
    "ae_vq_f4_noattn": {"": 53_219_486},
    "ae_vq_f8": {"": 67_717_295},
    "ae_vq_f8_n256": {"": 67_652_783},
    "ae_vq_f16": {"": 69_593_371},
    "ldm_f8_text": {"denoiser": 859_520_964, "first_stage": 83_653_863, "conditioner": 123_060_480},
    "ldm_f8_text_512": {"denoiser": 859_520_964, "first_stage": 83_653_863, "conditioner": 123_060_480},
    "ldm1_imagenet256": {"denoiser": 396_835_971, "first_stage": 0, "conditioner": 1001 * 512},
    "ldm1_celebahq256": {"denoiser": 270_458_115, "first_stage": 0, "conditioner": 0},
    "ldm4_imagenet256": {"denoiser": 400_920_579, "first_stage": 55_322_782, "conditioner": 1001 * 512},
    "ldm8_imagenet256": {"denoiser": 394_984_196, "first_stage": 67_717_295, "conditioner": 1001 * 512},
    "dit_xl2_imagenet256": {"denoiser": 674_816_272, "first_stage": 83_653_863, "conditioner": 0},
    "ldm4_celebahq256": {"denoiser": 274_056_163, "first_stage": 55_322_782, "conditioner": 0},
    "ldm4_ffhq256": {"denoiser": 274_056_163, "first_stage": 55_322_782, "conditioner": 0},
    "ldm4_bedrooms256": {"denoiser": 274_056_163, "first_stage": 55_322_782, "conditioner": 0},
    "ldm8_churches256": {"denoiser": 294_966_916, "first_stage": 83_653_863, "conditioner": 0},
    "ldm8_text256": {"denoiser": 872_300_484, "first_stage": 83_653_863, "conditioner": 567_069_440},
    "sd2_text256": {"denoiser": 865_910_724, "first_stage": 83_653_863, "conditioner": 340_387_840},
    "sd2_text512": {"denoiser": 865_910_724, "first_stage": 83_653_863, "conditioner": 340_387_840},
    "sd2_text768": {"denoiser": 865_910_724, "first_stage": 83_653_863, "conditioner": 340_387_840},
    "sdxl_text256": {"denoiser": 2_567_463_684, "first_stage": 83_653_863, "conditioner": 810_632_448},
    "sdxl_text512": {"denoiser": 2_567_463_684, "first_stage": 83_653_863, "conditioner": 810_632_448},
    "sdxl_text1024": {"denoiser": 2_567_463_684, "first_stage": 83_653_863, "conditioner": 810_632_448},
    "sdxl_refiner1024": {"denoiser": 2_259_526_660, "first_stage": 83_653_863, "conditioner": 694_659_840},
    "ldm4_semantic256": {"denoiser": 215_229_315, "first_stage": 55_322_782, "conditioner": 182 * 3},
    "ldm4_semantic_tokens256": {
        "denoiser": 400_920_579,
        "first_stage": 55_322_782,
        "conditioner": 23_986_688,
    },
    "ldm4_layout256": {"denoiser": 246_277_379, "first_stage": 55_322_782, "conditioner": 52_953_600},
    "ldm8_layout_coco256": {"denoiser": 312_241_540, "first_stage": 67_717_295, "conditioner": 52_739_584},
    "ldm4_inpainting256": {"denoiser": 387_245_827, "first_stage": 53_219_486, "conditioner": 0},
    "sd15_inpainting512": {"denoiser": 859_535_364, "first_stage": 83_653_863, "conditioner": 123_060_480},
    "sd2_inpainting512": {"denoiser": 865_925_124, "first_stage": 83_653_863, "conditioner": 340_387_840},
    "ldm4_super_resolution256": {"denoiser": 113_622_563, "first_stage": 55_322_782, "conditioner": 0},
    "ldm4_super_resolution_bsr256": {"denoiser": 113_622_563, "first_stage": 55_322_782, "conditioner": 0},
    "sd2_x4_upscaler512": {"denoiser": 473_398_020, "first_stage": 55_325_927, "conditioner": 340_387_840},
    "sd15_variation512": {"denoiser": 859_520_964, "first_stage": 83_653_863, "conditioner": 303_966_208},
    "sd2_depth512": {"denoiser": 865_913_604, "first_stage": 83_653_863, "conditioner": 340_387_840},
    "sd15_edges512": {"denoiser": 859_705_284, "first_stage": 83_653_863, "conditioner": 123_060_480},
}
GROUP_COUNTS = {
    "denoiser": {
        "sd15": 859_520_964,
        "sd15_inpainting": 859_535_364,
        "sd2": 865_910_724,
        "sd2_inpainting": 865_925_124,
        "sd2_depth": 865_913_604,
        "sd2_unclip": 870_173_124,
        "sd2_x4_upscaler": 473_398_020,
        "sdxl": 2_567_463_684,
        "sdxl_refiner": 2_259_526_660,
        "ldm1_imagenet": 396_835_971,
        "ldm1_faces": 270_458_115,
        "ldm4_faces": 274_056_163,
        "ldm8_churches": 294_966_916,
        "ldm8_imagenet": 394_984_196,
        "ldm4_imagenet": 400_920_579,
        "ldm4_text": 403_623_939,
        "ldm8_text": 872_300_484,
        "ldm4_layout": 246_277_379,
        "ldm8_layout": 312_241_540,
        "ldm4_inpainting": 387_245_827,
        "ldm4_semantic": 215_229_315,
        "ldm4_super_resolution": 113_622_563,
        "dit_xl2": 674_834_720 - 16 * (1152 + 1),  # without the four variance channels
    },
    "autoencoder": {
        "kl_f4": 55_312_063,
        "kl_f4_upscaler": 55_325_927,
        "kl_f8": 83_653_863,
        "kl_f16": 69_610_963,
        "kl_f32": 103_880_131,
        "vq_f4": 55_322_782,
        "vq_f4_noattn": 53_219_486,
        "vq_f8": 67_717_295,
        "vq_f8_n256": 67_652_783,
        "vq_f16": 69_593_371,
        "identity": 0,
        "kl_f2": 13_314_465,
        "kl_f8_16": 83_821_011,
        "dc_f32": 304_212_451,
        "dc_f64": 740_960_323,
    },
    "conditioner": {
        "clip_vit_l14": 123_060_480,
        "clip_vit_h14": 340_387_840,
        "sdxl_text": 810_632_448,
        "clip_image": 303_966_208,
        "transformer_text_1280": 567_069_440,  # 581,994,042 with BERT's vocabulary, unused output layer
    },
}
"""Published parameter counts, LDM-1 rounded to millions; kl_f2, kl_f8_16, dc_* and ldm8_layout are ours."""
GROUPS = {
    "autoencoder": [
        "autoencoder",
        "perceptual",
        "adversary",
        "optimizer",
        "learning_rate",
        "logvar",
        "equivariance",
    ],
    "latent_diffusion": ["denoiser", "conditioner", "schedule", "parameterization", "weighting", "times"],
}
"""The config groups of each stage."""
DOCUMENTED_COUNTS = {
    (group, name): int(number.replace(",", ""))
    for group, name, number in re.findall(
        r"^\| `(\w+)=([\w/]+)` \|.*\| ([\d,]+) \|$",
        (CONFIGS.parent / "docs" / "guide" / "networks.md").read_text(),
        flags=re.MULTILINE,
    )
}
"""The parameter counts of docs/guide/networks.md."""
OPTIONS = [
    (stage, group, name) for stage, groups in GROUPS.items() for group in groups for name in options(group)
]


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_builds(name):
    cfg = compose("train", [f"experiment={name}", *REQUIRED])
    assert cfg.name == name.replace("/", "_") and cfg.run == f"runs/{cfg.name}"
    with torch.device("meta"):
        stage = instantiate(cfg.stage)
    assert isinstance(stage, Stage) and isinstance(instantiate(cfg.data), ShardDataModule)
    for part, expected in ({} if name.startswith(SMALL) else COUNTS[name]).items():
        assert count_parameters(stage.model.get_submodule(part)) == expected, part
    if isinstance(stage, LatentDiffusionStage):
        assert not any(p.requires_grad for p in stage.model.first_stage.parameters()), "frozen"
    assert stage.averaged_parameters()
    for callback in cfg.callbacks.values():
        instantiate(callback)
    for logger in cfg.logger.values():
        instantiate(logger)
    optimizer = instantiate(cfg.stage.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr


def test_the_published_hyperparameters():
    text, autoencoder = (build_stage(name) for name in ("ldm_f8_text", "ae_kl_f8"))
    assert isinstance(text, LatentDiffusionStage) and isinstance(autoencoder, AutoencoderStage)
    cfg = compose("train", ["experiment=ldm_f8_text", *REQUIRED])
    assert (cfg.data.global_batch_size, cfg.optimizer.lr, cfg.data.size) == (2048, 1e-4, 256)
    assert text.learning_rate(4999) == 0.5 and text.learning_rate(9999) == text.learning_rate(10**6) == 1
    schedule = instantiate(cfg.schedule)
    beta = 1 - (schedule.alpha(torch.tensor([1.0, 1000.0])) / schedule.alpha(torch.tensor([0.0, 999.0]))) ** 2
    torch.testing.assert_close(beta.flatten(), torch.tensor([0.00085, 0.012]), rtol=2e-3, atol=0)
    assert cfg.conditioner.conditioners.text.dropout == 0.1 and cfg.callbacks.ema.decay == 0.9999
    finetuning = compose("train", ["experiment=ldm_f8_text_512", *REQUIRED])
    assert finetuning.data.size == 512 and finetuning.stage.init == "weights.safetensors"


def build_stage(name: str) -> Stage:
    with torch.device("meta"):
        return instantiate(compose("train", [f"experiment={name}", *REQUIRED]).stage)


@pytest.mark.parametrize(("stage", "group", "name"), OPTIONS, ids=[f"{g}/{n}" for _, g, n in OPTIONS])
def test_an_option_of_a_stage_builds(stage, group, name):
    cfg = compose(
        "train", ["name=x", "trainer.max_steps=1000", f"stage={stage}", f"{group}={name}", *REQUIRED]
    )
    with torch.device("meta"):
        built = instantiate(cfg[group])
    if name in GROUP_COUNTS.get(group, {}):
        assert count_parameters(built) == GROUP_COUNTS[group][name]
    if group in ("autoencoder", "denoiser", "conditioner"):
        assert DOCUMENTED_COUNTS.get((group, name)) == count_parameters(built), "docs/guide/networks.md"
    if group == "optimizer":
        built([torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize("name", options("data"))
def test_a_data_config_builds(name):
    cfg = compose("train", ["experiment=debug/ae", f"data={name}", "data.shards=shards"])
    assert instantiate(cfg.data).steps == cfg.trainer.max_steps


@pytest.mark.parametrize("name", options("trainer"))
def test_the_keys_of_a_trainer_config_are_arguments_of_the_trainer(name):
    settings = compose("train", ["experiment=debug/ae", f"trainer={name}"]).trainer
    arguments = inspect.signature(Trainer).parameters
    assert {key for key in settings if key != "_target_"} <= set(arguments)
    assert settings.use_distributed_sampler is False and settings.enable_checkpointing is False


@pytest.mark.parametrize("name", options("logger"))
def test_a_logger_builds(name):
    for logger in compose("train", ["experiment=debug/ae", f"logger={name}"]).logger.values():
        instantiate(logger)


@pytest.mark.parametrize("names", ["csv", "tensorboard", "[wandb,tensorboard]", "wandb"])
def test_loggers_can_be_combined_and_always_include_csv(names):
    loggers = compose("train", ["experiment=debug/ae", f"logger={names}"]).logger
    assert set(loggers) == {"csv", *names.strip("[]").split(",")}


@pytest.mark.parametrize("name", options("source"))
def test_a_source_builds(name, tmp_path):
    (tmp_path / "table.csv").write_text("path,caption\n")
    path = {"folder": tmp_path, "table": tmp_path / "table.csv"}.get(name)
    required = [] if path is None else [f"source.path={path}"]
    cfg = compose("pack", [f"source={name}", "out=out", *required])
    try:
        instantiate(cfg.source)
    except UserError as error:
        assert "font" in str(error), "only the emoji font may be missing"


@cache
def compose_sample(override):
    return compose("sample", ["ckpt=a", "prompts=[a]", override])


@pytest.mark.parametrize("spacing", options("timestep_spacing"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_a_sampler_and_a_timestep_spacing_build(sampler, spacing):
    assert callable(instantiate(compose_sample(f"sampler={sampler}").sampler))
    cfg = compose_sample(f"timestep_spacing={spacing}")
    times = instantiate(cfg.timestep_spacing)(ScaledLinear(), cfg.steps)
    assert len(times) == cfg.steps + 1 == len(trailing(1000, cfg.steps))


@pytest.mark.parametrize("name", options("guidance"))
def test_guidance_builds(name):
    guidance = instantiate(compose("sample", ["ckpt=a", "prompts=[a]", f"guidance={name}"]).guidance)
    assert isinstance(guidance, Guidance)
    cond = Conditioning(context=torch.ones(2, 1, 4), concat=torch.ones(2, 1, 3, 3))
    network = lambda z, t, c: z * c.context.mean()  # noqa: E731
    denoise = guidance(Prediction(network, ScaledLinear(), Eps(), cond, cond), 1.5)
    z_0, eps = denoise(torch.randn(2, 4, 3, 3), torch.tensor(500.0))
    assert z_0.isfinite().all() and z_0.shape == eps.shape == (2, 4, 3, 3)


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("parameterization", options("parameterization"))
def test_every_parameterization_fits_every_schedule_except_eps_at_zero_terminal_snr(
    schedule, parameterization
):
    prediction, noise_schedule = (
        instantiate(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
        for group, name in (("parameterization", parameterization), ("schedule", schedule))
    )
    if (schedule, parameterization) == ("rectified_flow", "eps"):
        with pytest.raises(ValueError, match="alpha_T = 0 at T = 1000"):
            prediction.check(noise_schedule)
    else:
        prediction.check(noise_schedule)


RECIPES = {
    "EDM": ["schedule=karras", "parameterization=edm", "times=log_normal"],
    "EDM2": ["schedule=karras", "parameterization=edm", "times=log_normal", "weighting=learned"],
    "rectified flow": ["schedule=rectified_flow", "parameterization=flow", "times=shifted"],
    "zero terminal SNR": [
        "schedule=cosine", "schedule.zero_terminal_snr=true", "parameterization=v", "weighting=min_snr",
        "weighting.least=0.005", "stage.strata=${data.global_batch_size}", "stage.offset_noise=0.1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_is_a_few_overrides(name):
    cfg = compose("train", ["experiment=debug/text", "data.shards=shards", *RECIPES[name]])
    assert isinstance(instantiate(cfg.stage), LatentDiffusionStage)


@pytest.mark.parametrize("name", options("task"))
def test_a_task_builds(name):
    overrides = ["ckpt=a", "prompts=[a]", f"task={name}"]
    task = compose("sample", overrides, complete=False).task
    missing = [key for key in task if OmegaConf.is_missing(task, key)]
    overrides += [f"task.{key}={'[0]' if key == 'labels' else 'a'}" for key in missing]
    instantiate(compose("sample", overrides).task)


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("encode_latents", ["first_stage=a", "shards=b", "out=c", "size=64"]),
        ("evaluate", ["ckpt=a", "out=b"]),
        ("sample", ["ckpt=a", "prompts=b"]),
        ("pack", ["source=demo", "out=b"]),
        ("ema", ["ckpt=a", "snapshots=b", "length=0.1", "out=c"]),
        ("expand_inputs", ["experiment=sd15_inpainting512", "ckpt=a", "out=b"]),
    ],
)
def test_a_command_composes(command, overrides):
    OmegaConf.to_container(compose(command, overrides), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(
    ("study", "overrides"), [("samplers", ["ckpt=a", "out=b"]), ("two_moons", ["out=a"])]
)
def test_a_study_composes(study, overrides):
    OmegaConf.to_container(compose(study, overrides, STUDIES), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_four_comment_lines(name):
    package, summary, command, cost, result, *rest = (
        (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    )
    assert package == "# @package _global_"
    assert summary.startswith("# ") and len(summary) > 20
    assert command.startswith("# ") and f"train.py experiment={name}" in command
    assert cost.startswith("# cost: ") and result.startswith("# our number: ")
    assert not rest[0].startswith("#")


def test_the_table_of_full_size_experiments_matches_the_configs():
    """docs/guide/experiments.md lists each once, with its parameter count, first stage and conditioner."""
    cells = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in (CONFIGS.parent / "docs" / "guide" / "experiments.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    rows = {row[0]: row[1:] for row in cells}
    assert len(rows) == len(cells) and rows.keys() == {n for n in COUNTS if not n.startswith("ae_")}
    for name, (_, size, first_stage, conditioner, *_) in rows.items():
        assert size == f"{COUNTS[name]['denoiser']:,}"
        chosen = choices("train", [f"experiment={name}"])
        assert chosen["conditioner"] == conditioner
        assert chosen["autoencoder"] == {"none": "identity"}.get(first_stage, first_stage)
        experiment = f"ae_{first_stage.removesuffix('_upscaler')}"
        assert experiment in EXPERIMENTS or first_stage == "none"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_config_begins_with_a_comment(path: Path):
    assert path.read_text().startswith("# ")
