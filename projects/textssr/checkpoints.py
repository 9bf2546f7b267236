"""Checkpoint folders of the published layout: written whole, found again, and those of the published code read too."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from common.errors import UserError
from common.train.checkpoint import load
from projects.textssr.model.unet import read_weights

STATE = "strlab_state.pth"
UNFINISHED = ".unfinished-"
NAME = re.compile(r"checkpoint-(\d+)")


def number(path: Path) -> int:
    """The update that a checkpoint folder was written after. Raises UserError for another name."""
    found = NAME.fullmatch(path.name)
    if not found:
        raise UserError(f"resume_from_checkpoint: {path}: the folder's name must be checkpoint-<update>")
    return int(found[1])


def complete(out: Path) -> list[Path]:
    """Complete checkpoints of an output folder, oldest first."""
    return sorted((path for path in out.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=number)


def find(out: Path, wanted: str | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means: "latest" or a folder's name; None where there is none."""
    if not wanted:
        return None
    found = complete(out)
    path = (found[-1] if found else None) if wanted == "latest" else out / Path(wanted).name
    if path is None or not path.is_dir():
        print(f"Checkpoint '{wanted}' does not exist. Starting a new training run.")
        return None
    return path


def prune(out: Path, limit: int | None) -> None:
    """Keep the newest `limit` checkpoints; None keeps all."""
    for path in complete(out)[:-limit] if limit else []:
        shutil.rmtree(path, ignore_errors=True)


def write_whole(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, flush all of it to the disk, and only then give it its name."""
    building = final.with_name(f"{UNFINISHED}{final.name}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        write(building)
        for path in (*building.rglob("*"), building):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        building.rename(final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{final}: cannot be written ({error}): free some space; earlier ones are whole") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _flush(final.parent)


def _flush(path: Path) -> None:
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():  # not all folders can be flushed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_model(model: nn.Module, folder: Path) -> None:
    """Put the weights of a model folder into `model`. Raises UserError for those of another model."""
    try:
        model.load_state_dict(read_weights(folder))
    except RuntimeError:
        raise UserError(f"{folder}: weights of another model: give another output_dir") from None


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, model: nn.Module, *, published: bool) -> None:
    """Put an `optimizer.bin` into `optimizer`; `published`: its parameters are numbered in the published order."""
    state, names = load(path), [name for name, _ in model.named_parameters()]
    try:
        if published:
            place = {name: index for index, name in enumerate(names)}
            order = [place[name] for name in published_order(names)]
            state["state"] = {order[index]: moments for index, moments in state["state"].items()}
        for index, parameter in enumerate(model.parameters()):
            moments = state["state"].get(index, {})
            if "exp_avg" in moments and moments["exp_avg"].shape != parameter.shape:
                raise ValueError(f"{names[index]} has another shape")
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not of this model ({error}): start a new output_dir from the checkpoint's weights"
        ) from None


def published_order(names: Sequence[str]) -> list[str]:
    """Parameters in the order of the published fork, whose glyph encoder follows right after `conv_in`."""
    groups = {"conv_in": 0, "ttf_net": 1}
    return sorted(names, key=lambda name: groups.get(name.split(".")[0], 2))


def differences(old: Mapping, new: Mapping) -> str:
    """Options that are not what they were, in words; empty where all are."""
    return ", ".join(f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name])
