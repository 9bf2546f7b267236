"""Protocols, edit distances, accumulated scores, the papers' rules."""

from __future__ import annotations

import math

import pytest

from common.metrics.accuracy import Scores, character_error_rate, one_minus_ned
from common.metrics.papers import combine, dig_scores, siga_scores, ssm_metrics
from common.metrics.protocols import PROTOCOL_36, accuracy_36, accuracy_62, accuracy_94
from common.text.charset import CHARSET_36


def test_three_protocols_differ_where_they_should():
    predictions, labels = ["Hello", "its", "caf", "x"], ["hello", "it's", "café", "!!"]
    assert accuracy_36(predictions, labels) == 1.0  # "!!" has nothing to compare and is skipped
    assert accuracy_62(predictions, labels) == pytest.approx(2 / 3)
    assert accuracy_94(predictions, labels) == pytest.approx(1 / 4)
    assert PROTOCOL_36.accuracy(predictions, labels)[1] == 3
    assert math.isnan(accuracy_36([], []))


def test_edit_distance_measures():
    assert one_minus_ned("kitten", "sitting") == pytest.approx(4 / 7)
    assert one_minus_ned("", "") == 1.0 and one_minus_ned("", "a") == 0.0
    assert character_error_rate(["kitten", "ab"], ["sitting", "ab"]) == pytest.approx(3 / 9)
    assert math.isnan(character_error_rate([""], [""]))


def test_scores_totals_weighted_and_not():
    scores = Scores()
    scores.add("A", ["a", "b", "c", "x"], ["a", "b", "c", "d"], [0.5, 0.5, 1.0, 1.0])
    scores.add("B", ["Q"], ["q"])
    scores.add("C", [""], ["?"])
    scores.add_bad("B", 2)
    rows = {row.name: row for row in scores.rows()}
    assert rows["A"].accuracy["36"] == 75.0 and rows["A"].confidence == 75.0 and rows["B"].bad == 2
    assert rows["B"].accuracy == {"36": 100.0, "62": 0.0, "94": 0.0} and math.isnan(rows["B"].confidence)
    assert rows["C"].counted["36"] == 0 and rows["C"].filtered["36"] == 1 and rows["C"].counted["94"] == 1
    assert scores.weighted().accuracy["36"] == 80.0 and scores.unweighted().accuracy["36"] == 87.5
    assert scores.weighted(["A"]).samples == 4 and scores.weighted().samples == 6


def test_scores_merge_equals_one_process():
    pairs = [("a", "a"), ("b", "c"), ("", "!"), ("D", "d")]
    whole, parts = Scores(), Scores()
    whole.add("S", *zip(*pairs), [0.5] * 4)
    for start in (0, 2):
        part = Scores()
        part.add("S", *zip(*pairs[start : start + 2]), [0.5] * 2)
        parts.merge(part.state())
    assert whole.rows() == parts.rows()


def test_empty_words_in_the_papers_rules():
    accuracy, similarity, words = siga_scores(["", "a"], ["!", "a"])
    assert accuracy == 100.0 and similarity == 0.5 and words[0].correct
    assert dig_scores(["", "ab"], ["??", "ba"]).accuracy == 0.5
    for rule in (lambda: dig_scores([], []), lambda: ssm_metrics([], [], [], CHARSET_36), lambda: combine([])):
        with pytest.raises(ValueError, match="no words"):
            rule()


def test_combined_row_weighs_by_samples():
    first = ssm_metrics(["Ab", "c"], ["ab", "d"], [0.5, 0.5], CHARSET_36)
    second = ssm_metrics(["e"], ["e"], [1.0], CHARSET_36)
    assert first == (2, 50.0, 50.0, 50.0, 1.5)
    assert combine([first, second])[:2] == (3, pytest.approx(200 / 3))
