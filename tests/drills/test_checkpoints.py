"""Checkpoints under fire: killed writers, full disks, damaged and malicious files."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common import files
from common.errors import UserError
from common.files import DiskFull
from common.train import checkpoint
from common.train.checkpoint import complete, keep_last, latest, load, save_atomic, write_card
from common.train.distributed import Dist
from common.train.state import TrainingState, save_state

WRITER = """
import sys, torch
from common.train.checkpoint import save_atomic, keep_last
folder, step = sys.argv[1], int(sys.argv[2])
while True:
    step += 1
    save_atomic(f"{folder}/training_state-{step:09d}.pth", {"step": step, "weights": torch.zeros(60_000) + step})
    print(step, flush=True)
    keep_last(folder, "training_state-*.pth", 2)
"""


def moments(kills: int, tmp_path: Path) -> None:
    """Kill a writer at random moments: what was finished is there, whole, and the newest; leftovers do not count."""
    draws, done = random.Random(5), 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(done)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        said = int(process.stdout.readline())
        time.sleep(draws.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        said = max([said, *(int(word) for word in rest)])
        path, content = latest(tmp_path, "training_state-*.pth")
        assert content["step"] >= said and torch.all(content["weights"] == content["step"]), path
        assert all(checkpoint.TEMPORARY not in file.name for file in complete(tmp_path, "*"))
        done = content["step"]
    checkpoint.clear_unfinished(tmp_path)
    assert not list(tmp_path.glob(f"*{checkpoint.TEMPORARY}*"))


def test_kill_while_writing(tmp_path: Path) -> None:
    moments(4, tmp_path)


@pytest.mark.slow
def test_kill_while_writing_fifty_times(tmp_path: Path) -> None:
    moments(50, tmp_path)


class Malicious:
    """Unpickling it would run a command."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch-legacy"])
def test_malicious_checkpoint_runs_nothing(writer: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"net": Malicious(victim)}))
    else:
        torch.save({"net": Malicious(victim)}, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=r"evil\.pth: refused"):
        load(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page.*download"),
        (b"\n<html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git-LFS pointer.*git lfs pull"),
        (pickle.dumps({"net": {}}, protocol=4), "a pickle of protocol 4.*torch.save"),
        (pickle.dumps({"net": {}}, protocol=5), "a pickle of protocol 5"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_strangers_are_named(content: bytes, told: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "safetensors" and content[:1] == b"\x80":
        return  # a length of a header can start that way
    path = tmp_path / f"stranger.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"stranger\.{suffix}: refused: it is {told}"):
        load(path)


class Foreign:
    """A class that no checkpoint may hold."""


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_refused_checkpoint_holds_is_named(zipped: bool, tmp_path: Path) -> None:
    torch.save({"net": Foreign()}, tmp_path / "foreign.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"it holds [\w.]*test_checkpoints\.Foreign, which is no plain tensor data"):
        load(tmp_path / "foreign.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_half_file_is_one_line(share: float, suffix: str, tmp_path: Path) -> None:
    path = save_atomic(tmp_path / f"a.{suffix}", {"w": torch.randn(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError) as met:
        load(path)
    assert str(path) in str(met.value) and "\n" not in str(met.value)


def test_harmless_extras_load(tmp_path: Path) -> None:
    import argparse

    content = {"args": argparse.Namespace(lr=1.0, folder=Path("x")), "accuracy": np.float64(3.5), "n": np.int64(2)}
    path = tmp_path / "published.pth"
    torch.save(content, path)
    assert load(path)["args"].lr == 1.0 and float(load(path)["accuracy"]) == 3.5


def test_numbers_of_numpy_one_load(tmp_path: Path) -> None:
    """Published checkpoints name `numpy.core.multiarray`, which NumPy 2 calls `numpy._core.multiarray`."""
    torch.save({"accuracy": np.float64(3.5), "table": np.arange(3)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            renamed = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            assert not name.endswith("data.pkl") or renamed != data
            old.writestr(name, renamed)
    content = load(tmp_path / "old.pth")
    assert float(content["accuracy"]) == 3.5 and content["table"].tolist() == [0, 1, 2]


def test_writing_a_file_whole_needs_no_torch() -> None:
    script = "import sys, common.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_commit_is_that_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    TrainingState(torch.nn.Linear(1, 1))
    monkeypatch.setattr(checkpoint.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert checkpoint.git_commit()


def test_latest_passes_over_damaged_files(tmp_path: Path, capsys) -> None:
    save_atomic(tmp_path / "s-1.pth", {"step": 1})
    (tmp_path / "s-2.pth").write_bytes(b"PK half")
    path, content = latest(tmp_path, "s-*.pth")
    assert path.name == "s-1.pth" and content["step"] == 1
    assert "s-2.pth" in capsys.readouterr().out


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    """The disk fills while the file is written: path and bytes are named, the old checkpoint stays, no rest is left."""
    path = save_atomic(tmp_path / "a.pth", {"w": torch.zeros(1000)})
    old = path.read_bytes()

    class Full:
        def __init__(self, file) -> None:
            self.file, self.error, self.room = file, None, 2000

        def write(self, data) -> int:
            self.room -= len(data)
            if self.room < 0:
                self.error = OSError(errno.ENOSPC, "No space left on device")
                raise self.error
            return self.file.write(data)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(checkpoint, "_FullDiskFile", Full)
    with pytest.raises(DiskFull, match=r"a\.pth: no space left: 4,000 bytes are needed"):
        save_atomic(path, {"w": torch.ones(1000)})
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_too_little_room_is_seen_before_writing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull, match="4,000 bytes are needed, 1,000 are free"):
        save_atomic(tmp_path / "a.pth", {"w": torch.zeros(1000)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wish", ["stop", "continue"])
def test_a_run_stops_or_goes_on_by_flag(wish: str, tmp_path: Path, monkeypatch, capsys) -> None:
    state = TrainingState(torch.nn.Linear(3, 3), step=7)
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1)
    if wish == "stop":
        with pytest.raises(DiskFull):
            save_state(state, tmp_path, Dist(), 2, wish)
    else:
        assert save_state(state, tmp_path, Dist(), 2, wish) is False
        assert "the run continues" in capsys.readouterr().out


def test_unwritable_folder_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_atomic("/proc/nowhere/a.pth", {"w": torch.zeros(1)})


def test_old_states_and_their_cards_go(tmp_path: Path) -> None:
    for step in range(5):
        write_card(save_atomic(tmp_path / f"s-{step}.pth", {"step": step}), "siga/TRBA", {})
    keep_last(tmp_path, "s-*.pth", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-3.pth", "s-3.pth.json", "s-4.pth", "s-4.pth.json"]
