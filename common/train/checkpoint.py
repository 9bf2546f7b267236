"""Checkpoints: written whole or not at all, read as data only, and with all that an exact resume needs.

Everything here writes to a temporary file next to the target, fsyncs it and renames it, so a name that exists holds a
complete file. Reading goes through `torch.load(weights_only=True)` or safetensors; nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import re
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file, save

from common.errors import UserError
from common.files import TEMPORARY, atomic_file, read_regular

_ARRAYS = (np._core.multiarray.scalar, np._core.multiarray._reconstruct)
# Types that published checkpoints carry next to tensors and that are plain data when rebuilt.
SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    np.ndarray,
    *_ARRAYS,
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in _ARRAYS),  # their place before NumPy 2
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]
LARGEST_CARD = 1 << 26  # bytes of a metadata file
WHOLE = ("batch_max_length", "hidden_size", "input_channel", "max_label_length", "max_len", "num_fiducial",
         "output_channel")  # fmt: skip
LARGEST_SIZE = 1 << 20  # of such an option
CONVERT = "a trusted copy is converted with `state = …; torch.save(state_dict of tensors, NEW)` where it was made"


class _FullDiskFile(io.RawIOBase):
    """Hands writes to a file and remembers the OSError, which torch's zip writer hides in a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def tensor_bytes(thing: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, Mapping):
        return sum(tensor_bytes(value) for value in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(tensor_bytes(value) for value in thing)
    return 0


def save_atomic(path: str | Path, thing: Any) -> Path:
    """`torch.save` (or safetensors, by the suffix, for a dict of tensors) that never leaves a half-written file.

    Raises:
        DiskFull, UserError: see `atomic_file`; an existing file of that name is then still whole.
    """
    path = Path(path)
    needed = tensor_bytes(thing)
    with atomic_file(path, needed) as file:
        if path.suffix == ".safetensors":
            file.write(save({name: value.contiguous() for name, value in thing.items()}))
            return path
        sink = _FullDiskFile(file)
        try:
            torch.save(thing, sink)
        except RuntimeError:
            if sink.error is not None:
                raise sink.error from None
            raise
    return path


def write_json(path: str | Path, thing: Any) -> Path:
    """Write JSON (UTF-8, indented) atomically; paths and numpy numbers become strings and numbers."""
    text = json.dumps(thing, indent=1, ensure_ascii=False, default=_plain)
    with atomic_file(Path(path), len(text)) as file:
        file.write(text.encode())
    return Path(path)


def _plain(value: Any) -> Any:
    """JSON form of what json does not know."""
    return value.item() if isinstance(value, np.generic) else str(value)


def write_card(path: str | Path, model: str, options: Mapping[str, Any], **extra: Any) -> Path:
    """Write `<file>.json` next to a checkpoint: registry row and build options, so that `read` and `eval` can open it.

    Args:
        path: the checkpoint.
        model: registry row, for example "siga/TRBA".
        options: build options beyond the row's own.
        extra: whatever else is worth knowing (step, accuracy, charset, commit).
    """
    path = Path(path)
    card = path / "card.json" if path.is_dir() else path.with_name(path.name + ".json")
    return write_json(card, {"model": model, "options": dict(options), **extra})


def card_path(checkpoint: Path) -> Path:
    """Where the metadata of a checkpoint is: `<file>.json` next to a file (`NAME.json` next to a shipped
    `NAME.safetensors`), `card.json` in a folder."""
    if checkpoint.is_dir():
        return checkpoint / "card.json"
    shipped, plain = checkpoint.with_suffix(".json"), checkpoint.with_name(checkpoint.name + ".json")
    is_shipped = checkpoint.suffix == ".safetensors" and shipped.is_file() and not os.path.lexists(plain)
    return shipped if is_shipped else plain


def read_card(checkpoint: Path) -> dict[str, Any]:
    """The metadata next to a checkpoint, {} if there is none: at least `model` (registry entry) and `options`.

    Raises `UserError` for what is no readable JSON object, and for options of a wrong kind.
    """
    path, fix = card_path(checkpoint), "remove the file and name the model with --model"
    if not os.path.lexists(path):
        return {}
    try:
        card = json.loads(read_regular(path, LARGEST_CARD).decode("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: no readable metadata ({reason}); {fix}") from None
    if not isinstance(card, dict):
        raise UserError(f"{path}: metadata are a JSON object; {fix}")
    for name, kind, words in (("model", str, "a name"), ("options", dict, "an object")):
        if not isinstance(card.get(name, kind()), kind):
            raise UserError(f"{path}: the field {name!r} is not {words}; {fix}")
    for name, value in card.get("options", {}).items():
        if name in ("character", "charset", "charset_train") and not (isinstance(value, str) and value):
            raise UserError(f"{path}: the option {name!r} is no text of characters; {fix}")
        sides = value if name in ("image_size", "img_size") else [value] if name in WHOLE else []
        if not isinstance(sides, list) or not all(type(side) is int and 0 < side < LARGEST_SIZE for side in sides):
            raise UserError(f"{path}: the option {name!r} is {value!r}; it must be whole and above 0; {fix}")
    return card


def load(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """Read a checkpoint as data: safetensors by its suffix, else torch's format with weights only.

    Raises:
        UserError: no such file, truncated or damaged, no checkpoint at all, or one that holds code or foreign objects
            (nothing of it is executed).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file; check the path")
    if stranger := what_it_is(path):
        raise UserError(f"{path}: refused: it is {stranger}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=str(map_location))
        with torch.serialization.safe_globals(SAFE_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused in words below
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    except Exception as error:
        # Damaged files fail in many types (RuntimeError, EOFError, KeyError, SafetensorError, UnicodeDecodeError…).
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: truncated or no checkpoint ({reason}); copy it again or use an older one") from None


def what_it_is(path: Path) -> str | None:
    """What a file that is no checkpoint is, and what to do; None where it may be one (judged by its first bytes)."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None  # the reader says why
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file; copy or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, not a checkpoint (a login or error page was saved in its place); download the file again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if path.suffix != ".safetensors" and start[:1] == b"\x80" and start[1:2] > b"\x02":
        return (
            f"a pickle of protocol {start[1]}, which torch's safe reader does not take; where it is trusted, write it"
            " again with `torch.save(thing, NEW)` (protocol 2)"
        )
    return None


def load_hub_folder(folder: str | Path, stems: Sequence[str] = ("model", "pytorch_model")) -> dict[str, Any]:
    """The weights of a folder in Hugging Face's layout: one file or shards with their index, in full or half precision.

    Files are looked for in this order: `<stem>.safetensors`, `<stem>.bin`, the shards of `….index.json`, and then
    variants such as `<stem>.fp16.safetensors`. Tensors keep their type.

    Raises `UserError` where there is none, or where a shard or one of its tensors is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds config.json and the weights")
    whole = ("{}.safetensors", "{}.bin", "{}.safetensors.index.json", "{}.bin.index.json")
    for pattern in (*whole, "{}.*.safetensors", "{}.*.bin", "{}.*.index.*.json"):
        for stem in stems:
            for path in sorted(folder.glob(pattern.format(stem))):
                if path.suffix == ".json":
                    return _load_shards(path)
                if "-of-" not in path.name:
                    return _tensors(path)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{folder}: no weights in it ({stems[0]}.safetensors, its shards or a variant); it holds {found}")


def _tensors(path: Path) -> dict[str, Any]:
    """The content of a file that must be a dict of tensors."""
    content = load(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: it holds no dict of tensors but a {type(content).__name__}; copy it again")
    return content


def _load_shards(index: Path) -> dict[str, Any]:
    """All tensors that an index names, from its shards."""
    try:
        places = {name: Path(shard).name for name, shard in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: no readable index of shards ({error}); copy it again") from None
    tensors: dict[str, Any] = {}
    for shard in sorted(set(places.values())):
        tensors |= _tensors(index.parent / shard)
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise UserError(
            f"{index}: its shards do not hold {missing[0]} ({len(missing)} of {len(places)} tensors missing)"
        )
    return {name: tensors[name] for name in places}


def _refusal(path: Path, reason: str) -> str:
    """Words for a file that weights-only loading refused."""
    found = re.search(r"Unsupported (?:class|global):? (?:GLOBAL )?`?([\w.]+)`?", reason)
    found = found or re.search(r"GLOBAL `?([\w.]+)`?", reason)
    if found:
        return f"{path}: refused: it holds {found[1]}, which is no plain tensor data, and might run code; {CONVERT}"
    return f"{path}: refused: not readable as plain tensor data (damaged, or not a checkpoint); {CONVERT}"


def complete(folder: str | Path, pattern: str = "*.pth") -> list[Path]:
    """Finished checkpoints of a folder by the number in their names, the oldest first.

    Times of files do not count: they change when a run is copied, and clocks are set back.
    """
    files = [p for p in Path(folder).glob(pattern) if TEMPORARY not in p.name and p.is_file()]
    return sorted(files, key=lambda p: (last_number(p.name), p.name))


def numbered_checkpoints(folder: Path, pattern: str = r"checkpoint-(\d+)\.pth") -> list[Path]:
    """Files of a folder whose whole name fits, by the number in it, the latest first."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := re.fullmatch(pattern, path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def last_number(name: str) -> int:
    """The last whole number in a file name, -1 if there is none."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1


def latest(folder: str | Path, pattern: str = "*.pth") -> tuple[Path, Any] | None:
    """The newest checkpoint that can be read, with its content; None where there is none. See `first_readable`."""
    return first_readable(list(reversed(complete(folder, pattern))))


def first_readable(candidates: Sequence[Path]) -> tuple[Path, Any] | None:
    """The first of these files that can be read, with its content; each damaged one before it is named in a line.

    Files that do not exist are no candidates; None where none is left. Raises `UserError` where there are files and
    none can be read: a run that then began at step 0 would overwrite what is left of them.
    """
    refusals = []
    for path in candidates:
        if not path.exists():
            continue
        try:
            return path, load(path)
        except UserError as error:
            print(f"skipped: {error}")
            refusals.append(error)
    if refusals:
        more = f" and {len(refusals) - 1} more" if len(refusals) > 1 else ""
        raise UserError(
            f"{refusals[0]}{more}: no state of this run can be read, and nothing was overwritten; resume from a "
            "checkpoint by its name, make the files readable, or move them away to start anew"
        )
    return None


def keep_last(folder: str | Path, pattern: str, count: int, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Delete the oldest complete checkpoints (and metadata files) beyond `count`; 0 keeps all. A failed delete is only
    reported."""
    if count <= 0:
        return
    for path in [p for p in complete(folder, pattern) if not keep(p)][:-count]:
        try:
            path.unlink()
            path.with_name(path.name + ".json").unlink(missing_ok=True)
        except OSError as error:
            print(f"{path}: could not be deleted ({error.strerror})")


def clear_unfinished(folder: str | Path) -> None:
    """Remove what killed writers left behind (temporary files of processes that are gone)."""
    for path in Path(folder).glob(f"*{TEMPORARY}*"):
        owner = path.name.split(TEMPORARY)[1].split("-")[0]
        alive = owner.isdigit() and Path(f"/proc/{owner}").exists()
        if not alive:
            with contextlib.suppress(OSError):
                path.unlink()


@functools.cache
def git_commit(folder: str | Path | None = None) -> str:
    """Commit of the source tree ("-dirty" if tracked files differ), or "unknown" outside a repository.

    It is asked once a process: later the tree may be another one than the code that runs.
    """
    where = Path(folder) if folder else Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
