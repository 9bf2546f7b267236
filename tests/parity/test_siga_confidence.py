"""T's validator: strings, confidences, five accuracies and the loss, from logits made by the golden's recipe."""

from __future__ import annotations

import json
import re

import pytest
import torch

from projects.siga.evaluate import SetResult, decode, most_confident, share_loss
from projects.siga.model.build import make_codec
from tests.parity import harness

TOLERANCE = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    paths = harness.cases_of(goldens, "siga", "*.json", lambda case: "heads_order" in case.meta)
    metafunc.parametrize("path", paths, ids=[path.stem for path in paths])


@pytest.fixture
def case(path, request):
    """(golden, codec, logits [n, 26, 38] by head)."""
    golden, fill = json.loads(path.read_text()), harness.fill(request.config.getoption("--goldens"))
    charset = golden.get("character", "0123456789abcdefghijklmnopqrstuvwxyz")
    codec = make_codec("T", charset, golden.get("batch_max_length", 25))
    targets = torch.from_numpy(codec.encode(golden["labels"])[0])[:, 1:]
    logits, n, recipe = {}, len(golden["labels"]), golden["recipe"]
    # images('…/HEAD',(n,26,38),-1,1)*2.0; then … += 3*images('…/HEAD/boost',(n,26),0.2,3.0)[b,t]
    (stem, _, *limits), (boost_stem, _, *boost_limits) = (
        (name, shape, *map(float, bounds.split(",")))
        for name, shape, bounds in re.findall(r"images\('([^']+)',\(([^)]+)\),([-\d.,]+)\)", recipe)
    )
    scale = float(re.search(r"\)\*([\d.]+)", recipe).group(1))
    gain = float(re.search(r"([\d.]+)\*images", recipe).group(1))
    for head in golden["heads_order"]:
        shape = (n, targets.shape[1], codec.num_classes)
        values = torch.as_tensor(fill.images(stem.replace("HEAD", head), shape, *limits)).clone() * scale
        boost = torch.as_tensor(fill.images(boost_stem.replace("HEAD", head), shape[:2], *boost_limits))
        logits[head] = values.scatter_add(2, targets[..., None], gain * boost[..., None].to(values.dtype))
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
