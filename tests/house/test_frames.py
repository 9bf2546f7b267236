"""How many functions lie between `main` of a training script and the loss: the depth that a reader has to follow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.house.tree import ROOT
from tests.runs.scripts import SCRIPTS, write_words

MOST = 6
"""Frames of the library below `main`, down to the function that computes the loss."""
LOSSES = (
    "cross_entropy",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
METHODS = ("log_softmax", "logsumexp", "amax")
"""Methods of tensors by which losses that are written out begin."""


class Reached(BaseException):
    """The first loss of the training was called; no `except Exception` may swallow this."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names


def path_to_here() -> list[str]:
    """Names of the library's functions on the stack, from the script's `main` to the innermost."""
    names, frame = [], sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ("common", "projects"):
            place, name = file.relative_to(ROOT).as_posix(), frame.f_code.co_name
            if not name.startswith("<") and not place.startswith("common/losses/"):  # comprehensions; the loss itself
                names.append(f"{place}:{name}")
            if frame.f_code.co_name == "main":
                return names[::-1]
        frame = frame.f_back
    raise AssertionError(f"no main on the stack: {names}")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_few_frames_from_main_to_the_loss(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SCRIPTS[name]
    data, val = write_words(tmp_path / "train" / "words", 16), write_words(tmp_path / "val", 4)

    def probe(*_: object, **__: object) -> torch.Tensor:
        raise Reached(path_to_here())

    for loss in LOSSES:
        monkeypatch.setattr(functional, loss, probe)
    for method in METHODS:
        monkeypatch.setattr(torch.Tensor, method, probe)
    with pytest.raises(Reached) as met:
        script.main(script.command(data, val, tmp_path / "out"))
    assert len(met.value.names) - 1 <= MOST, met.value.names
