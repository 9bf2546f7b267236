"""Looking over a large set by several processes or machines: each looks at its chunks, the last one gathers all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from common.data.examine import CHUNK, MASKS, Examination, Wishes, chunk_of, gather, look_at_keys
from common.data.examine import Seen as SeenChunk
from common.data.parts import Shard
from common.errors import UserError
from common.files import write_text


def examine_share(
    path: Path,
    wishes: Wishes,
    folder: Path,
    shard: Shard,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Examination, int]:
    """Look at the chunks of this shard and store what they hold in `folder`: (examination, chunks still missing).

    The examination is complete where no chunk is missing.
    """
    result = Examination(path)
    try:
        look_at_keys(result)
    except UserError as error:
        result.fatal = str(error)
        return result, 0
    if result.kind == MASKS:
        return result, 0
    place = folder / hashlib.sha256(repr((str(path.absolute()), wishes)).encode()).hexdigest()[:16]
    starts = range(0, result.highest, CHUNK)
    files = [place / f"{start:09d}.json" for start in starts]
    todo = [(start, file) for number, (start, file) in enumerate(zip(starts, files)) if shard.has(number)]
    todo = [(start, file) for start, file in todo if not file.is_file()]
    look = chunk_of(path, wishes, result)
    with ProcessPoolExecutor(max(workers, 1), mp_context=get_context("spawn")) as pool:
        run = pool.map if workers > 1 and len(todo) > 1 else map
        for done, ((_, file), seen) in enumerate(zip(todo, run(look, [start for start, _ in todo])), 1):
            write_text(file, json.dumps(_plain(seen), ensure_ascii=False))
            if progress is not None:
                progress(done, len(todo))
    missing = sum(not file.is_file() for file in files)
    if not missing:
        gather(result, [_seen(json.loads(file.read_text("utf-8"))) for file in files])
    return result, missing


def _plain(seen: SeenChunk) -> dict[str, Any]:
    """What a chunk holds as JSON; characters that are no Unicode text become question marks in it."""
    return {
        "findings": seen.findings,
        "foreign": list(seen.foreign.items()),
        "characters": list(seen.characters.items()),
        "lengths": list(seen.lengths.items()),
        "sizes": seen.sizes.tolist(),
        "sharpness": seen.sharpness,
        "digests": seen.digests.tolist(),
        "examples": seen.examples,
    }


def _seen(content: dict[str, Any]) -> SeenChunk:
    seen = SeenChunk(findings=[tuple(row) for row in content["findings"]], examples=content["examples"])
    for name in ("foreign", "characters", "lengths"):
        setattr(seen, name, Counter(dict(content[name])))
    seen.sizes = np.asarray(content["sizes"], dtype=np.int32).reshape(-1, 2)
    seen.digests = np.asarray(content["digests"], dtype=np.int64).reshape(-1, 3)
    seen.sharpness = content["sharpness"]
    return seen
