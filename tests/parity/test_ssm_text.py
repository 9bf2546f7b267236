"""SSM's tables: labels, tokens, decoding, metrics, results table, model arguments, schedules."""

from __future__ import annotations

import re

import pytest
import torch

from common.metrics.papers import SetMetrics, ssm_metrics
from common.text.charset import CHARSET_36, CHARSET_62, CHARSET_94
from common.text.codecs import CtcCodec, EosBosPadCodec
from common.text.normalise import adapt_to_charset
from common.train.schedule import momentum_cosine, warmup_cosine
from projects.ssm.finetune.data import label_rules
from projects.ssm.finetune.files import parse_model_args as parse_words
from projects.ssm.finetune.method import OneCycle, swa_factor
from projects.ssm.finetune.table import results_table
from projects.ssm.model.parseq import short_pool
from projects.ssm.model.pretrain_losses import feature_weight
from tests.parity import harness

CHARSETS = {"36": CHARSET_36, "62": CHARSET_62, "94": CHARSET_94}
FIXTURES = (
    "label_pipeline", "charset_adapter_uppercase_only", "tokenizer_encode", "tokenizer_decode", "metrics",
    "report_table", "parse_model_args", "pretrain_schedules", "onecycle", "swa_lr_factor", "perm_pool_4_mirrored",
)  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for name in FIXTURES:
        if name in metafunc.fixturenames:
            tables = [harness.load(path) for path in harness.case_files(goldens, "ssm", "*.json")]
            found = [t for t in tables if isinstance(t.meta, dict) and name in t.meta]
            metafunc.parametrize(name, [t.meta[name] for t in found], ids=[t.name for t in found])


def prepared(raw: str, charset: str, fold: bool) -> str | None:
    """The label as `WordDataset` makes it by these rules."""
    rules = label_rules(charset, 25, fold, fold)
    if len(rules["measure"](raw)) > rules["max_length"]:
        return None
    return rules["keep"](raw) or None


def test_labels(label_pipeline) -> None:
    for row in label_pipeline:
        for name, charset in CHARSETS.items():
            assert prepared(row["raw"], charset, True) == row[name], (row["raw"], name)
        assert prepared(row["raw"], CHARSET_94, False) == row["94_keep_ws_nonnorm"], row["raw"]


def test_upper_case_adapter(charset_adapter_uppercase_only) -> None:
    for raw, expected in charset_adapter_uppercase_only.items():
        charsets = ("0123456789ABCDEF", "ABCDEF")
        assert expected in {adapt_to_charset(raw, charset) for charset in charsets}


def test_encoding(tokenizer_encode) -> None:
    for row in tokenizer_encode:
        charset = CHARSETS[str(row["charset"])]
        codec, ctc = EosBosPadCodec(charset), CtcCodec(charset)
        assert (codec.vocabulary, codec.end, codec.start, codec.pad) == (
            row["vocab"], row["eos"], row["bos"], row["pad"],
        )  # fmt: skip
        assert codec.encode(row["labels"])[0].tolist() == row["ids"]
        assert ctc.num_classes == row["ctc_vocab"]
        assert ctc.encode(row["labels"])[0].tolist() == row["ctc_ids"]


def test_decoding(tokenizer_decode, pytestconfig) -> None:
    filler = harness.fill(pytestconfig.getoption("--goldens"))
    for row in tokenizer_decode:
        charset = CHARSETS[str(row["charset"])]
        codec = CtcCodec(charset) if row["ctc"] else EosBosPadCodec(charset)
        for number, case in enumerate(row["cases"]):
            ids = torch.tensor([case["argmax"]])
            found = codec.decode(ids.numpy(), probabilities(filler, row, number, case["argmax"]))[0]
            assert found.text == case["text"]
            assert found.confidence == pytest.approx(case["confidence"], rel=1e-5)
            # the published probabilities hold the end's
            assert row["ctc"] or min(len(found.char_confidences) + 1, len(case["argmax"])) == case["n_probs"]


def probabilities(filler, row: dict, number: int, argmax: list[int]):
    """The largest probability of every position by the stored recipe."""
    recipe = row["recipe"]
    # row i: uniform(0,0.1) from rng('<prefix>/decode/<cs>/<ctc>/<k>') …, then entry argmax[i] := 1 + 0.01 i, …
    name = re.search(r"rng\('([^']+)'\)", recipe).group(1)
    known = {"prefix": row["prefix"], "cs": row["charset"], "ctc": row["ctc"], "k": number}
    low, high = map(float, re.search(r"uniform\(([\d.]+),\s*([\d.]+)\)", recipe).groups())
    base, slope = map(float, re.search(r":= ([\d.]+) \+ ([\d.]+) i", recipe).groups())
    rng = filler.rng(re.sub(r"<(\w+)>", lambda found: str(known[found.group(1)]), name))
    values = rng.uniform(low, high, (len(argmax), row["charset"] + 1))
    for place, index in enumerate(argmax):
        values[place, index] = base + slope * place
    return (values / values.sum(-1, keepdims=True)).max(-1)[None]


def test_metrics(metrics) -> None:
    predictions, labels = zip(*(row[:2] for row in metrics["rows"]))
    figures = ssm_metrics(predictions, labels, [1.0] * len(labels), CHARSET_36)
    assert figures.accuracy == pytest.approx(metrics["accuracy"], rel=1e-6)
    assert figures.one_minus_ned == pytest.approx(metrics["one_minus_ned"], rel=1e-6)
    assert figures.label_length == pytest.approx(metrics["mean_label_length"], rel=1e-6)


def test_results_table(report_table) -> None:
    rows = {
        row["dataset"]: SetMetrics(
            row["num_samples"], row["accuracy"], row["ned"], row["confidence"], row["label_length"]
        )
        for row in report_table["rows"]
    }
    assert results_table(rows) == report_table["text"]


def test_model_arguments(parse_model_args) -> None:
    for case in parse_model_args:
        assert parse_words(case["args"]) == case["result"]


def test_pretraining_schedules(pretrain_schedules) -> None:
    for row in pretrain_schedules:
        rate = warmup_cosine(row["lr"], row["epochs"], row["warmup_epochs"], row["min_lr"])
        momentum = momentum_cosine(row["mm0"], row["epochs"])
        for t, lr, mm, alpha in zip(row["t"], row["lr_values"], row["mm_cosine"], row["alpha"]):
            assert rate(t) == pytest.approx(lr, rel=1e-9, abs=1e-15)
            assert momentum(t) == pytest.approx(mm, rel=1e-9)
            assert feature_weight(int(t)) == pytest.approx(alpha, abs=1e-12)


def test_one_cycle(onecycle) -> None:
    for row in onecycle:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=row["max_lr"])
        schedule = OneCycle(optimizer, [row["max_lr"]], row["total_steps"], row["pct_start"])
        for step in range(row["total_steps"]):
            if str(step) in row["lr_at_step"]:
                assert optimizer.param_groups[0]["lr"] == pytest.approx(row["lr_at_step"][str(step)], rel=1e-9)
            optimizer.step()
            if step + 1 < row["total_steps"]:
                schedule.step()


def test_swa_factor(swa_lr_factor) -> None:
    for warmup, start, expected in swa_lr_factor:
        assert swa_factor(warmup, start) == pytest.approx(expected, rel=1e-9)


def test_short_orders(perm_pool_4_mirrored) -> None:
    assert short_pool(4, True).tolist() == perm_pool_4_mirrored
