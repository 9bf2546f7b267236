"""Text <-> class ids for each published reader, vectorised in numpy, with the published rules for confidences and
missing ends.

`encode(labels)` gives `(ids int64 [B, L], lengths int64 [B])`; `decode(ids [B, L], probabilities [B, L] or None)`
gives one `Decoded` a row, where `probabilities` are the maximum class probabilities in [0, 1] that belong to `ids`.
A codec is a pure function of its charset: no torch, no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.text.charset import CHARSET_36, CHARSET_94, SIGA_36, check_distinct


class LabelError(UserError, ValueError):
    """A label that a codec cannot write: too long, or with a character outside the charset."""


class Decoded(NamedTuple):
    """`text`; `confidence` in [0, 1] by the paper's rule (NaN without probabilities); one value per character of
    `text`.
    """

    text: str
    confidence: float
    char_confidences: tuple[float, ...]


class CharacterTable:
    """Code points <-> ids `first`, `first + 1`, …; -1 marks what is not a character, in both directions."""

    def __init__(self, charset: str, first: int) -> None:
        check_distinct(charset)
        self.charset, self.first = charset, first
        points = _code_points(charset)
        self._to_id = np.full(int(points.max()) + 2, -1, dtype=np.int64)
        self._to_id[points] = np.arange(first, first + len(charset))
        self._to_point = points.astype(np.int64)

    def ids(self, points: np.ndarray) -> np.ndarray:
        """Ids of code points (any shape); -1 outside the charset."""
        return self._to_id[np.minimum(points, len(self._to_id) - 1)]

    def points(self, ids: np.ndarray) -> np.ndarray:
        """Code points of ids (any shape); -1 for ids that are no character."""
        index = ids - self.first
        inside = (index >= 0) & (index < len(self._to_point))
        return np.where(inside, self._to_point[np.where(inside, index, 0)], -1)

    def flatten(self, labels: Sequence[str], unknown: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All labels' ids in one int64 array, and their lengths [B]; `unknown` replaces foreign characters, None
        refuses them.
        """
        lengths = np.fromiter((len(label) for label in labels), dtype=np.int64, count=len(labels))
        ids = self.ids(_code_points("".join(labels)))
        if unknown is not None:
            ids = np.where(ids < 0, unknown, ids)
        elif (ids < 0).any():
            row = int(np.searchsorted(lengths.cumsum(), int((ids < 0).argmax()), side="right"))
            foreign = "".join(sorted(set(labels[row]) - set(self.charset)))
            raise LabelError(
                f"label {labels[row]!r}: {foreign!r} is not in the charset: normalise or filter the labels first"
            )
        return ids, lengths


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _text(points: np.ndarray) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _scatter(ids: np.ndarray, lengths: np.ndarray, into: np.ndarray, column: int) -> np.ndarray:
    """Write each label's ids into row b of `into` from `column` on; what is over the right edge is cut."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.arange(len(ids)) - np.repeat(lengths.cumsum() - lengths, lengths) + column
    inside = columns < into.shape[1]
    into[rows[inside], columns[inside]] = ids[inside]
    return into


def _first(ids: np.ndarray, token: int) -> np.ndarray:
    """Column of the first `token` in every row, -1 where there is none: int64 [B]."""
    found = ids == token
    return np.where(found.any(axis=1), found.argmax(axis=1) if ids.shape[1] else 0, -1)


def _checked(ids: np.ndarray, probabilities: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ValueError(f"ids have shape {ids.shape}, expected [batch, length]")
    if probabilities is None:
        return ids.astype(np.int64), None
    probabilities = np.asarray(probabilities)
    if probabilities.shape != ids.shape:
        raise ValueError(f"probabilities have shape {probabilities.shape}, ids {ids.shape}")
    return ids.astype(np.int64), probabilities


def _refuse_long(labels: Sequence[str], max_length: int) -> None:
    for label in labels:
        if len(label) > max_length:
            raise LabelError(
                f"label {label!r}: {len(label)} characters, the codec writes {max_length}: filter by length first"
            )


def _product(values: np.ndarray) -> float:
    return float(np.multiply.reduce(values)) if values.size else 0.0


def _floats(values: np.ndarray | None) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)


class GlyphCodec:
    """SIGA R and S: id 0 ends and pads, characters are 1..C, start is `num_classes` (an embedding row, not a class).

    `encode` gives `max_length + 1` columns: start, characters, zeros; length = characters + 1, not cut. A longer
    label is cut (R) or refused (`truncate=False`, S). `decode` cuts at the first 0; **without one the last character
    is lost**, as published. Confidence is the product over the characters and the end; 0 without an end.
    """

    def __init__(self, charset: str = SIGA_36, max_length: int = 26, truncate: bool = True) -> None:
        self.table, self.charset = CharacterTable(charset, 1), charset
        self.max_length, self.truncate = max_length, truncate
        self.num_classes = len(charset) + 1
        self.end, self.pad, self.start = 0, 0, self.num_classes

    def encode(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not self.truncate:
            _refuse_long(labels, self.max_length)
        ids, lengths = self.table.flatten(labels)
        out = np.zeros((len(labels), self.max_length + 1), dtype=np.int64)
        out[:, 0] = self.start
        return _scatter(ids, lengths, out, 1), lengths + 1

    def decode(self, ids: np.ndarray, probabilities: np.ndarray | None = None) -> list[Decoded]:
        ids, probabilities = _checked(ids, probabilities)
        ends, points = _first(ids, self.end), self.table.points(ids)
        decoded = []
        for row, end in enumerate(ends):
            text = _text(points[row, :end][points[row, :end] >= 0])
            if probabilities is None:
                decoded.append(Decoded(text, float("nan"), ()))
            else:
                confidence = _product(probabilities[row, : end + 1])
                decoded.append(Decoded(text, confidence, _floats(probabilities[row, :end])))
        return decoded


class GoCodec:
    """MGP-STR's character branch and SIGA T: `[GO]`=0 starts and pads, `[s]`=1 ends, characters are 2..C+1.

    `encode` gives `max_length + 2` columns: 0, characters, 1, zeros; length = characters + 1. Longer labels are
    refused, or with `truncate=True` cut at the right edge, which then holds no end.

    `decode` follows the published string arithmetic: every id becomes its text, the string is cut at the first
    "[s]", without one the **last character** of the string is lost. Confidence: `through_end=False` (SIGA T)
    multiplies what stands before the end, `through_end=True` (MGP-STR) includes the end and gives 0 without one; an
    empty product is 0. The cut counts text, so a `[GO]` before the end (four characters for one position) reaches
    further to the right, as published.
    """

    def __init__(
        self, charset: str = CHARSET_36, max_length: int = 25, through_end: bool = False, truncate: bool = False
    ) -> None:
        self.truncate = truncate
        self.table, self.charset = CharacterTable(charset, 2), charset
        self.max_length, self.through_end = max_length, through_end
        self.num_classes = len(charset) + 2
        self.start, self.pad, self.end = 0, 0, 1
        self.tokens = ["[GO]", "[s]", *charset]

    def encode(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not self.truncate:
            _refuse_long(labels, self.max_length)
        ids, lengths = self.table.flatten(labels)
        out = np.zeros((len(labels), self.max_length + 2), dtype=np.int64)
        ended = np.flatnonzero(lengths <= self.max_length)
        out[ended, lengths[ended] + 1] = self.end
        return _scatter(ids, lengths, out, 1), lengths + 1

    def raw_text(self, ids: np.ndarray) -> list[str]:
        """Every id's text joined, specials included: `hello[s][GO][GO]…`."""
        return ["".join(self.tokens[token] for token in row) for row in np.asarray(ids)]

    def decode(self, ids: np.ndarray, probabilities: np.ndarray | None = None) -> list[Decoded]:
        ids, probabilities = _checked(ids, probabilities)
        ends, starts, points = _first(ids, self.end), _first(ids, self.start), self.table.points(ids)
        decoded = []
        for row, end in enumerate(ends):
            text, cut = _text(points[row, : max(end, 0)][points[row, : max(end, 0)] >= 0]), int(end)
            if end < 0 or 0 <= starts[row] < end or "[s]" in text:
                # no end, a [GO] inside, or characters that spell the end: published string arithmetic
                raw = self.raw_text(ids[row : row + 1])[0]
                cut = raw.find("[s]")
                text = raw[:cut]
            if probabilities is None:
                decoded.append(Decoded(text, float("nan"), ()))
            else:
                counted = probabilities[row, : cut + 1] if self.through_end else probabilities[row, :cut]
                decoded.append(Decoded(text, _product(counted), _floats(probabilities[row, :cut][: len(text)])))
        return decoded


