"""Going on: from the exact training state, or from a checkpoint of the published form."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.models.weights import load_strict
from common.train.checkpoint import clear_unfinished, first_readable, load, numbered_checkpoints
from common.train.epoch_trainer import EpochTrainer
from common.train.log import truncate_log


def resume(trainer: EpochTrainer) -> None:
    """Continue from `--resume`, or what `--auto_resume` finds in the output folder, or start at `--start_epoch`.

    Raises `UserError` where a file that was asked for does not fit; of the files found by itself, one that cannot be
    read is passed over with a printed line.
    """
    options = trainer.options
    trainer.step = options.start_epoch * trainer.per_epoch
    if options.resume:
        continue_from(trainer, Path(options.resume), load(options.resume))
    elif options.auto_resume:
        if trainer.dist.is_main:
            clear_unfinished(trainer.out)
        found = first_readable([trainer.out / trainer.state_name, *numbered_checkpoints(trainer.out)])
        if found is not None:
            continue_from(trainer, *found)
    if trainer.dist.is_main:
        truncate_log(trainer.out / "log.txt", trainer.epoch)


def continue_from(trainer: EpochTrainer, path: Path, content: dict) -> None:
    """Put back one loaded file and say where the run goes on."""
    if isinstance(content, dict) and "format" in content:
        from_state(trainer, path, content)
    else:
        from_checkpoint(trainer, path, content)
    if trainer.step:
        trainer.loader.bad.recall()
    inside = trainer.step % trainer.per_epoch
    print(f"Resume from {path}: epoch {trainer.epoch}, step {inside} of {trainer.per_epoch}", flush=True)


def from_state(trainer: EpochTrainer, path: Path, content: dict) -> None:
    """Exactly: weights, optimizer, scaler, averages, random draws and place in the epoch."""
    per_epoch = content["extra"].get("per_epoch")
    if per_epoch != trainer.per_epoch:
        raise UserError(
            f"{path}: steps of an epoch were {per_epoch}, now they are {trainer.per_epoch}; give the data, batch size "
            "and processes of that run, or --resume one of its checkpoints"
        )
    state = trainer.state().resume(content, trainer.dist)
    trainer.step, trainer.extra = state.step, state.extra


def from_checkpoint(trainer: EpochTrainer, path: Path, content: dict) -> None:
    """From the end of an epoch: weights and, unlike in the published code without hiding a failure, the optimizer."""
    load_strict(trainer.bare, trainer.weights_of(content, str(path)), what=str(path))
    if "optimizer" in content and isinstance(content.get("epoch"), int):
        try:
            trainer.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: optimizer: it does not fit this model's groups ({error}); to start a new run from these "
                "weights use --finetune, or give the options of the run"
            ) from None
        trainer.step = (content["epoch"] + 1) * trainer.per_epoch
        trainer.amp.load_state_dict(content.get("scaler") or {})
    if trainer.ema is not None and "model_ema" in content:
        trainer.ema.load_state_dict({"decay": trainer.ema.decay, "values": content["model_ema"]})
