"""One thread per test process, so that `pytest -n 2` does not oversubscribe two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed every test, so that one that does not seed itself is still deterministic."""
    torch.manual_seed(0)
