"""DiG's labels, item rule and command lines against the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common import flags
from common.text.charset import NAMED
from projects.dig import flags_finetune, flags_pretrain
from projects.dig.data import PublishedItems, first_samples, longest_word
from projects.dig.text import codec
from tests.common.lmdbs import write_words
from tests.parity import harness
from tests.parity.test_dig_tables import kind_of

# Published flags whose type or default differs here, and why.
DIFFERENT = {
    "train_url": "somebody's own path; it has no effect",
    "ctx_path": "somebody's own path; it has no effect",
    "use_seq_cls_token": "as normlize_target; it is refused",
    "normlize_target": "the published type takes any text for True; here no, false and 0 mean no",
    "voc_type": "pre-training: no effect, so its choices are not checked",
    "loss_feat_beta": "2 and 2.0",
    "image_alone_path": "the multi-machine script takes one path here and several are welcome",
    "use_mean_pooling": "the published default is None or True by the order of two flags; it has no effect",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--goldens")
    for kind in ("labels", "items"):
        if kind in metafunc.fixturenames:
            paths = [p for p in harness.case_files(folder, "dig", "*.json") if p.name != "cli.json"]
            found = {p.stem: content for p in paths if kind_of(content := json.loads(p.read_text())) == kind}
            metafunc.parametrize(kind, list(found.values()), ids=list(found))
    if "script" in metafunc.fixturenames:
        files = harness.case_files(folder, "dig", "cli.json")
        scripts = [(path, name) for path in files for name in json.loads(path.read_text())]
        metafunc.parametrize(("cli", "script"), scripts, ids=[name for _, name in scripts])


def test_labels(labels, tmp_path: Path) -> None:
    for voc_type, entry in labels["sets"].items():
        assert [*NAMED[voc_type], "EOS", "PADDING", "UNKNOWN"] == entry["classes"]
        for number, row in enumerate(entry["rows"]):
            writer = codec(voc_type, len(row["ids"]))
            folder = write_words(tmp_path / f"{voc_type}{number}", [row["word"], "second", "third"])
            keep = str.lower if voc_type == "LOWERCASE" else None
            dataset = PublishedItems([folder], max_length=longest_word(writer.max_length), keep=keep)
            batch = dataset.__getitems__([0])
            ids, lengths = writer.encode(batch.labels)
            assert (ids[0].tolist(), int(lengths[0])) == (row["ids"], row["length"]), row["word"]


def test_items(items, tmp_path: Path, capsys) -> None:
    writer = codec("ALLCASES_SYMBOLS", items["max_len"])
    folder = write_words(tmp_path / "words", items["words"], broken=items["undecodable_indices"])

    def dataset() -> PublishedItems:
        return PublishedItems([folder], max_length=longest_word(writer.max_length), decode_truncated=True)

    for row in items["rows"]:
        capsys.readouterr()
        batch = dataset().__getitems__([row["index"]])
        assert batch.labels == [row["returned"]]
        assert writer.encode(batch.labels)[1].tolist() == [row["length"]]
        assert capsys.readouterr().out.strip() == row["printed"]
    for number, length in items["num_samples_to_length"].items():
        words = dataset()
        first_samples(words, float(number))
        assert len(words) == length, number


def value_of(default: object) -> object:
    """A published default as a value; `math.inf` is the only expression."""
    return float("inf") if isinstance(default, dict) else default


def test_command_line(cli: Path, script: str) -> None:
    published = json.loads(cli.read_text())[script]
    tables = {
        "run_mae_pretraining_moco.py": (flags_pretrain.TABLE, ""),
        "run_class_finetuning.py": (flags_finetune.TABLE, ""),
        "run_mae_pretraining_moco_multiMachine.py": (flags_pretrain.TABLE, flags_pretrain.NODES),
    }
    table, variant = tables[script]
    parser = table.parser(script, "", variant)
    actions = {flag: action for action in parser._actions for flag in action.option_strings}
    for flag in published:
        if "set_defaults" in flag:
            for name, value in flag["set_defaults"].items():
                assert parser.get_default(name) == value
            continue
        for spelling in flag["flags"]:
            assert spelling in actions, spelling
            action = actions[spelling]
            name = flag.get("dest", spelling.lstrip("-"))
            assert action.dest == name
            if name in DIFFERENT:
                continue
            if "action" in flag:
                assert action.const == (flag["action"] == "store_true"), name
                if "default" in flag:
                    assert parser.get_default(name) == flag["default"], name
                continue
            assert parser.get_default(name) == value_of(flag.get("default")), name
            assert getattr(action.type, "__name__", "str") == flag.get("type", "str"), name
            assert action.nargs == flag.get("nargs") and list(action.choices or []) == flag.get("choices", []), name


@pytest.mark.parametrize("table", [flags_pretrain.TABLE, flags_finetune.TABLE])
def test_flags_without_effect_are_apart_in_help(table: flags.Table) -> None:
    text = table.parser("x", "y").format_help().split(flags.NO_EFFECT_TITLE)[1]
    dead = [name for flag in table.flags() if flag.dead for name in flag.names.split()]
    assert len(dead) > 20 and all(name in text for name in dead)


def test_one_text_for_the_whole_batch() -> None:
    """The codec's ids are those of the goldens whatever other words are in its batch."""
    writer = codec("ALLCASES_SYMBOLS", 25)
    together = writer.encode(["a", "bcd", ""])[0]
    assert all(np.array_equal(together[i], writer.encode([word])[0][0]) for i, word in enumerate(["a", "bcd", ""]))
