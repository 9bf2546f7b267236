"""Reading large sets by several processes or machines: each reads its share, the last one has all predictions.

A share is stored as JSON lines; the evaluation then runs as usual on a recognizer that gives the stored predictions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.data.parts import PLAN, Shard
from common.data.sources import open_words
from common.errors import UserError
from common.files import write_text
from common.infer.recognizer import Prediction, Recognizer

BATCHES = 16  # of a part: parts begin with a new batch


def folder_of(out: Path) -> Path:
    """Where the shares are until all are there."""
    return out / ".shares"


def read_share(
    recognizer: Recognizer, sets: Mapping[str, Path], out: Path, shard: Shard, max_samples: int, progress: bool = True
) -> int:
    """Read the parts of this shard that are not there yet; how many parts of all shards are still missing.

    Raises `UserError` where the shares in `out` are of another command.
    """
    size, missing = BATCHES * recognizer.batch_size, 0
    plan = {
        "sets": {name: str(path.absolute()) for name, path in sets.items()},
        "checkpoint": str(recognizer.source or recognizer.name),
        "max_samples": max_samples,
        "part_size": size,
    }
    _check(folder_of(out) / PLAN, plan)
    todo = []
    for number, (name, path, start, stop) in enumerate(_ranges(sets, size, max_samples)):
        file = part_file(out, name, start)
        if shard.has(number) and not file.is_file():
            todo.append((path, file, start, stop))
    total = sum(stop - start for _, _, start, stop in todo)
    with tqdm(total=total, desc=f"shard {shard}", unit="img", disable=None if progress else True) as bar:
        for path, file, start, stop in todo:
            _read_part(recognizer, path, file, start, stop)
            bar.update(stop - start)
    for name, _, start, _ in _ranges(sets, size, max_samples):
        missing += not part_file(out, name, start).is_file()
    return missing


def part_file(out: Path, name: str, start: int) -> Path:
    return folder_of(out) / hashlib.sha256(name.encode()).hexdigest()[:16] / f"{start:09d}.jsonl"


def _check(file: Path, plan: dict[str, Any]) -> None:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        write_text(file, json.dumps(plan, indent=1))
        return
    if found != plan:
        raise UserError(f"{file.parent}: shares of another command: remove the folder, or repeat that command")


def _ranges(sets: Mapping[str, Path], size: int, max_samples: int) -> Iterator[tuple[str, Path, int, int]]:
    for name, path in sets.items():
        count = len(open_words(path))
        count = min(count, max_samples or count)
        for start in range(0, count, size):
            yield name, path, start, min(start + size, count)


def _read_part(recognizer: Recognizer, path: Path, file: Path, start: int, stop: int) -> None:
    """Read the samples that have a picture and a label, as the evaluation asks for them."""
    words = open_words(path)

    def images() -> Iterator[bytes]:
        for index in range(start, stop):
            image = words.value("image", index)
            if image is not None and _is_text(words.value("label", index)):
                yield image

    lines = [
        json.dumps([one.text, float(one.confidence), [float(value) for value in one.char_confidences], one.error])
        for one in recognizer.stream(images())
    ]
    write_text(file, "".join(f"{line}\n" for line in lines))


def _is_text(label: bytes | None) -> bool:
    try:
        return label is not None and label.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


class StoredReader:
    """Stands in for a recognizer in an evaluation: the predictions of all shares, in the order of the sets."""

    def __init__(self, recognizer: Recognizer, sets: Mapping[str, Path], out: Path, max_samples: int) -> None:
        self._recognizer, size = recognizer, BATCHES * recognizer.batch_size
        self._files = [part_file(out, name, start) for name, _, start, _ in _ranges(sets, size, max_samples)]
        self._lines = (line for file in self._files for line in file.read_text("utf-8").splitlines())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recognizer, name)

    def stream(self, images: Iterable[bytes], **_how: Any) -> Iterator[Prediction]:
        """The stored prediction of each picture."""
        for _ in images:
            text, confidence, characters, error = json.loads(next(self._lines))
            yield Prediction(text, confidence, characters, error=error)
