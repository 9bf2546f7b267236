"""Starting one process or many: torchrun, torch.distributed.launch, SLURM, Open MPI, or a plain `python script.py`."""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as td
from torch import nn

from common.errors import UserError
from common.models.cpu import keep_freed_memory

_print = builtins.print


@dataclass(frozen=True)
class Launch:
    """What the environment says: rank, number of processes, place on the node, and who started them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    by: str = "python"


@dataclass(frozen=True)
class Dist:
    """The process group as the training code sees it; with one process every collective is a no-op.

    Attributes:
        rank, world_size, local_rank: as launched.
        device: where this process computes.
        backend: gloo, nccl, or None without a group.
        hosts: name of the machine of each rank; empty without a group.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str | None = None
    hosts: tuple[str, ...] = ()

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone writes files."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """True when there is a process group."""
        return self.backend is not None

    def barrier(self) -> None:
        if self.distributed:
            td.barrier()

    def any(self, flag: bool) -> bool:
        """True on all ranks if the flag is true on one of them."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """`any` of several flags in one collective."""
        if not self.distributed:
            return flags
        values = torch.tensor([float(flag) for flag in flags], device=self.device)
        td.all_reduce(values, op=td.ReduceOp.MAX)
        return tuple(value > 0 for value in values.tolist())

    def sums(self, *values: float) -> list[float]:
        """Sum over ranks of each value, in one collective."""
        if not self.distributed:
            return [float(value) for value in values]
        totals = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        td.all_reduce(totals)
        return totals.tolist()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over ranks of a tensor (a copy; the argument is not changed)."""
        if not self.distributed:
            return value.detach()
        value = value.detach().clone()
        td.all_reduce(value)
        return value / self.world_size

    def gather(self, thing: Any) -> list[Any]:
        """The things of all ranks, in rank order, on every rank."""
        if not self.distributed:
            return [thing]
        things: list[Any] = [None] * self.world_size
        td.all_gather_object(things, thing)
        return things

    def broadcast(self, thing: Any) -> Any:
        """Rank 0's thing, on every rank."""
        if not self.distributed:
            return thing
        holder = [thing]
        td.broadcast_object_list(holder, src=0, device=self.device if self.backend == "nccl" else None)
        return holder[0]

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Run a block on every rank; if one rank meets a `UserError`, all ranks raise it, so that none waits for ever.

        The block must not contain collectives.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as met:
            error = met
        if not self.distributed and error is not None:
            raise error
        found = [(type(error), str(error)) if error else None for error in self.gather(error)]
        first = next((item for item in found if item), None)
        if first is not None:
            kind, message = first
            shared = kind(message)
            shared.shared = True
            raise shared

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """A `UserError` that all ranks met together is shown by rank 0 alone; all leave with status 2 after that.

        A launcher ends the other processes as soon as one has failed, so none may leave before the line is written.
        """
        try:
            yield
        except UserError as error:
            if not (self.distributed and getattr(error, "shared", False)):
                raise
            if self.is_main:
                print(f"error: {error}", file=sys.stderr, flush=True)
            self.barrier()
            raise SystemExit(2) from None

    def close(self) -> None:
        if self.distributed and td.is_initialized():
            td.destroy_process_group()


@contextlib.contextmanager
def process_group(device: str, dist_url: str, local_rank: int, timeout_minutes: float = 10.0) -> Iterator[Dist]:
    """`setup_distributed` for the time of a script; an error that all ranks meet is reported once, and the group ends.

    A collective that fails because another process has ended, or that waits for one longer than `timeout_minutes`
    (`--dist_timeout`), becomes a `UserError` of one line that names this process and the others.
    """
    keep_freed_memory()
    note = choose_threads()
    dist = setup_distributed(device, dist_url=dist_url, local_rank=local_rank, timeout_minutes=timeout_minutes)
    if dist.device.type == "cpu":
        print(note)
    try:
        with dist.one_voice():
            try:
                yield dist
            except RuntimeError as error:  # torch's DistBackendError and gloo's errors are of this type
                raise UserError(lost_peer(error, dist, timeout_minutes)) from None
    finally:
        dist.close()


def choose_threads(busy: float | None = None) -> str:
    """Set the number of threads to the cores that other processes leave free, and return a line that states the choice.

    `OMP_NUM_THREADS`, which launchers of several processes set, is kept. The choice is made once, at the start: sums
    depend on the number of threads in their last bits, so a number that follows the load would give runs that nobody
    can repeat.

    Args:
        busy: cores that other processes use; None measures for a fifth of a second.
    """
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    waiting = os.environ.get("OMP_WAIT_POLICY") or f"spin {os.environ.get('GOMP_SPINCOUNT', 'as OpenMP does')}"
    if "OMP_NUM_THREADS" in os.environ:
        return f"threads: {torch.get_num_threads()} (OMP_NUM_THREADS); waiting: {waiting}"
    if busy is None:
        shares = psutil.cpu_percent(interval=0.2, percpu=True)
        busy = sum(shares[core] for core in mine if core < len(shares)) / 100
    threads = max(1, len(mine) - round(busy))
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    return (
        f"threads: {torch.get_num_threads()} of {len(mine)} cores, of which others use {busy:.1f} "
        f"(OMP_NUM_THREADS sets another number); waiting: {waiting}"
    )


LOST = re.compile(r"Timed out waiting|Connection (?:closed|reset)|Broken pipe|[Tt]imeout|NCCL|Socket", re.DOTALL)


