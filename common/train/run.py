"""Small things that every training script does before its first step."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import torch

from common.errors import UserError
from common.files import DiskFull, free_bytes
from common.train.checkpoint import tensor_bytes


def check_writable(folder: str | Path, flag: str = "--output") -> Path:
    """Make the folder and write a byte in it. Raises `UserError` naming the flag and the folder."""
    folder = Path(folder)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{flag}: {folder} cannot be written ({reason}); choose another folder") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            probe.unlink()
    return folder


def check_room(folder: str | Path, needed: int, what: str = "checkpoints") -> None:
    """Raise `DiskFull` if the file system of `folder` has fewer than `needed` bytes free."""
    free = free_bytes(Path(folder))
    if free < needed:
        raise DiskFull(
            f"{folder}: no room for {what}: {needed:,} bytes are needed, {free:,} are free; free some, or "
            "choose another folder"
        )


def state_bytes(model: torch.nn.Module, optimizer_copies: int = 2) -> int:
    """Roughly the bytes of a training state: weights, and so many further tensors for each trainable one."""
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return tensor_bytes(model.state_dict()) + optimizer_copies * trainable


def precision_note(amp: str, compiled: bool, tf32: bool, device: torch.device) -> str:
    """What a run's log says about its arithmetic, and sets TF32 accordingly."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    kind = {"no": "fp32", "fp16": "fp16 autocast with loss scaling", "bf16": "bf16 autocast"}[amp]
    extras = [name for name, on in (("TF32", tf32 and device.type == "cuda"), ("torch.compile", compiled)) if on]
    return f"device {device}, precision {' + '.join([kind, *extras])}"


def settle_amp(options: argparse.Namespace, device: torch.device) -> str:
    """The precision that `--amp auto` means on this device: the paper's fp16 on CUDA, float32 elsewhere."""
    if options.amp == "auto":
        return "fp16" if device.type == "cuda" else "no"
    return options.amp


def command_line() -> str:
    """This process's command, as one would type it."""
    import shlex

    return shlex.join([Path(sys.executable).name, *sys.argv])
