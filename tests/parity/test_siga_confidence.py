"""T's validator: strings, confidences, five accuracies and the loss, from logits made by the golden's recipe."""

from __future__ import annotations

import json

import pytest
import torch

from projects.siga.evaluate import SetResult, decode, most_confident, share_loss
from projects.siga.model.build import make_codec
from tests.parity import harness

TOLERANCE = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = harness.case_files(metafunc.config.getoption("--goldens"), "siga", "*confidence*.json")
    metafunc.parametrize("path", paths, ids=[path.stem for path in paths])


@pytest.fixture
def case(path, request):
    """(golden, codec, logits [n, 26, 38] by head)."""
    golden, fill = json.loads(path.read_text()), harness.fill(request.config.getoption("--goldens"))
    codec = make_codec("T", golden.get("character", "0123456789abcdefghijklmnopqrstuvwxyz"), 25)
    targets = torch.from_numpy(codec.encode(golden["labels"])[0])[:, 1:]
    logits, n, stem = {}, len(golden["labels"]), golden["recipe"].split("'")[1].rpartition("/")[0]
    for head in golden["heads_order"]:
        values = torch.as_tensor(fill.images(f"{stem}/{head}", (n, 26, codec.num_classes), -1, 1)).clone() * 2.0
        boost = torch.as_tensor(fill.images(f"{stem}/{head}/boost", (n, 26), 0.2, 3.0))
        logits[head] = values.scatter_add(2, targets[..., None], 3 * boost[..., None].to(values.dtype))
    return golden, codec, logits


def test_readings_and_confidences(case) -> None:
    golden, codec, logits = case
    for head, rows in golden["rows"].items():
        ids = logits[head].argmax(dim=2).numpy()
        assert codec.raw_text(ids) == [row["raw"] for row in rows]
        for reading, row in zip(decode(codec, logits[head]), rows, strict=True):
            assert reading.text == row["pred"]
            assert reading.confidence == pytest.approx(row["confidence"], rel=TOLERANCE, abs=1e-9)


def test_accuracies_and_loss(case) -> None:
    golden, codec, logits = case
    lists = [decode(codec, logits[head]) for head in golden["heads_order"]]
    columns = [*lists, [most_confident(list(readings)) for readings in zip(*lists)]]
    expected = next(value for key, value in golden.items() if key.startswith("accuracies"))
    for readings, accuracy in zip(columns, expected, strict=True):
        result = SetResult(len(readings), sum(r.text == label for r, label in zip(readings, golden["labels"])))
        assert result.accuracy == pytest.approx(accuracy, abs=1e-6)
    loss = share_loss(codec, logits["share"], golden["labels"])
    assert loss == pytest.approx(golden["valid_loss_on_share"], abs=TOLERANCE)
