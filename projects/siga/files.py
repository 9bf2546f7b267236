"""Files of a run: checkpoints in the published form, our training states, and where a run goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.train import states as common_states
from common.train.checkpoint import load, save_atomic, write_card
from common.train.distributed import Dist, unwrap
from common.train.state import TrainingState
from common.train.states import is_state, newest_state, same_options
from projects.siga.building import build_options
from projects.siga.model.base import SigaModel
from projects.siga.model.build import load_weights


def run_folder(options: argparse.Namespace) -> Path:
    """`{saved_path}/{exp_name}` with the published names; `--output` stands before a relative path."""
    if options.family == "T":
        name = f"{options.exp_name or options.model_name}-Seed{options.manual_seed}"
    else:
        name = options.exp_name or f"Seed{options.manual_seed}-{options.model_name}"
    return Path(options.output) / options.saved_path / name


def save_published(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, options: argparse.Namespace, **card: Any
) -> None:
    """A checkpoint as the paper's: `net` with `module.` before its names, `optimizer`, `iteration`; and its card."""
    net = {f"module.{name}": value for name, value in unwrap(model).state_dict().items()}
    save_atomic(path, {"net": net, "optimizer": optimizer.state_dict(), "iteration": step})
    write_card(path, f"siga/{options.model_name}", build_options(options), step=step + 1, **card)


def published_name(options: argparse.Namespace, done: int) -> str | None:
    """Name of the numbered checkpoint that is due after `done` steps, None if none is.

    R and S: `{ratio_iteration}.pth` each 20 000, the first step's included, and the last; T: `iter_{n}.pth` each
    100 000 and the last.
    """
    if options.family == "T":
        return f"iter_{done}.pth" if done % 100_000 == 0 or done == options.total_steps else None
    ratio = (done - 1) // options.data_ratio
    due = ratio % 20_000 == 0 and (done - 1) % options.data_ratio == 0
    return f"{ratio}.pth" if due or done == options.total_steps else None


def save_state(state: TrainingState, folder: Path, options: argparse.Namespace, dist: Dist) -> bool:
    """Write the training state of this step as `--keep_states` and `--disk_full` say. Collective."""
    return common_states.save_state(state, folder, dist, options.keep_states, options.disk_full)


def starting_point(folder: Path, options: argparse.Namespace, dist: Dist) -> tuple[str, Any] | None:
    """Path and content of the file that the run goes on from, as `--resume` and `--saved_model` say; None: fresh start.

    `--resume auto`: newest whole state of this run's folder, or `--saved_model`. `--resume FILE`: that state.
    `--resume yes` (or any other word, as published) and `--saved_model FILE`: that checkpoint.

    Raises:
        UserError: a file that is missing or damaged.
    """
    wish = str(options.resume or "")
    if wish == "auto" or (wish and wish.lower() in ("true", "yes", "1") and not options.saved_model):
        found = newest_state(folder, dist)
        if found is not None:
            return str(found[0]), found[1]
        wish = ""
    path = wish if wish and Path(wish).is_file() else options.saved_model
    if wish and not path:
        raise UserError(f"--resume: {wish}: no such file; give auto, a training state, or yes with --saved_model")
    return (path, load(path)) if path else None


def resume(
    state: TrainingState, model: SigaModel, start: tuple[str, Any] | None, options: argparse.Namespace, dist: Dist
) -> str:
    """Put the run where its `starting_point` was: a training state exactly; of a checkpoint the weights and, where it
    has them, optimizer and step. Returns a line for the log.

    Raises:
        UserError: no checkpoint, or one of another variant, charset or optimizer.
    """
    if start is None:
        return "fresh start"
    path, content = start
    if is_state(content):
        same_run(content, options, path)
        state.resume(content, dist)
        return f"resumed from {path} at step {state.step}"
    load_weights(model, content, path)
    return _published_progress(state, content, path)


def same_run(content: dict[str, Any], options: argparse.Namespace, what: str) -> None:
    """Raise `UserError` if a training state is of another variant, charset, batch size or optimizer."""
    names = ("model_name", "character", "batch_max_length", "batch_size", "imgH", "imgW", "optimizer", "adam")
    same_options(content, vars(options), names, what)


def _published_progress(state: TrainingState, content: Any, path: str) -> str:
    """Optimizer and step of a published checkpoint, if it has them and they fit."""
    if not isinstance(content, dict) or "iteration" not in content:
        number = Path(path).stem.rpartition("_")[2]
        if number.isdigit():  # T: iter_{n}.pth is the checkpoint after n steps
            state.step = int(number)
        return f"weights from {path}; the optimizer starts fresh, at step {state.step}"
    try:
        if ("betas" in content["optimizer"]["param_groups"][0]) != ("betas" in state.optimizer.defaults):
            raise ValueError("it is of another kind")
        state.optimizer.load_state_dict(content["optimizer"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        return f"weights from {path}; its optimizer does not fit ({error}) and starts fresh at step 0"
    state.step = int(content["iteration"]) + 1
    return f"weights, optimizer and step {state.step} from {path}; random draws and data order start fresh"
