"""Reading golden cases: arrays, their `meta`, the recipe that fills weights, and comparison with a stated tolerance.

A parity test asks `pytest_generate_tests` for its cases by file pattern, so a folder with further cases of the same
kind (other names, inputs, options) is run as it is: nothing here knows a case by name.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tests.conftest import ROOT


@dataclass(frozen=True)
class Case:
    """One golden file: `name` is its stem, `arrays` the npz members, `meta` the JSON next to them."""

    name: str
    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict

    @property
    def manifest_path(self) -> Path:
        return self.path.parent / f"{self.name}.manifest.json"

    @property
    def has_manifest(self) -> bool:
        return self.manifest_path.is_file()

    @property
    def manifest(self) -> dict:
        return json.loads(self.manifest_path.read_text())


def fill(goldens: Path) -> ModuleType:
    """The module that makes weights and images from names (`fill.py` next to the project folders, or the committed
    one).
    """
    path = goldens / "fill.py"
    path = path if path.is_file() else ROOT / "tests" / "goldens" / "fill.py"
    spec = importlib.util.spec_from_file_location("golden_fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_files(goldens: Path, project: str, pattern: str = "*.npz") -> list[Path]:
    return sorted((goldens / project).glob(pattern))


def cases_of(goldens: Path, project: str, pattern: str, holds: Callable[[Case], bool]) -> list[Path]:
    """The files of a kind, told by their content: `holds` is asked with each case. Manifests are none."""
    paths = [path for path in case_files(goldens, project, pattern) if not path.name.endswith(".manifest.json")]
    return [path for path in paths if holds(load(path))]


def rows_with(*keys: str) -> Callable[[Case], bool]:
    """Whether a case's meta is a list of rows that have these keys."""

    def holds(case: Case) -> bool:
        rows = case.meta
        return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and rows[0].keys() >= set(keys)

    return holds


def load(path: Path) -> Case:
    if path.suffix == ".json":
        return Case(path.stem.removesuffix(".manifest"), path, {}, json.loads(path.read_text()))
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays.pop("meta"))) if "meta" in arrays else {}
    return Case(path.stem, path, arrays, meta)


def to_numpy(value) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def assert_close(actual, expected, *, absolute: float = 0.0, relative_to_absmax: float = 0.0, what: str = "") -> None:
    """Largest difference at most `absolute` + `relative_to_absmax` * max|expected|; shapes equal."""
    actual, expected = to_numpy(actual).astype(np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, golden {expected.shape}"
    if not expected.size:
        return
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected)), f"{what}: finite values differ"
    finite = np.isfinite(expected)
    difference = np.abs(actual - expected)[finite].max(initial=0)
    allowed = absolute + relative_to_absmax * np.abs(expected[finite]).max(initial=0)
    assert difference <= allowed, f"{what}: off by {difference:.3g}, allowed {allowed:.3g}"