class EosBosPadCodec:
    """PARSeq and SSM: `[E]`=0, characters 1..C, `[B]`=C+1, `[P]`=C+2; the model predicts `num_classes` = C+1 of
    these.

    `encode` gives start + characters + end, padded with `pad` to the longest of the batch (or to `columns`); its
    length is that of the characters + 2. `decode` cuts at the first end, all columns without one; confidence is the
    product **including** the end.
    """

    def __init__(self, charset: str = CHARSET_94) -> None:
        self.table, self.charset = CharacterTable(charset, 1), charset
        self.num_classes, self.vocabulary = len(charset) + 1, len(charset) + 3
        self.end, self.start, self.pad = 0, len(charset) + 1, len(charset) + 2
        self.tokens = ["[E]", *charset, "[B]", "[P]"]

    def encode(self, labels: Sequence[str], columns: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self.table.flatten(labels)
        width = columns or int(lengths.max(initial=0)) + 2
        _refuse_long(labels, width - 2)
        out = np.full((len(labels), width), self.pad, dtype=np.int64)
        out[:, 0] = self.start
        out[np.arange(len(labels)), lengths + 1] = self.end
        return _scatter(ids, lengths, out, 1), lengths + 2

    def decode(self, ids: np.ndarray, probabilities: np.ndarray | None = None) -> list[Decoded]:
        ids, probabilities = _checked(ids, probabilities)
        return _decode_to_end(self.table, ids, probabilities, self.end)


class EosPadUnkCodec:
    """DiG: characters 0..C-1, EOS=C, PADDING=C+1, UNKNOWN=C+2; BOS is `num_classes`=C+3, an embedding row only.

    `encode` gives `max_length` columns: characters + EOS, padded; length = characters + 1; foreign characters
    become UNKNOWN; a word needs `len + 1 < max_length`. `decode` stops before the first EOS (all columns without
    one); UNKNOWN and PADDING vanish. Confidence is the product up to and including the EOS.
    """

    def __init__(self, charset: str = CHARSET_94, max_length: int = 25) -> None:
        self.table, self.charset, self.max_length = CharacterTable(charset, 0), charset, max_length
        self.end, self.pad, self.unknown = len(charset), len(charset) + 1, len(charset) + 2
        self.num_classes = len(charset) + 3
        self.start = self.num_classes

    def encode(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        _refuse_long(labels, self.max_length - 2)
        ids, lengths = self.table.flatten(labels, unknown=self.unknown)
        out = np.full((len(labels), self.max_length), self.pad, dtype=np.int64)
        out[np.arange(len(labels)), lengths] = self.end
        return _scatter(ids, lengths, out, 0), lengths + 1

    def decode(self, ids: np.ndarray, probabilities: np.ndarray | None = None) -> list[Decoded]:
        ids, probabilities = _checked(ids, probabilities)
        return _decode_to_end(self.table, ids, probabilities, self.end)


class CtcCodec:
    """CTC: characters from `first`, blank at `blank` (defaults: blank 0, characters 1..C; DiG: first 0, blank 97).

    `encode` pads with the blank to the longest label; length = characters. `decode` merges repeats, then drops
    the blank and every id that is no character. Confidence is the product over **all** time steps; per-character
    values are those of the first of its run.
    """

    def __init__(self, charset: str = CHARSET_36, first: int = 1, blank: int = 0) -> None:
        self.table, self.charset, self.blank = CharacterTable(charset, first), charset, blank
        self.pad = blank
        self.num_classes = max(first + len(charset), blank + 1)

    def encode(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self.table.flatten(labels)
        out = np.full((len(labels), int(lengths.max(initial=0))), self.pad, dtype=np.int64)
        return _scatter(ids, lengths, out, 0), lengths

    def decode(self, ids: np.ndarray, probabilities: np.ndarray | None = None) -> list[Decoded]:
        ids, probabilities = _checked(ids, probabilities)
        points = self.table.points(ids)
        kept = points >= 0
        kept[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        return [_row(points[row], kept[row], probabilities, row, ids.shape[1]) for row in range(len(ids))]


def _decode_to_end(
    table: CharacterTable, ids: np.ndarray, probabilities: np.ndarray | None, end_token: int
) -> list[Decoded]:
    """Text before the first end, confidence through it; all columns where there is none."""
    ends, points = _first(ids, end_token), table.points(ids)
    stops = np.where(ends < 0, ids.shape[1], ends)
    kept = (points >= 0) & (np.arange(ids.shape[1]) < stops[:, None])
    return [_row(points[row], kept[row], probabilities, row, int(stops[row]) + 1) for row in range(len(ids))]


def _row(points: np.ndarray, kept: np.ndarray, probabilities: np.ndarray | None, row: int, counted: int) -> Decoded:
    text = _text(points[kept])
    if probabilities is None:
        return Decoded(text, float("nan"), ())
    return Decoded(text, _product(probabilities[row, :counted]), _floats(probabilities[row][kept]))
