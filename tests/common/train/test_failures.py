"""What goes wrong around a training: full disks, interrupted saves, two runs in a folder, lost processes, cut files."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from common.data.loader import SeededSampler, word_loader
from common.data.words import WordDataset
from common.errors import UserError
from common.files import DiskFull
from common.train import checkpoint, log
from common.train.distributed import Dist, choose_threads
from common.train.log import EventGuard, MetricsLog, append, continue_on_full_disk
from common.train.session import LOCK, Tee, folder_lock
from tests.common.lmdbs import write_words
from tests.common.processes import run, torchrun
from tests.common.train.toy_run import build

ROOT = Path(__file__).resolve().parents[3]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


@needs_full
def test_a_full_disk_under_a_log_is_one_line(tmp_path: Path, capsys) -> None:
    rows = MetricsLog(tmp_path / "metrics.jsonl")
    rows.path = FULL
    with pytest.raises(DiskFull, match="/dev/full: no space left"):
        rows.write(step=1)
    with pytest.raises(DiskFull, match="/dev/full: no space left"):
        append(FULL, "a line")
    continue_on_full_disk(True)
    try:
        rows.write(step=1)
        append(FULL, "a line")
        assert capsys.readouterr().out.count("logs are not written while the disk is full") == 1
    finally:
        continue_on_full_disk(False)


@needs_full
def test_the_copy_of_the_console_is_given_up_on_a_full_disk(capsys) -> None:
    file = open(FULL, "w", buffering=1)  # noqa: SIM115
    tee = Tee(sys.stdout, file)
    tee.write("first\n")
    tee.write("second\n")
    tee.flush()
    out = capsys.readouterr().out
    assert "first\n" in out and "second\n" in out and out.count("not copied there any more") == 1


def test_a_removed_folder_under_a_log_is_one_line(tmp_path: Path) -> None:
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run").rmdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No such file"):
        rows.write(step=1)


def test_tensorboard_on_a_full_disk_does_not_hang(tmp_path: Path, capsys) -> None:
    writer = log.ScalarWriter(tmp_path)
    guard = writer.writer.file_writer.event_writer._worker._record_writer
    assert isinstance(guard, EventGuard)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    guard.writer = SimpleNamespace(write_event=fail, flush=fail)
    for step in range(50):
        writer.scalar("loss", 1.0, step)
    deadline = time.monotonic() + 300
    while not guard.failed and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.flush()
    writer.close()
    assert capsys.readouterr().out.count("the training continues without TensorBoard") == 1


def test_ctrl_c_inside_a_save_leaves_the_last_state_whole(tmp_path: Path, monkeypatch) -> None:
    path = checkpoint.save_atomic(tmp_path / "state.pth", {"w": torch.zeros(3)})
    whole = path.read_bytes()

    def interrupted(thing: object, file) -> None:
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_atomic(path, {"w": torch.ones(3)})
    assert path.read_bytes() == whole and [entry.name for entry in tmp_path.iterdir()] == ["state.pth"]


def test_two_runs_may_not_write_into_one_folder(tmp_path: Path, capsys) -> None:
    with folder_lock(tmp_path, Dist()):
        held = json.loads((tmp_path / LOCK).read_text())
        assert held["pid"] == os.getpid() and held["host"] == socket.gethostname()
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} of another run writes there"),
            folder_lock(tmp_path, Dist()),
        ):
            pass
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("left", ["gone", "reused", "cut"])
def test_the_lock_of_a_killed_run_is_replaced(left: str, tmp_path: Path, capsys) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    held = {"host": socket.gethostname(), "pid": ended.pid, "started": 1.0}
    if left == "reused":  # the number belongs to another process now
        held |= {"pid": os.getpid(), "started": psutil.Process().create_time() - 1000}
    (tmp_path / LOCK).write_text("{" if left == "cut" else json.dumps(held))
    with folder_lock(tmp_path, Dist()):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert "this run takes the folder over" in capsys.readouterr().out


def test_a_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1.0}))
    with pytest.raises(UserError, match=r"a run on elsewhere .*delete"), folder_lock(tmp_path, Dist()):
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_an_lmdb_that_is_cut_during_the_run(workers: int, tmp_path: Path) -> None:
    path = write_words(tmp_path / "data", [f"w{i}" for i in range(400)])
    dataset = WordDataset([path])
    loader = word_loader(dataset, SeededSampler(len(dataset), 4, seed=1), workers, pin_memory=False)
    with pytest.raises(UserError, match=r"data\.mdb: it was cut to 4096 of \d+ bytes") as met:
        for number, _ in enumerate(loader):
            if number == 1:
                os.truncate(path / "data.mdb", 4096)
    assert "\n" not in str(met.value)


def test_a_killed_loader_process_is_one_line_wherever_the_run_is(tmp_path: Path) -> None:
    path = write_words(tmp_path / "data", [f"w{i}" for i in range(400)])
    dataset = WordDataset([path])
    words = word_loader(dataset, SeededSampler(len(dataset), 4, seed=1), 1, pin_memory=False)
    batches = iter(words)
    next(batches)
    loop = build(3)
    loop.loader.lost_worker = words.lost_worker

    def kill(clock: object) -> None:
        """The signal of the child's end arrives in the middle of the loop's own work."""
        for worker in words._loader._iterator._workers:  # not all children: another test's loader may still have some
            os.kill(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(0.05)

    loop.jobs = [SimpleNamespace(due=lambda clock: True, do=kill)]
    try:
        with pytest.raises(UserError, match=r"loader process .*\d+.*data.*fewer workers or smaller") as met:
            loop.run()
    finally:
        words._loader._iterator._shutdown_workers()  # or torch reports it again, in another test
    assert "\n" not in str(met.value)


SILENT = """
import time, sys
from common.errors import command
from common.train.distributed import process_group
@command
def main():
    with process_group("cpu", "env://", -1, 0.3) as dist:
        if dist.rank == 1:
            time.sleep(120)
        dist.any(True)
