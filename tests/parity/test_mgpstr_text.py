"""MGP-STR's label codes, fusion, box masks, mask loss, schedule and resize against the published code."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from common.text.codecs import Decoded
from common.train.schedule import cosine_restarts
from projects.mgpstr.box_masks import mask_from_boxes
from projects.mgpstr.data import fit, label_normaliser
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.fusion import decode_batch, fuse
from projects.mgpstr.model.losses import logits_loss, mask_loss
from tests.parity import harness, recipes


def codes_by_charset(case: harness.Case) -> bool:
    tables = case.meta.values() if isinstance(case.meta, dict) else ()
    return any(isinstance(table, dict) and {"characters", "num_class"} <= table.keys() for table in tables)


def rates_by_name(case: harness.Case) -> bool:
    return isinstance(case.meta, dict) and any(re.search(r"lr_[\d.]+", name) for name in case.meta)


KINDS = {
    "codes": ("*.json", codes_by_charset),
    "fusion": ("*.json", harness.rows_with("label", "char", "expected")),
    "box_loss": ("*.json", harness.rows_with("out", "target", "loss")),
    "schedule": ("*.json", rates_by_name),
    "box_masks": ("*.npz", harness.rows_with("boxes", "width", "height")),
    "resized": ("*.npz", harness.rows_with("recipe", "key")),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for fixture, (pattern, holds) in KINDS.items():
        if fixture in metafunc.fixturenames:
            paths = harness.cases_of(goldens, "mgpstr", pattern, holds)
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem)


def test_label_codes(codes) -> None:
    golden = json.loads(codes.read_text())
    made = {}
    for name, table in golden.items():
        if name == "decode":
            continue
        made[name] = LabelCodes(table["characters"])
        assert made[name].char.num_classes == table["num_class"]
        # the published normaliser loses the backslash (spec 9.5); the one here has an option to
        sensitive = table["characters"] != table["characters"].lower()
        normalise = label_normaliser(table["characters"], sensitive, published=True)
        for row in table["rows"]:
            check_row(made[name], normalise, row)
    for row in golden.get("decode", []):
        code, ids = next(iter(made.values()))[row["kind"]], row["ids"]
        text = code.raw_text(np.array([ids]))[0] if row["kind"] == "char" else code.decode_text(ids)
        assert text == row["text"]


def check_row(codes: LabelCodes, normalise, row: dict) -> None:
    label = normalise(row["raw"])
    if "label" in row:
        assert label == row["label"]
    if "error" in row:
        with pytest.raises(ValueError):
            codes.encode([label])
        return
    targets = codes.encode([label])
    ones = np.ones((1, codes.length - 1), dtype=np.float32)
    for name in ("char", "bpe", "wp"):
        ids = targets[name][:, 1:]
        assert targets[name][0].tolist() == row[name], (row["raw"], name)
        text = codes.char.raw_text(ids)[0] if name == "char" else codes[name].decode_text(ids[0])
        assert text == row[f"{name}_decode"], (row["raw"], name)
        assert codes[name].decode(ids, ones)[0].text == row[f"{name}_string"], (row["raw"], name)


def test_fusion(fusion) -> None:
    golden = json.loads(fusion.read_text())
    codes = LabelCodes("0123456789abcdefghijklmnopqrstuvwxyz", len(golden[0]["char"]["ids"]) - 2)
    ids, probs = (
        {name: np.array([row[name][key][1:] for row in golden], dtype) for name in ("char", "bpe", "wp")}
        for key, dtype in (("ids", np.int64), ("probs", np.float32))
    )
    for row, fused in zip(golden, decode_batch(codes, ids, probs)):
        expected = row["expected"]
        for name, out in expected["out"].items():
            assert fused.candidates[name].text == out["string"], (row["label"], name)
            # the golden's logits were float32 logarithms of its probabilities: 5e-4 is what is left of a product
            assert fused.candidates[name].confidence == pytest.approx(out["score"], abs=5e-4)
            assert (fused.candidates[name].text == row["label"]) == bool(expected["correct"][name])
        if expected["fused_string"] is not None:
            assert fused.text == expected["fused_string"], row["label"]
        assert (fused.text == row["label"]) == bool(expected["correct"]["fused"]), row["label"]
        assert fused.candidates["char"].confidence == pytest.approx(expected["returned_confidence"], abs=5e-4)
        if "valid_loss" in expected:
            check_validation_loss(codes, row)


def check_validation_loss(codes: LabelCodes, row: dict) -> None:
    """The logits were log p at the id and log((1 - p) / (C - 1)) elsewhere, for C classes."""
    probability, classes = torch.tensor(row["char"]["probs"])[:, None], codes.char.num_classes
    logits = ((1 - probability) / (classes - 1)).log().repeat(1, classes)
    logits.scatter_(1, torch.tensor(row["char"]["ids"])[:, None], probability.log())
    target = torch.from_numpy(codes.encode([row["label"]])["char"])
    assert logits_loss(logits[None], target).item() == pytest.approx(row["expected"]["valid_loss"], rel=1e-4, abs=5e-4)


def test_ties_go_to_the_earlier_granularity() -> None:
    same = {name: Decoded(name, 0.5, ()) for name in ("char", "bpe", "wp")}
    assert (fuse(same).text, fuse(same).winner) == ("char", "char")
    none = fuse({name: Decoded("x", 0.0, ()) for name in same})
    assert none.text is None and none.confidence == 0


def test_box_masks(box_masks) -> None:
    case = harness.load(box_masks)
    for row, golden in zip(case.meta, case.arrays["masks"]):
        boxes = [(*points[0], *points[1], character) for points, character in row["boxes"]]
        mask = mask_from_boxes(boxes, row["width"], row["height"], golden.shape)
        assert np.array_equal(mask, golden > 0), row


def test_mask_loss(box_loss) -> None:
    for row in json.loads(box_loss.read_text()):
        out = torch.tensor(row["out"], dtype=torch.float32, requires_grad=True)
        target = torch.tensor(row["target"])
        loss = mask_loss(out, target, weights=tuple(row.get("weights", (1, 2))))
        loss.backward()
        assert loss.item() == pytest.approx(row["loss"], rel=1e-6, abs=1e-6)
        assert out.grad.tolist() == pytest.approx(row["grad"], rel=1e-6, abs=1e-6)
        assert mask_loss(out, target, weights=(1, 1)).item() == pytest.approx(row["unweighted"], rel=1e-6, abs=1e-6)


def test_learning_rates(schedule) -> None:
    for name, table in json.loads(schedule.read_text()).items():
        base = float(re.search(r"lr_([\d.]+)", name).group(1))
        period = int(float(re.search(r"T0_([\de]+)", name).group(1)))
        learning_rate = cosine_restarts(base, period)
        steps = table.items() if isinstance(table, dict) else enumerate(table)
        for step, golden in steps:
            # near the end of a cycle 1 + cos cancels, in the original's numbers as in ours
            assert math.isclose(learning_rate(int(step)), golden, rel_tol=1e-9, abs_tol=1e-15), (name, step)


def test_resize(resized, request) -> None:
    case, fill = harness.load(resized), harness.fill(request.config.getoption("--goldens"))
    for row in case.meta:
        # "(images('…', (20, 150, 3), 0, 1) * 255).astype(uint8)"
        grey = recipes.number(r"\* N", row["recipe"], 1)
        image = (recipes.picture(fill, row["recipe"]) * np.float32(grey)).astype(np.uint8)
        for pad, key in ((False, row["key"]), (True, f"{row['key']}_pad")):
            size = case.arrays[key].shape[1:]
            assert np.array_equal(fit(image, size, pad).transpose(2, 0, 1), case.arrays[key]), key
