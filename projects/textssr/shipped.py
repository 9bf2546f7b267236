"""The painter that ships with the library: where it is, what it was trained on, how readable its words are.

`projects/textssr/weights/` holds `unet` (with conditions.json), `vae` and `scheduler` as diffusers folders, the weights
in fp16, and `painter.json`, the metadata: data, terms, images seen, hours, how many painted words readers read, sha256.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.infer.shipped import sha256
from projects.textssr.conditions import SHIPPED

FOLDER = SHIPPED
CARD = "painter.json"
PARTS = ("unet", "vae", "scheduler")


def ships() -> bool:
    """Whether this installation has the painter."""
    return (FOLDER / CARD).is_file()


def find(flag: str) -> Path:
    """The folder with unet, vae and scheduler. Raises UserError where it is not installed or damaged."""
    if not ships():
        raise UserError(
            f"{flag}: no painter ships with this installation: give a folder with unet, vae and scheduler, for example "
            "`final` of a train_diff.py run"
        )
    for name, stated in metadata().get("sha256", {}).items():
        path = FOLDER / name
        if not path.is_file() or sha256(path) != stated:
            raise UserError(f"{path}: damaged: its sha256 is not that of {CARD}; install the package again")
    return FOLDER


def metadata() -> dict[str, Any]:
    """The content of `painter.json`. Raises UserError for a damaged file."""
    return read_json(FOLDER / CARD, dict)


@functools.cache
def announce() -> None:
    """Report on stderr, once a process, that the shipped painter is used and how readable its words are."""
    facts = metadata()
    print(
        f"painter: the one that ships ({facts['parameters'] / 1e6:.1f} M parameters, {facts['resolution']} pixels, "
        f"trained on {facts['data']}). {facts['readable']}",
        file=sys.stderr,
        flush=True,
    )
