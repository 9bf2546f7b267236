"""Start and end of a script: folders, processes, seeds, precision, and the copy of the console in `screen.txt`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from common.errors import UserError
from common.files import DiskFull, free_bytes
from common.train.checkpoint import tensor_bytes
from common.train.distributed import Dist, process_group
from common.train.seed import seed_everything

MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


class Tee:
    """Writes to the console and to a file; everything else is the console's."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self.console, self.file = console, file

    def write(self, text: str) -> int:
        """Both get the text."""
        self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Both are flushed."""
        self.file.flush()
        self.console.flush()

    def __getattr__(self, name: str):
        return getattr(self.console, name)


@contextlib.contextmanager
def session(options: argparse.Namespace) -> Iterator[Dist]:
    """The process group, seeded generators and `screen.txt` (rank 0, appended to) for the time of a run."""
    check_writable(options.output_dir, "--output_dir")
    if options.log_dir:
        check_writable(options.log_dir, "--log_dir")
    if options.dist_on_itp:
        os.environ.update({ours: os.environ[theirs] for ours, theirs in MPI.items() if theirs in os.environ})
    with process_group(options.device, options.dist_url, options.local_rank) as dist:
        if options.world_size not in (1, dist.world_size):
            raise UserError(
                f"--world_size: {options.world_size} was given and {dist.world_size} processes were started; "
                "start them with torchrun, SLURM or mpirun, which set the number"
            )
        seed_everything(options.seed, dist.rank)
        print(options)
        with screen(Path(options.output_dir) / "screen.txt" if dist.is_main else None):
            print(f"Command: {command_line()}")
            print(precision_note(settle_amp(options, dist.device), options.compile, options.tf32, dist.device))
            yield dist


@contextlib.contextmanager
def screen(path: Path | None) -> Iterator[None]:
    """Copy what is printed into a file; the console stays open afterwards."""
    if path is None:
        yield
        return
    console = sys.stdout
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        sys.stdout = Tee(console, file)
        try:
            yield
        finally:
            sys.stdout = console


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
