# make demo   both stages on synthetic scenes, from an empty folder to scored samples
# make test   lint, types, import contracts, tests;  make test-slow   full sizes and long trials
# make test-slurm   a training on a real SLURM, interrupted in every way; WAYS="killed sweep" for some of them
# PYTHON=python3.12 selects another interpreter, JOBS=8 the number of test processes.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

RUN := $(VENV)/bin/python
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help demo test test-slow test-slurm lint format
help:
	@sed -n 's/^# //p' Makefile

$(USER_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.10 or newer: choose another one, e.g. make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e .
	@touch $@

$(DEV_STAMP): $(USER_STAMP)
	$(RUN) -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(USER_STAMP)
	$(RUN) -m ldm.cli.pack source=demo out=data/demo/train
	$(RUN) -m ldm.cli.pack source=demo source.split=val source.count=1000 out=data/demo/val
	$(RUN) train.py experiment=demo/ae resume=auto
	$(RUN) -m ldm.cli.encode_latents first_stage=runs/demo_ae/autoencoder.safetensors shards=data/demo/train out=data/demo/latents size=64
	$(RUN) -m ldm.cli.encode_latents first_stage=runs/demo_ae/autoencoder.safetensors shards=data/demo/val out=data/demo/val_latents size=64
	$(RUN) train.py experiment=demo/text resume=auto
	$(RUN) sample.py ckpt=runs/demo_text/latent_diffusion.safetensors prompts=docs/prompts/demo.txt out=runs/demo_text/samples overwrite=true n=8 steps=30 scale=2.0 seed=100 grid_scale=2
	$(RUN) -m ldm.cli.evaluate ckpt=runs/demo_text/latent_diffusion.safetensors out=runs/demo_text/scores

lint: $(DEV_STAMP)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache

test: lint
	$(RUN) -m pytest -n $(JOBS)

test-slow: $(DEV_STAMP)
	$(RUN) -m pytest -m slow

test-slurm: $(DEV_STAMP)
	bash tests/slurm/cluster.sh $(RUN) -m tests.slurm.check $(WAYS)

format: $(DEV_STAMP)
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
