"""Folders of models and of checkpoints, in the published layout: opened, written whole, found again. Those of the
published code are read too."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin
from safetensors import SafetensorError
from torch import nn

from common.errors import UserError
from common.train.checkpoint import load
from projects.textssr.model.diffusion import PREDICTIONS
from projects.textssr.model.unet import check_class, read_weights, short

STATE = "strlab_state.pth"
UNFINISHED = ".unfinished-"
NAME = re.compile(r"checkpoint-(\d+)")


def load_vae(folder: str | Path, key: str) -> AutoencoderKL:
    """A VAE of a diffusers folder. Raises UserError that names the configuration key."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: {key}: no config.json; give a diffusers VAE folder")
    check_class(Path(folder), "AutoencoderKL", key)
    plain = [*Path(folder).glob("diffusion_pytorch_model.[sb]*")]
    variants = sorted({path.name.split(".")[1] for path in Path(folder).glob("diffusion_pytorch_model.*")})
    try:
        return AutoencoderKL.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, variant=None if plain else (variants or [None])[0]
        )
    except Exception as error:  # diffusers checks little of what a file says: it fails in any type
        raise UserError(f"{folder}: {key}: not readable as a VAE ({short(error)}): copy it again") from None


def place(model: ModelMixin, device: torch.device, kind: torch.dtype) -> ModelMixin:
    """`model` on a device, in half precision where asked for, frozen and in evaluation mode."""
    model = model.to(device) if kind == torch.float32 else model.to(device, kind)
    return model.eval().requires_grad_(False)


def load_scheduler(folder: str | Path) -> DDPMScheduler:
    """A DDPM scheduler from any scheduler folder. Raises UserError."""
    if not (Path(folder) / "scheduler_config.json").is_file():
        raise UserError(f"{folder}: scheduler_path: no scheduler_config.json; give a diffusers scheduler folder")
    try:
        scheduler = DDPMScheduler.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise UserError(f"{folder}: scheduler_path: not readable as a scheduler ({short(error)})") from None
    if scheduler.config.prediction_type not in PREDICTIONS:
        raise UserError(
            f"{folder}: scheduler_path: prediction_type: {scheduler.config.prediction_type!r} is not one of "
            f"{', '.join(PREDICTIONS)}"
        )
    return scheduler


def number(path: Path) -> int:
    """The update that a checkpoint folder was written after. Raises UserError for another name."""
    found = NAME.fullmatch(path.name)
    if not found:
        raise UserError(f"resume_from_checkpoint: {path}: the folder's name must be checkpoint-<update>")
    return int(found[1])


def complete(out: Path) -> list[Path]:
    """Complete checkpoints of an output folder, oldest first."""
    return sorted((path for path in out.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=number)


@dataclass
class Saved:
    """What a checkpoint folder holds. `state` is our own; published folders lack it, published weights also lack the
    optimizer and the schedule."""

    path: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    state: dict[str, Any] | None = None


def find(out: Path, wanted: str | None, folder: str) -> Saved | None:
    """The checkpoint that `resume_from_checkpoint` means: "latest", or a folder's name. None starts a new run.

    "latest" skips one that is incomplete or damaged with a line. `folder` holds the weights: "vae" or "unet".

    Raises:
        UserError: a name that does not exist or cannot be read; checkpoints none of which can be read, because a new
            run would overwrite what is left of them.
    """
    if not wanted:
        return None
    if wanted != "latest":
        path = out / Path(wanted).name
        if not path.is_dir():
            there = ", ".join(path.name for path in complete(out)) or "none"
            raise UserError(f"resume_from_checkpoint: {path} does not exist; there are: {there}; or give None")
        number(path)
        return read(path, folder)
    refused = []
    for path in reversed(complete(out)):
        try:
            return read(path, folder)
        except UserError as error:
            print(f"skipped: {error}")
            refused.append(error)
    if refused:
        raise UserError(
            f"{refused[0]}; no checkpoint in {out} can be read, and nothing was overwritten: copy one again, or give "
            "another output_dir"
        )
    print(f"Checkpoint '{wanted}' does not exist. Starting a new training run.")
    return None


def read(path: Path, folder: str) -> Saved:
    """Read a checkpoint folder whole. Raises UserError where a part of it is missing or damaged."""
    if not (path / folder).is_dir():
        raise UserError(f"{path}: incomplete: it has no folder {folder}")
    saved = Saved(path, read_weights(path / folder))
    for name, file in (("optimizer", "optimizer.bin"), ("schedule", "scheduler.bin"), ("state", STATE)):
        if (path / file).exists():
            content = load(path / file)
            if not isinstance(content, dict):
                raise UserError(f"{path / file}: not the {name} of a training run; copy the folder again")
            setattr(saved, name, content)
    if saved.state is not None and (saved.optimizer is None or saved.schedule is None):
        raise UserError(f"{path}: incomplete: optimizer.bin and scheduler.bin belong to {STATE}; copy the folder again")
    return saved


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


def add_parts(final: Path, parts: Mapping[str, str]) -> None:
    """Copy model folders next to the trained one, under these names: `final` then holds all that painting needs."""
    for name, source in parts.items():
        write_whole(final / name, functools.partial(shutil.copytree, source, dirs_exist_ok=True))


def _flush(path: Path) -> None:
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():  # not all folders can be flushed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_model(model: nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Put the weights of a model folder into `model`. Raises UserError for those of another model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{folder}: weights of another model: give another output_dir") from None


def load_optimizer(
    path: Path, state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module, published: bool
) -> None:
    """Put an `optimizer.bin` into `optimizer`; `published`: its parameters are numbered in the published order."""
    names = [name for name, _ in model.named_parameters()]
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
