"""The readers that ship with the package: finding them, choosing one, and writing their files.

`common/weights/` and `projects/<name>/weights/` hold, for each reader, `NAME.safetensors` (matrices in fp16) and
`NAME.json`, its metadata:

    model, options    registry entry and build options
    charset           the characters that it reads
    default           true for the one reader that is used when none is named
    data, terms       what it was trained on, and under which terms the weights may be used
    images_seen, seeds, hours
    accuracy          a list of {set, protocol, words, accuracy, low, high}: word accuracy in % with its 95 % interval
    parameters, sha256

`NAME.onnx` next to them is the same reader for ONNX Runtime; see `common.infer.onnx_reader`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common import registry
from common.errors import UserError
from common.files import write_bytes
from common.metrics.intervals import wilson

ROOTS: tuple[Path, ...] = ()  # further folders, for tests
SMALL = 4096  # tensors with fewer values stay in fp32: norms, biases and running statistics cost little
NOTHING = (
    "no trained reader ships with this installation; give --checkpoint FILE, or train one, "
    "for example with `make reproduce-siga`"
)


@dataclass(frozen=True)
class Shipped:
    """One reader in the package: its name, its weight file and its metadata."""

    name: str
    path: Path
    metadata: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The registry entry of its model."""
        return str(self.metadata.get("model", ""))

    @property
    def onnx(self) -> Path | None:
        """The same reader for ONNX Runtime, where it ships."""
        path = self.path.with_suffix(".onnx")
        return path if path.is_file() else None

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def accuracies(self) -> list[str]:
        """How well it reads each measured set: word accuracy, its 95 % interval, and the number of words."""
        parts = []
        for row in self.metadata.get("accuracy") or []:
            low, high = interval(row)
            parts.append(f"{row['set']} {row['accuracy']:.1f} % ({low:.1f} to {high:.1f}, {row['words']} words)")
        return parts or ["not measured"]

    def summary(self) -> str:
        """One figure for all measured words together, as `reads 63 % of 7,301 test words`."""
        rows = self.metadata.get("accuracy") or []
        if not (words := sum(row["words"] for row in rows)):
            return "accuracy not measured"
        right = sum(row["accuracy"] * row["words"] for row in rows)
        return f"reads {right / words:.0f} % of {words:,} test words"

    def describe(self) -> dict[str, Any]:
        """Name, size, accuracy, licence and hash as plain data, for `strlab models --json` and `strlab.models()`."""
        facts = {"name": self.name, "kind": "shipped reader", "bytes": self.size, "file": self.path.name}
        return {**facts, **self.metadata, "sha256": str(self.metadata.get("sha256") or sha256(self.path))}

    def check(self) -> None:
        """Raise `UserError` where the file is not the one that its metadata describes."""
        stated = str(self.metadata.get("sha256") or "")
        if stated and sha256(self.path) != stated:
            raise UserError(f"{self.path}: damaged: its sha256 is not that of {self.path.stem}.json; install it again")


def interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval in % of one accuracy of the metadata, computed where it is not stored."""
    if "low" in row and "high" in row:
        return float(row["low"]), float(row["high"])
    low, high = wilson(row["accuracy"] / 100 * row["words"], int(row["words"]))
    return 100 * low, 100 * high


def sha256(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folders() -> list[Path]:
    """The folders that may hold shipped readers, in order: the library's own, then each project's."""
    found = [*ROOTS, Path(__file__).resolve().parent.parent / "weights"]
    for _, module in sorted(registry.project_modules().items()):
        parent = module.rpartition(".")[0]
        spec = importlib.util.find_spec(parent) if parent else None
        found += [Path(place) / "weights" for place in (spec.submodule_search_locations or [] if spec else [])]
    return list(dict.fromkeys(found))


def all_shipped() -> list[Shipped]:
    """Every shipped reader, the default first. Raises `UserError` for metadata that cannot be read."""
    found: dict[str, Shipped] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.safetensors")):
            card = path.with_suffix(".json")
            try:
                metadata = json.loads(card.read_text("utf-8"))
                if not isinstance(metadata, dict) or "model" not in metadata:
                    raise ValueError("no field 'model'")
            except (OSError, ValueError) as error:
                raise UserError(f"{card}: no readable metadata of {path.name} ({error}); install it again") from None
            found.setdefault(path.stem, Shipped(path.stem, path, metadata))
    return sorted(found.values(), key=lambda one: (not one.metadata.get("default"), one.name))


def default() -> Shipped:
    """The reader that is used when none is named. Raises `UserError` where nothing ships."""
    readers = all_shipped()
    if not readers:
        raise UserError(NOTHING)
    return readers[0]


def find(name: str) -> Shipped:
    """The shipped reader of that name, or the first one of that registry entry (case does not matter).

    Raises `UserError` with near names where there is none.
    """
    readers = all_shipped()
    for key in (lambda one: one.name, lambda one: one.model):
        for one in readers:
            if key(one).lower() == name.lower():
                return one
    if not readers:
        raise UserError(f"--weights {name}: {NOTHING}")
    names = [one.name for one in readers]
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise UserError(f"--weights: no shipped reader is called {name!r}; there are: {', '.join(near)}")


@functools.cache
def announce(name: str) -> None:
    """Report on stderr, once a process and in one short line, which shipped reader is used and how well it reads."""
    print(f"reader: {name} {find(name).summary()} (more: strlab models)", file=sys.stderr, flush=True)


def write(path: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> Shipped:
    """Write `NAME.safetensors` in fp16 and `NAME.json` next to it.

    Matrices become fp16; small tensors, integers, and what fp16 cannot hold (overflow) stay as they are.

    Args:
        path: `<folder>/NAME.safetensors`.
        state: a state dict of tensors.
        metadata: at least `model` and `options`; `accuracy` rows get their 95 % interval here.
    """
    import torch
    from safetensors.torch import save

    if path.suffix != ".safetensors":
        raise UserError(f"{path}: shipped weights are named NAME.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        half = value.half() if value.is_floating_point() and value.numel() >= SMALL else value
        tensors[name] = half if bool(torch.isfinite(half.float()).all()) else value
    data = save(tensors)
    accuracy: Sequence[Mapping[str, Any]] = metadata.get("accuracy") or ()
    facts = {
        **metadata,
        "parameters": sum(value.numel() for value in state.values() if value.is_floating_point()),
        "accuracy": [{**row, **dict(zip(("low", "high"), (round(v, 2) for v in interval(row))))} for row in accuracy],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_bytes(path, data)
    write_bytes(path.with_suffix(".json"), (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    return Shipped(path.stem, path, facts)
