"""What a figure was made with: commit, versions, machine."""

from __future__ import annotations

import os
import platform
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
    """Processor, number of usable cores and GPUs, without any name that tells whose machine it is."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(usable),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        facts["cuda"] = str(torch.version.cuda)
    return facts


def describe() -> dict[str, str]:
    """Commit, versions and machine in one flat table."""
    from common.train.checkpoint import git_commit

    return {
        "commit": git_commit(),
        **machine(),
        **versions(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
