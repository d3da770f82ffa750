"""A user's mistakes: the arguments, and the config keys and numbers that the error message must contain.

In words and phrases, {files} is a folder of prepared files (`tests.support.error_messages.prepare_files`) and
{run} a new folder, into which train.py and `submit` write unless the words choose another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mistake:
    """One mistake, and the machine on which it is made."""

    title: str
    words: Sequence[str]
    phrases: Sequence[str]
    command: str = "train.py"
    machine: str = ""
    """What the page says of the machine or of the process."""
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int | None = None
    """Free disk space; None for what there is."""
    locked: bool = False
    """Whether another job holds the lock of {run}."""
    hidden: Sequence[str] = ()
    """Regular expressions of parts of the message that differ between machines or versions of libraries."""


AE = ["experiment=debug/ae", "data.shards={files}/images"]
TEXT = ["experiment=debug/text", "data.shards={files}/images"]
FIRST_STAGE = "{files}/ae/autoencoder.safetensors"
CHECKPOINT = "{files}/ae/checkpoints/step00000005.ckpt"
RESUME = [*AE, "run={files}/ae", "trainer.max_steps=9", "resume=auto"]
WITH_FIRST_STAGE = [*TEXT, f"first_stage={FIRST_STAGE}"]

NUMBERS = [
    Mistake("no steps", [*AE, "trainer.max_steps=0"], ["trainer.max_steps", "not 0"]),
    Mistake("a fraction of a step", [*AE, "trainer.max_steps=7.5"], ["trainer.max_steps", "whole", "7.5"]),
    Mistake("steps that are null", [*AE, "trainer.max_steps=null"], ["trainer.max_steps", "whole", "null"]),
    Mistake("steps in scientific notation", [*AE, "trainer.max_steps=1e6"], ["1000000.0", "write 1000000"]),
    Mistake(
        "a checkpoint every 1.5 steps",
        [*AE, "callbacks.checkpoint.every_n_steps=1.5"],
        ["callbacks.checkpoint.every_n_steps", "whole", "1.5"],
    ),
    Mistake("negative workers", [*AE, "data.num_workers=-1"], ["data.num_workers", "not -1"]),
    Mistake("a negative learning rate", [*AE, "optimizer.lr=-1e-4"], ["optimizer.lr", "-0.0001"]),
    Mistake("a learning rate that is NaN", [*AE, "optimizer.lr=nan"], ["optimizer.lr", "nan"]),
    Mistake(
        "a negative warm-up", [*AE, "learning_rate.warmup_steps=-5"], ["learning_rate.warmup_steps", "-5"]
    ),
    Mistake("a negative seed", [*AE, "seed=-1"], ["seed", "not -1"]),
    Mistake("a seed above the largest", [*AE, "seed=4294967296"], ["seed must be", "..4294967295"]),
    Mistake("a fractional seed", [*AE, "seed=1.5"], ["seed", "whole", "1.5"]),
    Mistake(
        "validation every 0 steps",
        [*AE, "data.val_shards={files}/images", "trainer.val_check_interval=0"],
        ["trainer.val_check_interval", "not 0"],
    ),
    Mistake("no devices", [*AE, "trainer.devices=0"], ["trainer.devices", "auto", "not 0"]),
    Mistake(
        "weights in half precision", [*AE, "trainer.precision=16-true"], ["=16-true", "16-mixed", "32-true"]
    ),
    Mistake("double precision", [*AE, "trainer.precision=64"], ["trainer.precision=64 ", "float32"]),
    Mistake(
        "an unknown precision",
        [*AE, "trainer.precision=fp8"],
        ["trainer", "'fp8'"],
        hidden=[r"(?<=invalid\.).*"],
    ),
    Mistake("an EMA decay above 1", [*AE, "callbacks.ema.decay=2"], ["callbacks.ema", "decay", "not 2"]),
    Mistake(
        "no checkpoints to keep",
        [*AE, "callbacks.checkpoint.keep=0"],
        ["callbacks.checkpoint.keep", "2..", "not 0"],
    ),
]

SETTINGS = [
    Mistake(
        "an optimizer's betas above 1", [*AE, "optimizer.betas=[2,3]"], ["optimizer.betas", "0..1", "[2, 3]"]
    ),
    Mistake("an unknown optimizer setting", [*AE, "+optimizer.foo=1"], ["optimizer.*", "'foo'"]),
    Mistake(
        "Lightning's gradient clipping",
        [*AE, "+trainer.gradient_clip_val=1.0"],
        ["trainer.gradient_clip_val=1.0", "stage.gradient_clip"],
    ),
    Mistake(
        "Lightning's gradient accumulation",
        [*AE, "+trainer.accumulate_grad_batches=2"],
        ["trainer.accumulate_grad_batches=2", "stage.micro_batch_size"],
    ),
    Mistake("an unknown trainer setting", [*AE, "+trainer.foo=1"], ["trainer", "'foo'"]),
    Mistake(
        "an optimizer that cannot skip steps",
        [*AE, "optimizer.fused=false"],
        ["optimizer.fused=true", "callbacks.skip_bad_steps=null"],
    ),
    Mistake("null for a config group", [*AE, "logger=null"], ["logger=null", "csv, tensorboard, wandb"]),
    Mistake("no callbacks", [*AE, "callbacks=null"], ["callbacks=null", "default, post_hoc"]),
    Mistake(
        "an experiment of stage 1 with stage 2",
        [*AE, "stage=latent_diffusion"],
        ["experiment=debug/ae", "stage=latent_diffusion", "perceptual"],
    ),
    Mistake(
        "an experiment of stage 2 with stage 1",
        [*TEXT, "stage=autoencoder"],
        ["experiment=debug/text", "stage=autoencoder", "denoiser"],
    ),
    Mistake(
        "a first stage for stage 1",
        [*AE, "first_stage=/nowhere"],
        ["first_stage=/nowhere", "debug_ae", "init=/nowhere"],
    ),
    Mistake("an empty name", [*AE, "name="], ["name is empty"]),
    Mistake("W&B without an account", [*AE, "logger=wandb"], ["logger=wandb", "logger.wandb.offline=true"]),
    Mistake(
        "a discriminator that starts after the last step",
        [*AE, "trainer.max_steps=4"],
        ["adversary.start=4", "trainer.max_steps=4"],
    ),
]

FOLDERS = [
    Mistake("an empty run folder", [*AE, "run="], ["run is empty"]),
    Mistake("a bucket as the run folder", [*AE, "run=s3://bucket/run"], ["run=s3://bucket/run", "local"]),
    Mistake("a run folder below a file", [*AE, "run={files}/file/x"], ["run={files}/file/x", "is a file"]),
    Mistake(
        "a logger's folder that cannot be written",
        [*AE, "logger=tensorboard", "logger.tensorboard.folder=/proc/x"],
        ["logger.tensorboard.folder=/proc/x", "not writable"],
    ),
    Mistake(
        "a run folder in use by another job",
        AE,
        ["run={run}", "in use", "process"],
        machine="while another job trains there",
        locked=True,
        hidden=[r"(?<=process )\d+ on [^:]+(?=:)"],
    ),
    Mistake("a run folder of another run", [*AE, "run={files}/ae"], ["{files}/ae", "resume=auto"]),
    Mistake("a full disk", AE, [" 0.0 GB free", "run=FOLDER"], free_bytes=10**5),
    Mistake(
        "a full disk, and more checkpoints than needed",
        [*AE, "callbacks.checkpoint.keep=5"],
        ["5 ", " 0.0 GB free", "run=FOLDER", "callbacks.checkpoint.keep=2"],
        free_bytes=10**5,
    ),
]

RESUMING = [
    Mistake(
        "a checkpoint that does not exist", [*AE, "resume=/nowhere.ckpt"], ["/nowhere.ckpt", "resume=auto"]
    ),
    Mistake("a model file", [*AE, f"resume={FIRST_STAGE}"], [FIRST_STAGE, "init=", "resume=auto"]),
    Mistake(
        "a truncated checkpoint",
        [*AE, "resume={files}/cut.ckpt"],
        ["{files}/cut.ckpt", "read", "resume=auto"],
    ),
    Mistake("a text file", [*AE, "resume={files}/text.ckpt"], ["{files}/text.ckpt", "read"]),
    Mistake(
        "a checkpoint of another program",
        [*AE, "resume={files}/foreign.ckpt"],
        ["{files}/foreign.ckpt", "not a checkpoint of train.py"],
    ),
    Mistake(
        "another model",
        [*RESUME, "adversary.discriminator.channels=8"],
        ["step00000005.ckpt", "adversary.discriminator.channels=8", "run=FOLDER", "allow_changes=["],
    ),
    Mistake(
        "the other stage",
        [*WITH_FIRST_STAGE, f"resume={CHECKPOINT}"],
        [CHECKPOINT, "AutoencoderStage", "run=FOLDER"],
    ),
    Mistake("another seed", [*RESUME, "seed=1"], ["seed=0", "seed=1"]),
    Mistake(
        "another batch size",
        [*RESUME, "data.global_batch_size=6"],
        ["data.global_batch_size=4", "data.global_batch_size=6"],
    ),
    Mistake("other shards", [*RESUME, "data.shards={files}/captionless"], ["data.shards", "data.order"]),
    Mistake(
        "another model of the same shape",
        [*RESUME, "perceptual.seed=1", "allow_changes=[adversary]"],
        ["perceptual.seed=0", "perceptual.seed=1", "allow_changes=[perceptual.seed]"],
    ),
    Mistake(
        "a model of another shape that is allowed",
        [*RESUME, "adversary.discriminator.channels=8", "allow_changes=[adversary]"],
        ["step00000005.ckpt", " tensors", "run=FOLDER"],
    ),
    Mistake(
        "a permission for no setting",
        [*RESUME, "data.size=32", "allow_changes=[data.sise]"],
        ["allow_changes", "data.sise", "data.size"],
    ),
    Mistake(
        "an optimizer of another state",
        [*RESUME, "+optimizer.amsgrad=true"],
        ["step00000005.ckpt", "optimizer=Adam", "max_exp_avg_sq", "run=FOLDER"],
    ),
    Mistake("initial weights for a resumed run", [*RESUME, f"init={FIRST_STAGE}"], ["init=", "run=FOLDER"]),
    Mistake(
        "another batch size with an order by batches",
        [*RESUME, "data.global_batch_size=6", "data.order.lanes=2", "allow_changes=[data]"],
        ["data.global_batch_size", "data.order.lanes", "run=FOLDER"],
    ),
    Mistake(
        "a checkpoint into a folder with others",
        [*AE, "run={files}/ae", f"resume={FIRST_STAGE}"],
        ["{files}/ae", "step00000005.ckpt", "run=FOLDER"],
    ),
]

DATA = [
    Mistake("no such shard", ["experiment=debug/ae", "data.shards=/nowhere"], ["/nowhere", "data.shards"]),
    Mistake(
        "no such validation shard",
        [*AE, "data.val_shards=/nowhere.tar"],
        ["/nowhere.tar", "data.val_shards"],
    ),
    Mistake(
        "a folder without shards",
        ["experiment=debug/ae", "data.shards={files}/empty"],
        ["*.tar", "{files}/empty"],
    ),
    Mistake(
        "remote shards without a manifest",
        ["experiment=debug/ae", "data.shards=file://{files}/empty", "data.cache.folder={files}/cache"],
        ["file://{files}/empty has no manifest.npy", "shards=URL out=FOLDER", "data.index=FOLDER"],
    ),
    Mistake(
        "a bucket whose driver is not installed",
        ["experiment=debug/ae", "data.shards=s3://bucket/images", "data.cache.folder={files}/cache"],
        ["s3://bucket/images/manifest.npy", "s3fs"],
    ),
    Mistake(
        "an image size that is not divisible",
        [*AE, "data.size=60"],
        ["data.size=60", "factor 8", "data.size=56"],
    ),
    Mistake(
        "an image size too small for the discriminator",
        [*AE, "data.size=8"],
        ["adversary", "8x8", "12", "data.size", "adversary=..."],
    ),
    Mistake(
        "images that equivariance shrinks too far",
        [*AE, "equivariance=eq_vae", "equivariance.smallest=0.1"],
        ["adversary", "12", "64x64", "equivariance.smallest", "data.size", "adversary=..."],
    ),
    Mistake(
        "shards without captions",
        ["experiment=debug/text", "data.shards={files}/captionless", f"first_stage={FIRST_STAGE}"],
        ["{files}/captionless", "a caption in .txt", "data.captions=", "conditioner=..."],
    ),
    Mistake("no first stage", [*TEXT, "first_stage=null"], ["stage 2", "first_stage="]),
    Mistake(
        "a first stage that does not exist",
        [*TEXT, "first_stage=/nowhere.safetensors"],
        ["/nowhere.safetensors"],
    ),
    Mistake(
        "images as the first stage",
        [*TEXT, "first_stage={files}/images/00000.tar"],
        ["{files}/images/00000.tar", "safetensors"],
    ),
    Mistake(
        "a first stage of another width",
        [*WITH_FIRST_STAGE, "autoencoder.encoder.channels=16"],
        [FIRST_STAGE, " tensors"],
    ),
    Mistake(
        "a first stage with NaN in it",
        [*TEXT, "first_stage={files}/nan.safetensors"],
        ["{files}/nan.safetensors", "NaN or infinity in latent_mean", "optimizer.lr"],
    ),
    Mistake(
        "initial weights with NaN in them",
        [*AE, "init={files}/nan.safetensors"],
        ["{files}/nan.safetensors", "NaN or infinity in latent_mean", "optimizer.lr"],
    ),
]

MACHINE = [
    Mistake("no GPU", [*AE, "trainer=gpu"], ["no GPU", "trainer=cpu"]),
    Mistake("an unknown accelerator", [*AE, "trainer.accelerator=tpu"], ["=tpu", "gpu or mps"]),
    Mistake("no Apple GPU", [*AE, "trainer=mps"], ["no Apple GPU", "trainer=auto"]),
    Mistake(
        "more devices than GPUs",
        [*AE, "trainer=gpu", "trainer.devices=4"],
        ["trainer.devices=4", "2 GPU", "trainer.devices=auto"],
        machine="on a machine with 2 GPUs",
        gpus=2,
    ),
    Mistake(
        "a batch size that is not divisible by the number of processes",
        [*AE, "trainer.devices=3", "trainer.strategy=ddp"],
        ["data.global_batch_size=4", "3 processes"],
    ),
    Mistake(
        "a sweep in one process over several ranks",
        ["-m", *AE, "trainer.devices=2", "trainer.strategy=ddp", "run={run}/${seed}", "seed=1,2"],
        ["-m", " 2 ranks", "trainer.devices=1", "hydra.launcher.tasks_per_node=2"],
    ),
    Mistake(
        "python instead of srun in a SLURM job",
        AE,
        ["4 tasks", "`srun python train.py", "--ntasks=1"],
        machine="in a SLURM job of 4 tasks",
        environment={"SLURM_NTASKS": "4", "SLURM_NNODES": "1"},
    ),
    Mistake(
        "tasks that do not divide evenly over the nodes",
        AE,
        ["3 tasks", "2 nodes", "--ntasks-per-node"],
        machine="by srun in a SLURM job of 3 tasks on 2 nodes",
        environment={"SLURM_NTASKS": "3", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"},
    ),
    Mistake(
        "devices that contradict torchrun",
        [*AE, "trainer.devices=3"],
        ["trainer.devices=3", "torchrun", "2 processes"],
        machine="by torchrun --nproc-per-node=2",
        environment={"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
    ),
    Mistake(
        "one GPU per process",
        [*AE, "trainer=ddp"],
        ["8 processes", "1 GPU", "--gpus-per-node", "not --gpus-per-task"],
        machine="by torchrun --nproc-per-node=8, each process with 1 GPU",
        gpus=1,
        environment={"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"},
    ),
]

SUBMIT = [
    Mistake(title, [*AE, "data.global_batch_size=32", *words], phrases, "python -m ldm.cli.submit")
    for title, words, phrases in [
        ("no sbatch on this machine", [], ["no sbatch", "dry=true"]),
        ("a signal before the start", ["hours=0.05"], ["signal=300", "hours=0.05", "signal=30"]),
        (
            "a batch size that is not divisible by the job's number of tasks",
            ["nodes=3"],
            ["data.global_batch_size=32", "nodes=3 x tasks=8", "data.global_batch_size=24"],
        ),
        ("no GPUs, and no number of tasks", ["gpus=0"], ["tasks must be 1 or more", "gpus=0", "tasks=2"]),
    ]
]

SAMPLING = [
    Mistake(title, words, phrases, "sample.py")
    for title, words, phrases in [
        (
            "the model file of a first stage",
            [f"ckpt={FIRST_STAGE}", "prompts=[a]"],
            [FIRST_STAGE, "'autoencoder'"],
        ),
        ("no such model file", ["ckpt={files}/nowhere", "prompts=[a]"], ["{files}/nowhere"]),
        (
            "the URL of a model file",
            ["ckpt=https://host/model.safetensors", "prompts=[a]"],
            ["ckpt=https://host/model.safetensors", "only shards", "copy"],
        ),
        (
            "no such prompt file",
            [f"ckpt={FIRST_STAGE}", "prompts={files}/nowhere.txt"],
            ["{files}/nowhere.txt"],
        ),
        (
            "prompts in another encoding",
            [f"ckpt={FIRST_STAGE}", "prompts={files}/latin.txt"],
            ["latin.txt", "UTF-8", "byte 6"],
        ),
        ("no prompts", [f"ckpt={FIRST_STAGE}", "prompts=[]"], ["prompts=[]"]),
        *(
            (title, [f"ckpt={FIRST_STAGE}", "prompts=[a]", *words], phrases)
            for title, words, phrases in [
                (
                    "a number for guidance",
                    ["guidance=2.0"],
                    ["guidance is a config group", "interval, interval_rescaled, nested", "scale=2.0"],
                ),
                ("no images", ["n=0"], ["n must be", "1..", "not 0"]),
                ("a fraction of an image", ["n=1.5"], ["n must be a whole number", "1.5"]),
                ("an empty batch", ["batch_size=0"], ["batch_size must be", "1..", "not 0"]),
                ("a size of one number in brackets", ["size=[64]"], ["size=[64]", "[64,96]", "size=64"]),
                ("a size of three numbers", ["size=[64,64,3]"], ["size=[64, 64, 3]"]),
                ("a crop of one number", ["crop=8"], ["crop=8", "crop=[64,96]"]),
                ("an unknown device", ["device=gpu"], ["device", "gpu", "cuda"]),
                ("an Apple GPU on another machine", ["device=mps"], ["device=mps", "device=cpu"]),
                (
                    "a scale without a condition",
                    ["guidance=nested", "guidance.scales=1.5"],
                    ["guidance.scales must be", "{NAME: 1}", "not 1.5"],
                ),
                ("a file as the output folder", ["out={files}/file"], ["out={files}/file", "is a file"]),
                ("an output folder that cannot be written", ["out=/proc/x"], ["out=/proc/x", "not writable"]),
                (
                    "samples of other settings in the output folder",
                    ["out={files}/samples"],
                    ["out={files}/samples", "other settings", "out=FOLDER", "overwrite=true"],
                ),
                (
                    "an input that would be deleted",
                    [
                        "out={files}/samples",
                        "overwrite=true",
                        "task=img2img",
                        "task.image={files}/samples/0000_000000.png",
                    ],
                    ["task.image={files}/samples/0000_000000.png", "deletes", "out=FOLDER"],
                ),
                ("overwriting without a folder", ["overwrite=true"], ["overwrite=true", "out=FOLDER"]),
                (
                    "no strength",
                    ["task=img2img", "task.image=a", "task.strength=null"],
                    ["task.strength", "null"],
                ),
                (
                    "a bracket that is not closed",
                    ['negative="(red"', "prompt_weights=true"],
                    ["character 1 ", r"\("],
                ),
                (
                    "a weight that is not a number",
                    ["negative='(red:1,3)'", "prompt_weights=true"],
                    ["'1,3'", "(word:1.3)"],
                ),
            ]
        ),
    ]
]

PACK = [
    *[
        Mistake(title, [*words, "out={files}/x"], phrases, "python -m ldm.cli.pack")
        for title, words, phrases in [
            (
                "a folder of images that does not exist",
                ["source=folder", "source.path={files}/nowhere"],
                ["{files}/nowhere", "source.path"],
            ),
            (
                "a background that does not exist",
                ["source.path={files}/samples", "background=red"],
                ["background", "checker", "red"],
            ),
            (
                "a folder without images",
                ["source.path={files}/captionless"],
                ["{files}/captionless", "holds no images", ".tar"],
            ),
            (
                "an unknown encoding",
                ["source.path={files}/images", "source.encoding=ansi"],
                ["source.encoding=ansi", "cp1252"],
            ),
            *[
                (title, ["source=table", f"source.path={{files}}/{file}"], [f"{{files}}/{file}", *phrases])
                for title, file, phrases in [
                    ("a caption with an unquoted comma", "comma.csv", ["line 2", "3 cells", "quotes"]),
                    ("a row with too few cells", "short.csv", ["line 2", "2 cells", "header 3"]),
                    ("a quote that is not closed", "quote.csv", ["line 3", "unbalanced quotes"]),
                    ("two columns of one name", "twice.csv", ["two columns 'caption'"]),
                    ("a table without rows", "header.csv", ["no rows", "path and caption"]),
                    (
                        "a table with other columns",
                        "other.csv",
                        ["'path'", "file, text", "source.path_column"],
                    ),
                    ("a table of another kind", "latin.txt", [".csv", ".parquet"]),
                    ("a table that does not exist", "nowhere.csv", ["source.path=FILE"]),
                ]
            ],
        ]
    ]
]

OTHER_COMMANDS = [
    Mistake(
        "latents into a folder of images",
        [f"first_stage={FIRST_STAGE}", "shards={files}/images", "out={files}/images", "size=64"],
        ["{files}/images", "out=FOLDER"],
        "python -m ldm.cli.encode_latents",
    ),
    Mistake(
        "a run without metrics",
        ["{files}/empty"],
        ["{files}/empty", "metrics.csv"],
        "python -m ldm.cli.compare",
    ),
    Mistake(
        "a table as the plot",
        ["{files}/ae", "--out", "t.csv"],
        ["--out t.csv", ".png"],
        "python -m ldm.cli.compare",
    ),
]

OVERRIDES = [
    Mistake("a misspelt key", [*AE, "optimzer.lr=1"], ["'optimzer.lr'", "optimizer.lr"]),
    Mistake(
        "a misspelt option", ["experiment=debug/tex"], ["debug/tex", "debug/text"], hidden=[r"(?<=all: ).*"]
    ),
    Mistake("a group that the config lacks", [*AE, "sampler=ddim"], ["'sampler'"]),
    Mistake("a key without a value", [*AE, "seed"], ["'seed'", "seed=..."]),
    Mistake("an override with dashes", ["prompts=[a]", "--steps=3"], ["--steps=3", "key=value"], "sample.py"),
    Mistake("a string for a number", [*AE, "seed=abc"], ["seed must be a number", "'abc'"]),
    Mistake("no for false", [*AE, "data.flip=no"], ["data.flip must be true or false", "'no'"]),
    Mistake("a sweep without -m", [*AE, "seed=1,2"], ["seed=1,2", "seed=[1,2]", "-m"]),
    Mistake("a required key without a value", ["prompts=[a]"], ["ckpt is required", "ckpt=..."], "sample.py"),
    Mistake(
        "an unclosed quote", ["prompts=['a red"], ["['a red", "prompts=['a red circle, left']"], "sample.py"
    ),
]

SECTIONS = {
    "Numbers": NUMBERS,
    "Settings": SETTINGS,
    "Folders and disk space": FOLDERS,
    "Resuming from": RESUMING,
    "Images, latents and the first stage": DATA,
    "GPUs and processes": MACHINE,
    "Submitting to SLURM": SUBMIT,
    "Sampling": SAMPLING,
    "Packing images": PACK,
    "Other commands": OTHER_COMMANDS,
    "Overrides": OVERRIDES,
}
