"""Labels that a character set changes are counted, shown and limited."""

from __future__ import annotations

import pytest

from common.data.words import WordDataset
from common.errors import UserError
from common.text.charset import CHARSET_36
from common.text.coverage import Coverage, check_coverage, summed
from common.text.normalise import Normaliser, fold_case, keep_only
from tests.common.lmdbs import write_words


def counted(labels: list[str], normalise, **options) -> Coverage:
    coverage = Coverage(normalise, **options)
    for label in labels:
        coverage.count(label, normalise(label))
    return coverage


def test_what_is_counted() -> None:
    coverage = counted(["abc", "Abc", "a-b", "中文", "x中"], Normaliser(CHARSET_36, lower=True))
    assert (coverage.labels, coverage.foreign, coverage.empty, coverage.case_only) == (5, 3, 1, 1)
    assert coverage.characters == {"-": 1, "中": 2, "文": 1}
    assert coverage.line("MJ").startswith("MJ: 3 of 5 labels have characters outside the charset ('中' x 2")
    assert "1 become empty; 1 change in case only" in coverage.line("MJ")


def test_unknown_characters_count_where_they_are_kept() -> None:
    """DiG keeps every character and gives the foreign ones the id UNKNOWN."""
    coverage = counted(["abc", "日本"], str, charset=CHARSET_36)
    assert (coverage.foreign, coverage.empty) == (1, 0)


def test_blanks_that_are_removed_on_purpose_do_not_count() -> None:
    rule = Normaliser(CHARSET_36, whitespace=True)
    assert counted(["a b"], rule, spare_blanks=True).foreign == 0
    assert counted(["a b"], Normaliser(CHARSET_36)).characters == {" ": 1}


def test_only_fifteen_characters_are_shown() -> None:
    coverage = counted(["".join(map(chr, range(0x4E00, 0x4E00 + 40)))], Normaliser("abc"))
    assert coverage.line("x").count(" x 1") == 15 and "…" in coverage.line("x")


def test_a_run_stops_above_the_limit() -> None:
    sources = {"a": counted(["ab"] * 18, Normaliser("abc")), "b": counted(["ab", "中文"], Normaliser("abc"))}
    assert len(check_coverage(sources, 0.05)) == 2
    with pytest.raises(UserError, match=r"1 of 20 \(5\.0%, limit 4\.0%\).*'中' x 1.*--character.*--unsupported_share"):
        check_coverage(sources, 0.04, "--character")
    assert summed(sources.values()).labels == 20


def test_marks_that_the_papers_delete_do_not_stop_a_run() -> None:
    """With 36 characters every published loader drops punctuation; with some marks in the charset the others count."""
    labels = ["don't", "2,000", "ab"]
    plain, marked = counted(labels, Normaliser(CHARSET_36)), counted(labels, Normaliser(CHARSET_36 + "'"))
    assert (plain.foreign, plain.damaged, marked.damaged) == (2, 0, 1)
    assert "2 of 3 labels" in check_coverage({"a": plain})[0]
    with pytest.raises(UserError, match="1 of 3"):
        check_coverage({"a": marked})


def test_nothing_but_empty_labels_is_refused_whatever_the_limit() -> None:
    with pytest.raises(UserError, match="all 2 are empty"):
        check_coverage({"a": counted(["中", "文"], Normaliser("abc"))}, 1.0)


def test_a_charset_of_capitals_folds_labels_up() -> None:
    plates = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert fold_case("ab12", plates) == "AB12" and fold_case("AB12", CHARSET_36) == "ab12"
    assert keep_only("京AB00CD", plates, lower=True) == "AB00CD"
    assert fold_case("Ab", "0123") == "ab"  # no letters: nothing to take after
    assert Normaliser(plates, lower=True)("ab00") == "AB00"


def test_data_sets_count_their_labels(tmp_path) -> None:
    folder = write_words(tmp_path / "words", ["abc", "Abc", "中文"])
    words = WordDataset([folder], keep=Normaliser(CHARSET_36, lower=True))
    [(name, coverage)] = words.coverage().items()
    assert name == str(folder)
    assert (coverage.labels, coverage.foreign, coverage.empty, coverage.case_only) == (3, 1, 1, 1)
    assert WordDataset([folder]).coverage() == {}
    with pytest.raises(UserError, match=r"no usable sample \(3 stored, 3 empty\); the charset has none of 'b' x 2"):
        WordDataset([folder], keep=Normaliser("x"))
    known = WordDataset([folder], charset=CHARSET_36 + "A", on_unsupported="skip")
    assert known.counts["unsupported"] == 1 and next(iter(known.coverage().values())).empty == 0
