"""Start and end of a script: folders, processes, seeds, precision, and the copy of the console in `screen.txt`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TextIO

import psutil
import torch

from common.errors import UserError
from common.files import DiskFull, cannot_write, free_bytes
from common.train.checkpoint import tensor_bytes
from common.train.distributed import Dist, process_group
from common.train.state import seed_everything

MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


LOCK = ".run.lock"


class Tee:
    """Writes to the console and to a file; everything else is the console's. A file that cannot be written any more is
    given up after one line: the copy of a console is no reason to end a training."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self.console, self.file = console, file

    def write(self, text: str) -> int:
        self._copy(lambda file: file.write(text))
        return self.console.write(text)

    def flush(self) -> None:
        self._copy(lambda file: file.flush())
        self.console.flush()

    def _copy(self, do: Callable[[TextIO], object]) -> None:
        if self.file is None:
            return
        try:
            do(self.file)
        except OSError as error:
            name, self.file = self.file.name, None
            self.console.write(f"{cannot_write(error, Path(name))}; the console is not copied there any more\n")

    def __getattr__(self, name: str):
        return getattr(self.console, name)


class SessionOptions(Protocol):
    """What `session` reads of a script's options; the flags of the same names describe the fields."""

    output_dir: str
    log_dir: str
    device: str
    dist_url: str
    local_rank: int
    dist_timeout: float
    world_size: int
    dist_on_itp: bool
    seed: int
    amp: str
    compile: bool
    tf32: bool


@contextlib.contextmanager
def session(o: SessionOptions, flags: Mapping[str, object]) -> Iterator[Dist]:
    """The process group, seeded generators, a locked output folder and `screen.txt` for the time of a run.

    `flags`, the value of every flag, are printed first, as the published scripts print their namespace.

    Raises:
        UserError: a folder that cannot be written or that another run uses; another number of processes.
    """
    check_writable(o.output_dir, "--output_dir")
    if o.log_dir:
        check_writable(o.log_dir, "--log_dir")
    if o.dist_on_itp:
        os.environ.update({ours: os.environ[theirs] for ours, theirs in MPI.items() if theirs in os.environ})
    timeout = getattr(o, "dist_timeout", 10.0)
    with process_group(o.device, o.dist_url, o.local_rank, timeout) as dist, folder_lock(o.output_dir, dist):
        if o.world_size not in (1, dist.world_size):
            raise UserError(
                f"--world_size: {o.world_size} was given and {dist.world_size} processes were started; "
                "start them with torchrun, SLURM or mpirun, which set the number"
            )
        seed_everything(o.seed, dist.rank)
        print(argparse.Namespace(**flags))
        with screen(Path(o.output_dir) / "screen.txt" if dist.is_main else None):
            print(f"Command: {command_line()}")
            print(precision_note(settle_amp(o.amp, dist.device), o.compile, o.tf32, dist.device))
            yield dist


@contextlib.contextmanager
def folder_lock(folder: str | Path, dist: Dist) -> Iterator[None]:
    """Keep other runs out of an output folder while this one writes into it. Collective; rank 0 holds the lock.

    The file `.run.lock` names host and process. One that a killed process of this host has left is replaced with a
    printed line.

    Raises:
        UserError: on all ranks, where another run holds the lock, or may hold it on another host.
    """
    path = Path(folder) / LOCK
    with dist.failing_together():
        if dist.is_main:
            take_lock(path)
    try:
        yield
    finally:
        if dist.is_main:
            with contextlib.suppress(OSError):
                path.unlink()


def take_lock(path: Path) -> None:
    """Create the lock file of this process. Raises `UserError` where another run has it."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    for _ in range(2):
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(mine, file)
            return
        except FileExistsError:
            pass
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from None
        try:
            held = json.loads(path.read_text("utf-8"))
            host, pid, started = held["host"], int(held["pid"]), float(held["started"])
        except (OSError, ValueError, KeyError, TypeError):
            host, pid, started = mine["host"], -1, 0.0  # cut by a kill while it was written
        if host != mine["host"]:
            raise UserError(
                f"{path.parent}: a run on {host} (process {pid}) writes there, or was killed; choose another folder, "
                f"or delete {path} if that run has ended"
            )
        if _lives(pid, started):
            raise UserError(f"{path.parent}: process {pid} of another run writes there; choose another folder, or wait")
        print(f"{path}: left by process {pid}, which has ended; this run takes the folder over")
        path.unlink(missing_ok=True)


def _lives(pid: int, started: float) -> bool:
    """Whether the very process that started at this time is still there."""
    try:
        return pid > 0 and abs(psutil.Process(pid).create_time() - started) < 2.0
    except psutil.Error:
        return False


@contextlib.contextmanager
def screen(path: Path | None) -> Iterator[None]:
    """Copy what is printed into a file; the console stays open afterwards."""
    if path is None:
        yield
        return
    console = sys.stdout
    file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closing may fail on a full disk)
    sys.stdout = Tee(console, file)
    try:
        yield
    finally:
        sys.stdout = console
        with contextlib.suppress(OSError):
            file.close()


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


def settle_amp(amp: str, device: torch.device) -> str:
    """The precision that `--amp auto` means on this device: the paper's fp16 on CUDA, float32 elsewhere."""
    if amp == "auto":
        return "fp16" if device.type == "cuda" else "no"
    return amp


def command_line() -> str:
    """This process's command, as one would type it."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
