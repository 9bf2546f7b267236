"""Charset files in every form in which people have them."""

from __future__ import annotations

import pytest

from common.errors import UserError
from common.text.charset import described, read_charset


def read(tmp_path, content: bytes) -> str:
    path = tmp_path / "charset.txt"
    path.write_bytes(content)
    return read_charset(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0\n1\n中\n".encode(), "01中"),
        ("0\n1\n中".encode("utf-8-sig"), "01中"),  # a byte-order mark belongs to no line
        (b"0 \r\n1 \r\n2\r\n", "012"),
        (b"a\n \nb\n\n\n", "a b"),  # a line of one blank is the blank
        ("e\u0301\nx\n".encode(), "\u00e9x"),
        (b"0123abc\n", "0123abc"),  # all on one line
    ],
)
def test_forms(tmp_path, content: bytes, expected: str) -> None:
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("零\n一\n".encode("gbk"), "not UTF-8.*GBK.*iconv"),
        ("零\n一\n".encode("utf-16"), "not UTF-8.*UTF-16"),
        (b"a\nbc\nd\n", r"line 2 holds 2 characters \('bc'\)"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", r"'a' stands twice \(lines 1, 3\)"),
        (b"", "is empty"),
    ],
)
def test_refusals_name_file_and_line(tmp_path, content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=rf"charset\.txt.*{told}"):
        read(tmp_path, content)


def test_a_missing_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: the charset file cannot be read"):
        read_charset(tmp_path / "gone.txt")


def test_description() -> None:
    assert described("京沪a") == "3 characters, from '京' to 'a'"
