"""Write `tests/goldens/siga/r_rba.npz`: SIGA R without its rectification, computed by our own float64.

The published code has no such model. The case exists because the spline's float32 noise hides small errors of all that
follows it (a batch norm's eps, for one). It says that nothing has changed, not that it was right: the parts are those
that `r_trba` compares with the published code.

    python -m tests.parity.own_siga_case
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.parity import harness
from tests.parity.noise import float64
from tests.parity.test_siga_models import SigaCase

GOLDENS = ROOT / "tests" / "goldens"
NAME = "r_rba"


def blank(source: harness.Case) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays to be filled and the meta of the new case, from the one with a rectification."""
    arrays = {key: value for key, value in source.arrays.items() if "rectified" not in key}
    kept = ("scaled_after_fill", "labels", "mask_recipe", "bn")
    meta = {key: source.meta[key] for key in kept} | {"model_name": "RBA", "source": "own float64"}
    meta["tensors"] = {
        key: {what: described[what] for what in ("shape", "flat_step")}
        for key, described in source.meta["tensors"].items()
        if key in arrays
    }
    meta["image"] = [f"siga/{NAME}/image", source.meta["image"][1]]
    for key in source.meta:
        if key.startswith(("losses_iter", "coefficient_iter", "total_iter", "grad_norms_iter")):
            meta[key] = source.meta[key]
    return arrays, meta


def write(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    np.savez_compressed(path, meta=json.dumps(meta), **arrays)


def main() -> None:
    arrays, meta = blank(harness.load(GOLDENS / "siga" / "r_trba.npz"))
    path = GOLDENS / "siga" / f"{NAME}.npz"
    write(path, arrays, meta)
    case = SigaCase(path, GOLDENS)
    case.model.double()
    with float64():
        outcomes = [compute(case.model, case.images.double()).frozen() for compute in (case.infer, case.teach)]
    infer, teach = outcomes
    for key, value in {**infer.tensors, **teach.tensors}.items():
        if key in arrays:
            arrays[key] = value.astype(np.float32)
    arrays["eval/share_argmax"] = infer.tensors["share"].argmax(-1)
    for name, value in teach.scalars.items():
        term, iteration = name.split(" ")
        if term == "total":
            meta[f"total_iter{iteration}"] = value
        else:
            meta[f"losses_iter{iteration}"][term] = value
    for iteration, norms in teach.gradients.items():
        meta[f"grad_norms_iter{iteration}"] = norms
    write(path, arrays, meta)


if __name__ == "__main__":
    main()
