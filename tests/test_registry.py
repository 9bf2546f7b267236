"""A thing registered is a thing tested: every row is built, runs, and says what it is."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from common import registry
from common.infer.recognizer import open_recognizer
from common.registry import ModelRow

ROWS = registry.rows()


def built(row: ModelRow) -> torch.nn.Module:
    """The row's module: small where it has test options, on the meta device where it is large."""
    device = "meta" if row.meta and not row.test_options else "cpu"
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return row.make(**row.test_options)


def test_every_project_that_is_there_can_be_imported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.rows.cache_clear()
        assert registry.rows()


def test_names_are_unique_and_have_a_project() -> None:
    names = [row.name.lower() for row in ROWS]
    assert len(set(names)) == len(names)
    assert all(
        re.fullmatch(r"[a-z]+/[\w.+-]+", row.name) and row.project in registry.OWN | registry.project_modules()
        for row in ROWS
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_it_is(row: ModelRow) -> None:
    height, width = row.image_size
    assert height > 0 and width > 0 and row.kind in ("recogniser", "pre-trainer", "generator")
    assert len(row.mean) == len(row.std) and all(value > 0 for value in row.std)
    assert all(weights.licence for weights in row.weights), "published weights come with their terms"
    if row.kind == "recogniser":
        assert len(set(row.charset)) == len(row.charset) >= 10 and row.open is not None
        assert callable(registry.resolve(row.open))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_builds(row: ModelRow) -> None:
    module = built(row)
    parameters = list(module.parameters())
    assert parameters and any(parameter.requires_grad for parameter in parameters)
    names = [name for name, _ in module.named_parameters()]
    assert len(set(names)) == len(names)
    if not any(parameter.is_meta for parameter in parameters):
        assert all(torch.isfinite(parameter).all() for parameter in parameters if parameter.is_floating_point())


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.kind == "recogniser" and (row.test_options or not row.meta)],
    ids=lambda row: row.name,
)
def test_a_small_recogniser_reads(row: ModelRow, tmp_path: Path) -> None:
    """A checkpoint with random weights opens, reads a batch, and reads the same alone."""
    torch.manual_seed(0)
    checkpoint = tmp_path / "random.pth"
    torch.save(built(row).state_dict(), checkpoint)
    recognizer = open_recognizer(checkpoint, row.name, "cpu", row.test_options)
    assert recognizer.image_size[0] > 0 and set(recognizer.charset) <= set(map(chr, range(33, 0x30000)))
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 60, 3), dtype=np.uint8)
    together = recognizer(list(images), attention=True)
    for image, found in zip(images, together):
        (alone,) = recognizer([image])
        assert alone.text == found.text and alone.confidence == pytest.approx(found.confidence, abs=1e-4)
        assert 0 <= found.confidence <= 1 and all(0 <= value <= 1.0001 for value in found.char_confidences)
        assert found.attention is None or np.asarray(found.attention).ndim in (2, 3)


def test_what_a_single_project_offers() -> None:
    assert registry.offered("paint").paint and registry.offered("no_such_module") is None
