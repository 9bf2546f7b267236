"""The converter of every release form: (root of the unpacked release, subset) -> words in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from common.data.convert import crops, curved, icdar, linked, scenes
from common.data.convert.release import find, need, split_of
from common.data.convert.samples import Source
from common.data.convert.synthtext import synthtext
from common.data.sets import Subset, WordSet
from common.errors import UserError

LMDB, ANYWORD = "lmdb", "anyword"  # forms that are not converted into words: linked, and scenes
# Forms with one subset: `strlab data convert NAME SRC DST` makes one LMDB.
SINGLE: dict[str, Callable[[Path], Iterator[Source]]] = {
    "textocr": scenes.textocr, "openvino": scenes.openvino, "coco": scenes.coco, "art": crops.art, "lsvt": scenes.lsvt,
    "mlt19": crops.mlt19, "rctw17": scenes.rctw17, "rects": scenes.rects, "uber": scenes.uber,
    "union14m": crops.union14m, "iam": crops.iam, "cvl": crops.cvl, "wordart": crops.wordart, "synthtext": synthtext,
}  # fmt: skip


def words_of(data_set: WordSet, subset: Subset, root: Path, only: Path | None = None) -> Iterator[Source]:
    """The words of a subset, filtered as its TOML says. Raises `UserError` where the release does not hold it."""
    sources = _unfiltered(data_set.form, subset.name, root)
    if subset.filter == "alphanumeric":
        return icdar.alphanumeric(sources, subset.least)
    if subset.filter == "listed":
        if only is None:
            raise UserError(f"{subset.name}: needs a list of the words to keep (--only LIST), which no release holds")
        return icdar.listed(sources, icdar.names_in(only))
    return sources


def _unfiltered(form: str, subset: str, root: Path) -> Iterator[Source]:
    if form in SINGLE:
        return SINGLE[form](root)
    split, _, kind = subset.partition("_")
    if form in ("ic13", "ic15"):
        return icdar.word_list(root, split, form)
    if form == "ic03":
        return _ic03(root, split, "train" if kind == "train" else "test")
    if form == "svt":
        files = icdar.once(need(root, f"{split}.xml"))
        return (source for file in files for source in icdar.tagged_scenes(file))
    if form == "textzoom":
        return linked.textzoom(root, split, kind)
    two = {"mjsynth": crops.mjsynth, "iiit5k": crops.iiit5k, "totaltext": curved.totaltext, "ctw1500": curved.ctw1500}
    return two[form](root, split)


def _ic03(root: Path, task: str, split: str) -> Iterator[Source]:
    """IC03's word or scene task; folders such as `SceneTrialTrain` are training, every other one the test."""
    name = "word.xml" if task == "words" else "words.xml"
    files = find(root, name)
    above = root.absolute().parent
    own = [file for file in files if (split_of(file.parent.absolute().relative_to(above)) or "test") == split]
    if not own:
        raise UserError(f"{root}: no {name} of the {split} part in it; give the unpacked data set's folder")
    for file in icdar.once(own):
        yield from icdar.ic03_words(file) if task == "words" else icdar.tagged_scenes(file)