def lost_peer(error: RuntimeError, dist: Dist, timeout_minutes: float) -> str:
    """One line for a collective that failed; any other error is raised again as it is."""
    text = str(error)
    if not dist.distributed or not LOST.search(text) or "DataLoader" in text:
        raise error
    peer = re.search(r"\[?([\w.:]*\d[\w.:]*)\]?:(\d{2,5})\b", text)
    where = f" (the connection to {peer[1]} port {peer[2]})" if peer else ""
    hosts = f"{os.environ.get('MASTER_ADDR', 'unknown')}:{os.environ.get('MASTER_PORT', '')}"
    others = [f"rank {rank} on {host}" for rank, host in enumerate(dist.hosts) if rank != dist.rank]
    named = (
        " and ".join(others[:2]) if len(others) <= 2 else f"one of {', '.join(others[:8])}{', …' * (len(others) > 8)}"
    )
    what = (
        f"heard nothing from {named or 'another process'} for {timeout_minutes:g} minutes (--dist_timeout)"
        if re.search(r"Timed out|[Tt]imeout", text)
        else f"lost the connection to {named or 'another process'}"
    )
    return (
        f"rank {dist.rank} of {dist.world_size} on {socket.gethostname()} {what}{where}; rendezvous {hosts}. Look at "
        "the output of the other processes and at the network, then run the same command with its resume flag"
    )


def detect_launch(env: Mapping[str, str] = os.environ, local_rank: int = -1) -> Launch:
    """Read rank and world size from the environment.

    Order: RANK and WORLD_SIZE (torchrun, torch.distributed.launch), OMPI_COMM_WORLD_RANK (mpirun in a SLURM job sets
    SLURM's too), SLURM_PROCID, else one process.

    Args:
        env: the environment.
        local_rank: what the command line gave; used only if LOCAL_RANK is absent.

    Raises:
        UserError: numbers that cannot be, or several SLURM tasks that were not started by srun.
    """
    known = (
        ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    )
    for by, rank_name, world_name, local_name in known:
        if rank_name not in env or world_name not in env:
            continue
        try:
            rank, world = int(env[rank_name]), int(env[world_name])
            local = int(env.get(local_name, local_rank if local_rank >= 0 else rank))
        except ValueError:
            raise UserError(f"environment: {rank_name}, {world_name} and {local_name} must be whole numbers") from None
        if not 0 <= rank < world:
            raise UserError(f"environment: {rank_name}={rank} is not below {world_name}={world}")
        if by == "slurm" and world == 1:
            break  # an interactive allocation: nothing was launched
        if by == "slurm" and rank == 0 and "SLURM_STEP_ID" not in env:
            raise UserError(
                f"environment: SLURM reserved {world} tasks, but did not start this process as one of them, and the "
                "others would never come: put `srun` before the command, or ask for one task"
            )
        return Launch(rank, world, local, by)
    return Launch()


def choose_device(name: str, local_rank: int) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device of this process.

    Raises:
        UserError: CUDA asked for and absent, a GPU that is not there, or an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: {name!r} is no device; use auto, cpu, cuda or cuda:0") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError(f"--device: {name} was asked for and no CUDA device can be used here; use --device cpu")
    count = torch.cuda.device_count()
    index = local_rank if device.index is None else device.index
    if index >= count:
        fix = "start that many processes a node" if device.index is None else f"use cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device: GPU {index} was asked for and there are {count}; {fix}")
    return torch.device("cuda", index)


def setup_distributed(
    device: str = "auto",
    backend: str | None = None,
    *,
    dist_url: str = "env://",
    local_rank: int = -1,
    timeout_minutes: float = 10.0,
) -> Dist:
    """Join the group and silence `print` on other ranks than 0 (`print(…, force=True)` still prints).

    Args:
        device: auto, cpu, cuda or cuda:N.
        backend: None picks nccl on CUDA and gloo otherwise.
        dist_url: rendezvous; `env://` reads MASTER_ADDR and MASTER_PORT (127.0.0.1:29500 where they are missing).
        local_rank: what the launcher passed on the command line, -1 for nothing.
        timeout_minutes: a collective that waits longer fails.

    Raises:
        UserError: see `choose_device` and `detect_launch`; a rendezvous that cannot be reached.
    """
    launch = detect_launch(local_rank=local_rank)
    where = choose_device(device, launch.local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    silence_print(launch.rank != 0)
    if launch.world_size == 1:
        return Dist(device=where)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = backend or ("nccl" if where.type == "cuda" else "gloo")
    try:
        td.init_process_group(
            backend,
            init_method=dist_url,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(minutes=timeout_minutes),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--dist_url: {dist_url} cannot be joined ({str(error).splitlines()[0]})") from None
    dist = Dist(launch.rank, launch.world_size, launch.local_rank, where, backend)
    return replace(dist, hosts=tuple(dist.gather(socket.gethostname())))


def silence_print(silent: bool) -> None:
    """Make `print` say nothing unless `force=True` is given (which every rank may give)."""

    def quiet(*args: Any, force: bool = False, **kwargs: Any) -> None:
        if force or not silent:
            _print(*args, **kwargs)

    builtins.print = quiet


def wrap(
    module: nn.Module, dist: Dist, *, find_unused: bool = False, sync_batch_norm: bool = False, **options: Any
) -> nn.Module:
    """The module on its device and, with several processes, under DistributedDataParallel.

    SyncBatchNorm exists on CUDA only; elsewhere batch statistics stay those of each process.
    """
    module = module.to(dist.device)
    if not dist.distributed:
        return module
    if sync_batch_norm and dist.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    ids = [dist.device.index] if dist.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, find_unused_parameters=find_unused, **options)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module
