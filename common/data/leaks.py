"""Words that two sets share: the same or nearly the same picture with the same label.

Only words whose label (folded as the 36-character protocol does) occurs in both are decoded. A pair is a leak where the
mean colours agree and small grey copies correlate, also when one picture is a slightly cut part of the other.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from common.data.decode import BadImage, decode_rgb
from common.data.sources import open_words
from common.files import write_text
from common.text.charset import CHARSET_36
from common.text.normalise import keep_only

SIZE = (16, 48)  # of the grey copy that is compared, height and width
LARGE = (24, 72)  # of the one that is aligned for a second look
PROMISING, SURE = 0.25, 0.93  # correlation that is worth a second look, and that is a leak
COLOUR = 20.0  # how far the mean colours may differ, of 255
LARGEST_CHANGES = (0.2, 0.2, 0.04, 0.08, 0.15, 0.18)  # see `_enhanced`: what cutting off a margin can do
CHUNK = 1000


class Leak(NamedTuple):
    """Sample `number` (from 1) of `path` is sample `against_number` of `against`; how alike the pictures are."""

    path: str
    number: int
    against: str
    against_number: int
    label: str
    correlation: float


class Looks(NamedTuple):
    """What is compared of some pictures: large grey copies uint8 [N, h, w], mean colours float32 [N, 3], and which of
    the indices they are."""

    indices: np.ndarray
    grey: np.ndarray
    colour: np.ndarray


def folded(label: str) -> str:
    """The part of a label that must agree: letters and digits without case, or all of it where there are none."""
    return keep_only(label, CHARSET_36, lower=True) or label.strip()


def find_leaks(
    folders: Sequence[Path],
    against: Sequence[Path],
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Leak]:
    """Every word of the sets `folders` that is also in the sets `against`, each with its most similar picture there.

    progress: called with (pictures compared, pictures to compare).
    """
    known = _by_label(against)
    wanted = _by_label(folders, known)
    known = {label: places for label, places in known.items() if label in wanted}
    total = sum(map(len, known.values())) + sum(map(len, wanted.values()))
    with ProcessPoolExecutor(max(workers, 1), mp_context=multiprocessing.get_context("spawn")) as pool:
        run = pool.map if total > 4 * CHUNK and workers > 1 else map
        done = 0

        def looks(groups: dict[str, list[tuple[int, int]]], sets: Sequence[Path]) -> dict[tuple[int, int], tuple]:
            nonlocal done
            found = {}
            for source, result in run(_look, _jobs(groups, sets)):
                for position, index in enumerate(result.indices.tolist()):
                    found[source, index] = (result.grey[position], result.colour[position])
                done += CHUNK
                if progress is not None:
                    progress(min(done, total), total)
            return found

        theirs = looks(known, against)
        ours = looks(wanted, folders)
    leaks = []
    for label, places in wanted.items():
        leaks += _compare(label, places, known[label], ours, theirs, folders, against)
    return sorted(leaks)


def _by_label(folders: Sequence[Path], only: dict | None = None) -> dict[str, list[tuple[int, int]]]:
    """Folded label -> (set, index) of its words; `only` those labels."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, folder in enumerate(folders):
        for index, value in open_words(folder).items("label"):
            label = folded(value.decode("utf-8", "replace"))
            if label and (only is None or label in only):
                places[label].append((source, index))
    return places


def _jobs(groups: dict[str, list[tuple[int, int]]], folders: Sequence[Path]) -> Iterator[tuple[int, Path, list[int]]]:
    by_source: dict[int, list[int]] = defaultdict(list)
    for places in groups.values():
        for source, index in places:
            by_source[source].append(index)
    for source, indices in sorted(by_source.items()):
        indices.sort()  # in the order of the file
        starts = [*range(0, len(indices), CHUNK), len(indices)]
        for start, stop in pairwise(starts):
            yield source, folders[source], indices[start:stop]


