"""Run a command of a recipe: its output is shown with the elapsed time and kept in a log file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

BAR_INTERVAL = 10.0  # seconds between shown states of a progress bar


class StepFailed(Exception):
    """The command could not start or ended with another status than 0."""


def run_command(command: Sequence[str], cwd: Path, log: Path, threads: int = 0) -> float:
    """Run a command, copying its output to the terminal and to `log` (appended); returns the seconds it took.

    With `threads` the child computes with so many. It is ended when this process is interrupted or terminated. Raises
    `StepFailed` with the status and the log's path.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    started = time.monotonic()
    with log.open("ab") as file:
        try:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise StepFailed(f"{command[0]}: {error.strerror or error}") from None
        try:
            _copy(process, file, started)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                _copy(process, file, started)  # what it still says; a full pipe would keep it from ending
                process.wait()
    seconds = time.monotonic() - started
    if status:
        raise StepFailed(f"ended with status {status} after {seconds:.0f} s, its output is in {log}")
    return seconds


def _copy(process: subprocess.Popen, file, started: float) -> None:
    """Show the child's lines; of a progress bar (carriage returns) only a state now and then."""
    rest, last_bar = b"", 0.0
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        file.write(chunk)
        file.flush()
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
        for line in lines:
            now = time.monotonic()
            if line.endswith(b"\r"):
                if now - last_bar < BAR_INTERVAL:
                    continue
                last_bar = now
            _show(line, now - started)
    if rest:
        _show(rest, time.monotonic() - started)


def _show(line: bytes, elapsed: float) -> None:
    """One line with the time since the step began."""
    text = line.decode("utf-8", "replace").strip("\r\n")
    if text.strip():
        sys.stdout.write(f"    {int(elapsed) // 60:3d}:{int(elapsed) % 60:02d} | {text}\n")
        sys.stdout.flush()
