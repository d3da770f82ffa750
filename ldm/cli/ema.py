"""Average weights over another length, after training: `python -m ldm.cli.ema ckpt=... length=0.13 ...`."""

from collections.abc import Sequence

from omegaconf import DictConfig

from ldm.callbacks.posthoc_ema import (
    LONGEST,
    Profile,
    Snapshot,
    combine,
    fit_weights,
    gamma_from_length,
    list_snapshots,
)
from ldm.cli.config.command import command
from ldm.errors import UserError
from ldm.interop import model_file


@command("ema")
def main(cfg: DictConfig) -> None:
    """Write a model file of weights averaged over any length, from the snapshots of callbacks=post_hoc."""
    if not 0 < cfg.length <= LONGEST:
        raise UserError(
            f"length={cfg.length} must be in (0, {LONGEST:.4f}], where the largest is the mean of all steps"
        )
    tensors, config, header = model_file.load(cfg.ckpt, "latent_diffusion")
    snapshots = select_up_to(list_snapshots(cfg.snapshots), cfg.step)
    last = snapshots[-1]
    target = Profile(last.profiles[0].steps, gamma_from_length(cfg.length))
    weights, error = fit_weights([p for snapshot in snapshots for p in snapshot.profiles], target)
    averages = combine(snapshots, weights)
    if unknown := sorted(averages.keys() - tensors.keys()):
        raise UserError(
            f"ckpt={cfg.ckpt} has no {unknown[0]}, but the snapshots do: give the model file of the same run"
        )
    header |= {"step": str(last.step), "ema_length": str(cfg.length)}
    model_file.save(cfg.out, tensors | averages, config, "latent_diffusion", header)
    print(
        f"wrote {cfg.out}: {len(averages)} tensors at step {last.step:,}, averaged over length {cfg.length}\n"
        f"from {len(snapshots)} snapshots; relative error of the averaging profile: {100 * error:.2g} %"
    )


def select_up_to(snapshots: Sequence[Snapshot], step: int | None) -> list[Snapshot]:
    """Return the snapshots up to that of `step`; None returns all."""
    if step is None:
        return list(snapshots)
    steps = [snapshot.step for snapshot in snapshots]
    if step not in steps:
        raise UserError(
            f"there is no snapshot of step {step}: give step=null or one of {', '.join(map(str, steps))}"
        )
    return list(snapshots[: steps.index(step) + 1])


if __name__ == "__main__":
    main()