sys.exit(main())
"""


@pytest.mark.slow
def test_a_silent_peer_is_told_after_the_timeout(tmp_path: Path) -> None:
    script = tmp_path / "silent.py"
    script.write_text(SILENT)
    done = run(*torchrun(), script)
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "rank 0 of 2" in told[0] and "heard nothing from rank 1 on " in told[0], done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed/elastic")[0]


def test_threads_leave_busy_cores_alone(monkeypatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    try:
        torch.set_num_threads(cores)
        assert f"{cores} of {cores} cores" in choose_threads(busy=0.2) and torch.get_num_threads() == cores
        assert "1 of" in choose_threads(busy=cores - 1.0) and torch.get_num_threads() == 1
        assert "threads: 1 of" in choose_threads(busy=2.0 * cores)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert "OMP_NUM_THREADS" in choose_threads(busy=0.0)
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_spin_for_a_moment_only() -> None:
    script = "import os, common, torch; print(os.environ['GOMP_SPINCOUNT'])"
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}

    def told(environment: dict[str, str]) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert told(plain) == "2000\n" and told({**plain, "GOMP_SPINCOUNT": "7"}) == "7\n"


LAUNCHED = (
    "siga/train.py",
    "mgpstr/train_final_dist.py",
    "dig/run_class_finetuning.py",
    "dig/run_mae_pretraining_moco.py",
    "ssm/pretrain/sim_pretrain.py",
    "ssm/pretrain/main_pixel.py",
)


@pytest.mark.parametrize("script", LAUNCHED)
def test_scripts_load_the_library_before_torch(script: str) -> None:
    """The setting must be in the environment when torch's OpenMP is loaded."""
    text = (ROOT / "projects" / script).read_text("utf-8")
    modules = [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))]
    heavy = [i for i, name in enumerate(modules) if name in ("torch", "torchvision", "timm", "accelerate", "lightning")]
    assert not heavy or modules.index("common") < min(heavy), f"{script} imports {modules[min(heavy)]} before common"
