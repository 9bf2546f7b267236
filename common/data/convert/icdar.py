"""ICDAR's robust reading sets and Street View Text, as their organisers release them."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from common.data.convert.records import each
from common.data.convert.release import find, picture_root, read_text, same_name, split_of
from common.data.convert.samples import Source
from common.data.convert.scenes import corner_box, word
from common.data.lists import COMMA, read_listing
from common.errors import UserError
from common.files import read_regular

_IMAGE = re.compile(rb'<image\s+file="([^"]*)"\s+tag="(.*?)"\s*/?>', re.IGNORECASE)
_BARE_AND = re.compile(rb"&(?!#?\w+;)")


# How the paths of a challenge's files begin, by which the releases of IC13 and IC15 below one folder are distinguished.
_CHALLENGE = {
    "ic13": r"(challenge|ch)_?2(?!\d)|(icdar|ic)[ _-]?(20)?13",
    "ic15": r"(challenge|ch)_?4(?!\d)|(icdar|ic)[ _-]?(20)?15",
}


def word_list(root: Path, split: str, challenge: str = "") -> Iterator[Source]:
    """IC13 (task 2.3) and IC15 (task 4.3): lines `word_1.png, "label"`; the list of the split is found by its path.

    challenge: ic13 or ic15: files whose path names the other one are not looked at.
    """
    for file in split_lists(root, split, challenge):
        listing = read_listing(file, COMMA, encoding=_encoding(file))
        names = [row.path for row in listing.rows if not row.wrong]
        pictures = picture_root(root, file, names, partial(_suits, split, challenge))
        for row in listing.rows:
            where = f"{file}:{row.number}:"
            if row.wrong:
                yield Source.bad(f"{where} {row.path}", row.wrong)
            else:
                yield Source.file(pictures, same_name(pictures, row.path), row.label, where)


def split_lists(root: Path, split: str, challenge: str = "") -> list[Path]:
    """The lists of a split: text files with ICDAR's lines whose path says train or test. Raises `UserError` for
    none.
    """
    found = [file for file in find(root, "*gt*.txt", "*words*.txt", "gt.txt") if _is_word_list(file)]
    other = {"ic13": "ic15", "ic15": "ic13"}.get(challenge)
    if other is not None:
        found = [file for file in found if _challenge_of(file.relative_to(root)) != other]
    own = [file for file in found if split_of(file.relative_to(root)) == split]
    if not own and all(split_of(file.relative_to(root)) is None for file in found):
        # A folder of one split alone: its own name, or nothing, says which.
        own = found if split == (split_of(Path(root.absolute().name)) or "test") else []
    if not own:
        raise UserError(f'{root}: no list of {split} words (lines word_1.png, "label"); give the unpacked folder')
    return once(own)


def _suits(split: str, challenge: str, folder: Path) -> int:
    """How well the name of a folder agrees with the split and the challenge of a list; -1 where it names others."""
    named = _challenge_of(folder)
    if split_of(folder) not in (split, None) or (challenge and named not in (challenge, None)):
        return -1
    return (split_of(folder) == split) + (named is not None)


def _challenge_of(path: Path) -> str | None:
    """ic13 or ic15, as the last part of the path that names one says."""
    for part in reversed(path.parts):
        named = [name for name, pattern in _CHALLENGE.items() if re.search(pattern, part, re.IGNORECASE)]
        if len(named) == 1:
            return named[0]
    return None


def _is_word_list(file: Path) -> bool:
    """Whether a text file has lines of a picture's name and a label in quotes, not a scene's boxes."""
    try:
        first = next((line for line in read_text(file, "cp1252").splitlines() if line.strip()), "")
    except UserError:
        return False
    return bool(re.match(r'\s*[^,]+\.(png|jpe?g|bmp|gif|tiff?)\s*,\s*"?', first, re.IGNORECASE))


def _encoding(file: Path) -> str | None:
    """None for UTF-8 and UTF-16, Windows' Latin-1 for what is neither."""
    try:
        read_text(file)
    except UserError:
        return "cp1252"
    return None


def alphanumeric(sources: Iterable[Source], least: int = 1) -> Iterator[Source]:
    """Words of ASCII letters and digits only, at least `least` of them; records that cannot be used stay in the
    list.
    """
    for source in sources:
        if source.wrong or (len(source.label) >= least and source.label.isascii() and source.label.isalnum()):
            yield source


def listed(sources: Iterable[Source], names: set[str]) -> Iterator[Source]:
    """Words whose picture's file name is in the list."""
    return (source for source in sources if source.wrong or source.picture.lower() in names)


def names_in(file: Path) -> set[str]:
    """The picture names of a list that the user supplies: one a line, alone or before a comma, tab or blank."""
    lines = (re.split(r"[,\t ]", line.strip(), maxsplit=1)[0] for line in read_text(file).splitlines())
    names = {Path(name.replace("\\", "/")).name.lower() for name in lines if name}
    if not names:
        raise UserError(f"{file}: no names in it: give the picture names of the words to keep, one a line")
    return {name if "." in name else f"word_{name}.png" for name in names}


def ic03_words(file: Path) -> Iterator[Source]:
    """IC03's word task: a `word.xml` of `<image file="word/1/1.jpg" tag="…"/>`, in ISO-8859-1."""
    for number, (name, label) in enumerate(_tags(file), 1):
        where = f"{file}:{number}:"
        if not label.strip():
            yield Source.bad(f"{where} {name}", "empty label")
        else:
            yield Source.file(file.parent, same_name(file.parent, name), label.strip(), where)


def _tags(file: Path) -> list[tuple[str, str]]:
    """(file, tag) of every image element, also of a file that is not well-formed XML (bare `&`, wrong bytes)."""
    data = read_regular(file)
    try:
        tree = ElementTree.fromstring(_BARE_AND.sub(b"&amp;", data))
        return [(image.get("file", ""), image.get("tag", "")) for image in tree.iter("image")]
    except ElementTree.ParseError:
        found = _IMAGE.findall(data)
    if not found:
        raise UserError(f"{file}: neither XML nor lines of <image file tag>; fetch it again")
    return [tuple(html.unescape(part.decode("iso-8859-1")) for part in pair) for pair in found]


def tagged_scenes(file: Path) -> Iterator[Source]:
    """Scenes with `taggedRectangle`s, cut out: IC03's `words.xml`, SVT's `train.xml` and `test.xml`."""
    for number, image in enumerate(_scene_images(file), 1):
        name = (image.findtext("imageName") or "").strip()
        where = f"{file}: image {number}:"
        path = Path(same_name(file.parent, name))
        yield from each(
            ((f"{where} {name}", mark) for mark in image.iter("taggedRectangle")),
            partial(_rectangle, file.parent, path, where),
            Source.bad,
        )


def once(files: Iterable[Path]) -> list[Path]:
    """The files without copies of the same content, as an archive leaves them that was unpacked twice."""
    return list({read_regular(file): file for file in reversed(list(files))}.values())[::-1]


def _scene_images(file: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.fromstring(_BARE_AND.sub(b"&amp;", read_regular(file))).iter("image"))
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{file}: not XML ({error}); fetch it again") from None


def _rectangle(root: Path, path: Path, where: str, mark: ElementTree.Element) -> list[Source]:
    box = [float(mark.get(name)) for name in ("x", "y", "width", "height")]
    label = (mark.findtext("tag") or "").strip()
    if not label:
        return [Source.bad(f"{where} {path}", "empty tag")]
    return [word(root, str(path), corner_box(box), label, where)]
