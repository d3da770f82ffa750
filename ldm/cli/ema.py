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
    snapshots,
)
from ldm.cli.config.command import command
from ldm.errors import UserError
from ldm.interop import model_file


@command("ema")
def main(cfg: DictConfig) -> None:
    """Write a model file of weights averaged over any length, from the snapshots of callbacks=post_hoc."""
    if not 0 < cfg.length <= LONGEST:
        raise UserError(f"length={cfg.length} must lie in (0, {LONGEST:.4f}], the mean of the whole training")
    tensors, config, header = model_file.load(cfg.ckpt, "latent_diffusion")
    chosen = up_to(snapshots(cfg.snapshots), cfg.step)
    last = chosen[-1]
    wanted = Profile(last.profiles[0].steps, gamma_from_length(cfg.length))
    weights, missed = fit_weights([p for snapshot in chosen for p in snapshot.profiles], wanted)
    averages = combine(chosen, weights)
    if unknown := sorted(averages.keys() - tensors.keys()):
        raise UserError(f"{cfg.ckpt} has no {unknown[0]}: give the file of the run that made the snapshots")
    header |= {"step": str(last.step), "ema_length": str(cfg.length)}
    model_file.save(cfg.out, tensors | averages, config, "latent_diffusion", header)
    print(
        f"wrote {cfg.out}: {len(averages)} tensors at step {last.step:,}, averaged over length {cfg.length}\n"
        f"from {len(chosen)} snapshots, which miss {100 * missed:.2g} % of that profile"
    )


def up_to(found: Sequence[Snapshot], step: int | None) -> list[Snapshot]:
    """The snapshots that end at `step`, or all."""
    if step is None:
        return list(found)
    steps = [snapshot.step for snapshot in found]
    if step not in steps:
        raise UserError(f"there is no snapshot of step {step}: give one of {', '.join(map(str, steps))}")
    return list(found[: steps.index(step) + 1])


if __name__ == "__main__":
    main()