def _look(job: tuple[int, Path, list[int]]) -> tuple[int, Looks]:
    """Decode some pictures; those that cannot be read are skipped."""
    source, folder, indices = job
    words, kept, grey, colour = open_words(folder), [], [], []
    for index in indices:
        try:
            pixels = decode_rgb(words.image_bytes(index))
        except (BadImage, KeyError):
            continue
        kept.append(index)
        colour.append(pixels.reshape(-1, 3).mean(0))
        small = cv2.resize(pixels, LARGE[::-1], interpolation=cv2.INTER_AREA)
        grey.append(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    shape = (0, *LARGE)
    return source, Looks(
        np.array(kept, dtype=np.int64),
        np.stack(grey) if grey else np.empty(shape, np.uint8),
        np.array(colour, dtype=np.float32).reshape(-1, 3),
    )


def _compare(
    label: str,
    places: list[tuple[int, int]],
    known: list[tuple[int, int]],
    ours: dict,
    theirs: dict,
    folders: Sequence[Path],
    against: Sequence[Path],
) -> Iterator[Leak]:
    """The leaks among the words of one label."""
    places = [place for place in places if place in ours]
    known = [place for place in known if place in theirs]
    if not places or not known:
        return
    first = _unit(np.stack([ours[place][0] for place in places]))
    second = _unit(np.stack([theirs[place][0] for place in known]))
    correlation = first @ second.T
    colours = np.abs(
        np.stack([ours[place][1] for place in places])[:, None] - np.stack([theirs[place][1] for place in known])[None]
    ).max(-1)
    for row, place in enumerate(places):
        best = (0.0, -1)
        candidates = np.flatnonzero((correlation[row] >= PROMISING) & (colours[row] <= COLOUR))
        for column in candidates[np.argsort(-correlation[row, candidates])][:8].tolist():
            same = folders[place[0]].resolve() == against[known[column][0]].resolve() and place[1] == known[column][1]
            if same:
                continue
            exact = float(correlation[row, column])
            value = exact if exact >= SURE else aligned(ours[place][0], theirs[known[column]][0])
            best = max(best, (value, column))
        if best[0] >= SURE:
            source, index = known[best[1]]
            yield Leak(
                str(folders[place[0]]), place[1] + 1, str(against[source]), index + 1, label, round(float(best[0]), 4)
            )


def _unit(grey: np.ndarray) -> np.ndarray:
    """Grey copies [N, h, w] as rows of mean 0 and length 1, at the small size."""
    small = np.stack([cv2.resize(one, SIZE[::-1], interpolation=cv2.INTER_AREA) for one in grey]).astype(np.float32)
    rows = small.reshape(len(small), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def aligned(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of two grey copies uint8 [h, w] after the best small shift, scaling and shear of one onto the
    other (Evangelidis and Psarakis 2008); 0 where none is small.
    """
    return max(_enhanced(first, second), _enhanced(second, first))


def _enhanced(target: np.ndarray, moved: np.ndarray) -> float:
    height, width = target.shape
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    try:
        value, warp = cv2.findTransformECC(
            target, moved, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop, None, 3
        )
    except cv2.error:  # it does not converge: the pictures differ
        return 0.0
    shape = height / width
    # As a share of the sides: scale of x and y, shear of x and y, shift of x and y.
    changes = (
        warp[0, 0] - 1,
        warp[1, 1] - 1,
        warp[0, 1] * shape,
        warp[1, 0] / shape,
        warp[0, 2] / width,
        warp[1, 2] / height,
    )
    return float(value) if all(abs(change) <= most for change, most in zip(changes, LARGEST_CHANGES)) else 0.0


COLUMNS = Leak._fields


def write_leaks(file: Path, leaks: Iterable[Leak]) -> None:
    """Write the pairs as CSV; `common.data.exclude` reads its first two columns."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(leaks)
    write_text(file, text.getvalue())
