"""What a figure was made with: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "lmdb",
    "lightning",
    "diffusers",
)


def versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a figure."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Processor, number of usable cores and GPUs, without any name that identifies the machine."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(usable),
        "threads": str(torch.get_num_threads()),
        "processor": processor(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        facts["cuda"] = str(torch.version.cuda)
    return facts


def processor() -> str:
    """The processor's model as the system names it, "" where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def describe() -> dict[str, str]:
    """Commit, versions and machine in one flat table."""
    from common.train.checkpoint import git_commit  # loads torch

    return {
        "commit": git_commit(),
        **machine(),
        **versions(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
