"""Metadata files and checkpoints as they should not be: one line each that names the file, whatever it holds."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import main
from common.errors import UserError
from common.report.finished import Finished
from common.report.metrics import read_metrics
from common.reproduce.runner import _stamp
from common.train.checkpoint import load, read_card
from common.train.log import MetricsLog, truncate_log
from tests.common.lmdbs import encoded, noise

OK = {"model": "strlab/compact", "options": {}}


def with_options(model: str = "siga/TRBA_small", **options: object) -> str:
    return json.dumps({"model": model, "options": options})


FORMS: dict[str, str | bytes] = {
    "empty": "",
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "a text": '"strlab/compact"',
    "no model": "{}",
    "model is null": '{"model": null}',
    "model is a list": '{"model": ["a"]}',
    "no name": '{"model": ""}',
    "an unknown model": '{"model": "siga/NOPE"}',
    "another path": '{"model": "../../etc/passwd"}',
    "options are a list": '{"model": "strlab/compact", "options": [1]}',
    "an unknown option": with_options("strlab/compact", nonsense=1),
    "NaN": '{"model": "strlab/compact", "options": {"charset": NaN}}',
    "a charset that is a number": with_options("strlab/compact", charset=3),
    "no charset": with_options("strlab/compact", charset=""),
    "a charset that is a list": with_options(character=["a"]),
    "UTF-16": json.dumps(OK).encode("utf-16"),
    "Latin-1": b'{"model": "caf\xe9"}',
    "zero bytes": b"\0" * 100,
    "bytes": bytes(range(256)),
    "deeply nested": "[" * 100_000,
    "cut": '{"model": "strlab/co',
    "two objects": '{"model": "strlab/compact"}{"model": "x"}',
    "a huge number": '{"model": "strlab/compact", "options": {}, "x": ' + "9" * 10_000 + "}",
    "a size that is a text": with_options(image_size="x"),
    "a negative size": with_options(image_size=[-1, 5]),
    "a huge size": with_options(hidden_size=10**12),
    "a length that is a text": with_options(batch_max_length="25"),
    "a length below 1": with_options("dig/simmim_vit_micro_patch8_32x128", max_len=-1),
    "no length": with_options("mgpstr/mgp_str_tiny_patch4_3_32_128", batch_max_length=None),
    "three for a size": with_options("ssm/PARSeq", img_size=3),
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save({"a.weight": torch.zeros(2, 2)}, path)
    path.with_name("x.png").write_bytes(encoded(noise(1)))
    return path


def read(checkpoint: Path, weights: Path, capsys, *more: str) -> str:
    """The one line that `strlab read` ends with."""
    capsys.readouterr()
    assert main(["read", "--checkpoint", str(checkpoint), str(weights.with_name("x.png")), *more]) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ") and out.err.count("\n") == 1 and len(out.err) < 700, out.err
    return out.err


@pytest.fixture
def copy(weights: Path, tmp_path: Path) -> Path:
    (tmp_path / "x.pth").symlink_to(weights)
    return tmp_path / "x.pth"


@pytest.mark.parametrize("name", FORMS)
def test_metadata(name: str, copy: Path, weights: Path, capsys) -> None:
    content = FORMS[name]
    copy.with_name("x.pth.json").write_bytes(content.encode() if isinstance(content, str) else content)
    assert str(copy.parent) in read(copy, weights, capsys) or "--model" in name or "model" in name or "path" in name


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [folder, loop, nowhere, device, os.mkfifo], ids=lambda make: make.__name__)
def test_what_is_no_file(make, copy: Path, weights: Path, capsys) -> None:
    make(copy.with_name("x.pth.json"))
    assert "x.pth.json: no readable metadata" in read(copy, weights, capsys)


def test_a_byte_order_mark_and_a_large_file_are_fine(copy: Path) -> None:
    copy.with_name("x.pth.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(OK).encode())
    assert read_card(copy) == OK
    copy.with_name("x.pth.json").write_text(json.dumps({**OK, "note": "a" * 3_000_000}))
    assert len(read_card(copy)["note"]) == 3_000_000


CHECKPOINTS = {
    "a list": [1, 2], "a number": 3, "None": None, "nothing": {}, "a tensor": torch.zeros(3), "numbers": {1: 2},
    "bytes for names": {b"a": torch.zeros(1)}, "deep": {"state_dict": {"m": {"x": 1}}}, "no dict": {"state_dict": 3.0},
    "other weights": {"a": torch.zeros(1)},
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_other_content(name: str, weights: Path, tmp_path: Path, capsys) -> None:
    torch.save(CHECKPOINTS[name], tmp_path / "c.pth")
    assert "c.pth" in read(tmp_path / "c.pth", weights, capsys, "--model", "siga/TRBA_small")


def test_arrays_of_objects_are_refused_and_of_numbers_are_not(tmp_path: Path) -> None:
    torch.save({"a": np.arange(3.0), "b": np.float64(2)}, tmp_path / "numbers.pth")
    assert load(tmp_path / "numbers.pth")["b"] == 2
    for kind in (object, "S3", "U3", "M8[s]", [("x", "f4")]):
        torch.save({"a": np.zeros(2, kind)}, tmp_path / "others.pth")
        with pytest.raises(UserError, match=r"others\.pth: refused"):
            load(tmp_path / "others.pth")


BROKEN = [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"9" * 5000]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_notes_of_runs(content: bytes, tmp_path: Path) -> None:
    """A note that this library wrote, damaged: a line that names it, or as if it were not there; never a traceback."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "eval.json").write_bytes(content)
    with pytest.raises(UserError, match=r"eval\.json: (not readable as JSON|it holds a)"):
        _ = Finished(**{**dict.fromkeys(field.name for field in fields(Finished)), "out": tmp_path}).evaluation
    for name in ("finished.json", "metrics.jsonl", "log.txt", "stamp.json"):
        (tmp_path / name).write_bytes(content + b'\n{"step": 3, "epoch": 1, "loss": 1.0}\n{"step": null}\n')
    with pytest.raises(UserError, match=r"finished\.json"):
        Finished.load(tmp_path)
    assert {"step": 3, "epoch": 1, "loss": 1.0} in read_metrics(tmp_path / "metrics.jsonl")
    MetricsLog(tmp_path / "metrics.jsonl", 5)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    truncate_log(tmp_path / "log.txt", 2)
    assert (tmp_path / "log.txt").read_text().count("\n") == 1
    assert _stamp(tmp_path / "stamp.json", "x", []) is None
