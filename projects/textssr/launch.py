"""The trainers' command line, and `accelerate launch --num_processes N` without a GPU, which starts one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from common.flags import Parser
from projects.textssr.config import OUR_HELP


def parse(argv: Sequence[str] | None = None, description: str = "") -> tuple[str | None, list[str]]:
    """Values of the published flag `--config`, and of `--set` (additional, not in the original)."""
    keys = "\n".join(f"    {name:<18}  {text}" for name, text in OUR_HELP.items())
    more = f"The configuration files list the published keys. Additional keys, off unless they are set:\n\n{keys}"
    parser = Parser(description=description, epilog=more)
    parser.add_argument("--config", default=None, help="a configuration file; see projects/textssr/configs")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="values in place of the file's, as `--set train_batch_size=2 max_train_steps=100` (additional)",
    )
    options = parser.parse_args(argv)
    return options.config, options.set


def start_all_processes() -> None:
    """Replace this process by N, under torchrun with gloo, where accelerate was asked for N > 1 on a CPU.

    Does nothing in a process group, with a GPU, or without accelerate. The number stands in the launcher's command line
    only: it passes it on to nobody.
    """
    launcher = Path(f"/proc/{os.getppid()}/cmdline")
    if torch.cuda.is_available() or "WORLD_SIZE" in os.environ or not launcher.is_file():
        return
    processes = asked_for(launcher.read_bytes().decode(errors="replace").split("\0"))
    if processes > 1:
        print(f"accelerate starts one process on a CPU: {processes} are started by torchrun", flush=True)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        os.execve(sys.executable, [sys.executable, *launch, *sys.argv], os.environ | {"ACCELERATE_USE_CPU": "true"})


def asked_for(command: Sequence[str]) -> int:
    """The number of processes that an `accelerate launch` command line asks for; 1 for any other command."""
    launches = [place for place, word in enumerate(command) if word in ("launch", "accelerate.commands.launch")]
    if not launches or not any("accelerate" in word for word in command[: launches[0] + 1]):
        return 1
    words = [part for word in command[launches[0] :] for part in word.split("=", 1)]
    for flag, value in pairwise(words):
        if flag.replace("-", "_") == "__num_processes" and value.isdigit():
            return int(value)
    return 1
