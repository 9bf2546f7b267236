"""The papers' own scoring rules where they differ from the common protocols; every choice is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from common.metrics.accuracy import edit_distance
from common.metrics.protocols import PROTOCOL_36
from common.text.normalise import adapt_to_charset


class WordScore(NamedTuple):
    """One word: normalised prediction and label, whether they are equal, edit distance, 1-NED in [0, 1]."""

    prediction: str
    label: str
    correct: bool
    edits: int
    similarity: float


def score_word(
    prediction: str, label: str, normalise: Callable[[str], str], empty_similarity: float = 0.0
) -> WordScore:
    """Compare after `normalise`; the similarity is `empty_similarity` as soon as either word is empty (SIGA R's
    rule: 0).
    """
    prediction, label = normalise(prediction), normalise(label)
    edits = edit_distance(prediction, label)
    similarity = 1 - edits / max(len(prediction), len(label)) if prediction and label else empty_similarity
    return WordScore(prediction, label, prediction == label, edits, similarity)


def siga_scores(predictions: Sequence[str], labels: Sequence[str]) -> tuple[float, float, list[WordScore]]:
    """SIGA R's test rule (spec section 7): (accuracy in percent, mean 1-NED in [0, 1], the words).

    Both sides are lower-cased and cut to [0-9a-z]; nothing is skipped, so an empty label is matched by an empty
    prediction.
    """
    words = [
        score_word(prediction, label, PROTOCOL_36.normalise)
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    count = max(len(words), 1)
    return 100 * sum(word.correct for word in words) / count, sum(word.similarity for word in words) / count, words


class SetMetrics(NamedTuple):
    """PARSeq's and SSM's figures of one set: percent, percent, percent, characters; over `samples` words."""

    samples: int
    accuracy: float
    one_minus_ned: float
    confidence: float
    label_length: float


def ssm_metrics(
    predictions: Sequence[str], labels: Sequence[str], confidences: Sequence[float], charset: str
) -> SetMetrics:
    """SSM's test figures (spec section 7): predictions pass the charset adapter, labels have passed it already.

    `label_length` is the mean length of the adapted prediction, as in the original's table. Raises ValueError
    without words.
    """
    if not labels:
        raise ValueError("no words: the figures of an empty set are undefined")
    adapted = [adapt_to_charset(prediction, charset) for prediction in predictions]
    distance = sum(
        edit_distance(prediction, label) / max(len(prediction), len(label), 1)
        for prediction, label in zip(adapted, labels, strict=True)
    )
    count = len(labels)
    correct = sum(prediction == label for prediction, label in zip(adapted, labels))
    return SetMetrics(
        count,
        100 * correct / count,
        100 * (1 - distance / count),
        100 * sum(confidences) / count,
        sum(map(len, adapted)) / count,
    )


def combine(sets: Sequence[SetMetrics]) -> SetMetrics:
    """The `Combined` row: every figure averaged with the sets' sample counts as weights."""
    total = sum(one.samples for one in sets)
    if not total:
        raise ValueError("no words: the figures of an empty set are undefined")
    return SetMetrics(total, *(sum(one.samples * one[column] for one in sets) / total for column in range(1, 5)))


def dig_normalise(text: str) -> str:
    """What DiG compares, whatever its charset: [0-9a-zA-Z], lower-cased after the cut."""
    return "".join(character for character in text if character.isascii() and character.isalnum()).lower()


def dig_f_measure(prediction: str, label: str, epsilon: float = 1e-5) -> float:
    """F-measure of the *sets* of characters of two normalised words, in [0, 1): DiG's recognition_fmeasure."""
    found, wanted = set(prediction), set(label)
    hits = len(found & wanted)
    precision, recall = hits / (len(found) + epsilon), hits / (len(wanted) + epsilon)
    return 2 * precision * recall / (precision + recall + epsilon)


class DigScores(NamedTuple):
    """DiG's figures of a batch: shares in [0, 1], and the sum of edit distances."""

    accuracy: float
    f_measure: float
    edit_distance: int


def dig_scores(predictions: Sequence[str], labels: Sequence[str]) -> DigScores:
    """Means over the pairs after `dig_normalise` (spec section 7). Raises ValueError without words."""
    if not labels:
        raise ValueError("no words: the figures of an empty set are undefined")
    words = [
        score_word(prediction, label, dig_normalise) for prediction, label in zip(predictions, labels, strict=True)
    ]
    f_measure = sum(dig_f_measure(word.prediction, word.label) for word in words) / len(words)
    return DigScores(sum(word.correct for word in words) / len(words), f_measure, sum(word.edits for word in words))
