"""Shards of the data commands, in network namespaces of their own where the machine allows it: the bytes of one
process.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import main
from common.data import examine, examine_shares
from common.data.lmdb import WordLmdb
from common.data.parts import Shard, find_shard
from common.data.synth import SynthOptions, render_corpus
from common.errors import UserError
from projects.siga.mask_create import generate_mask
from tests.common import toy
from tests.common.lmdbs import write_words

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def host() -> list[str]:
    """What starts a command as on a host of its own; nothing where namespaces are not allowed."""
    words = ["unshare", "--map-root-user", "--net"]
    known = shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if known else []


def on_host(*words: str, **environ: str) -> str:
    """Run a script or module as on a host of its own; what it printed."""
    python = [*host(), sys.executable, *words]
    done = subprocess.run(
        python, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_which_shard() -> None:
    assert find_shard(None, {}) == Shard(0, 1)
    assert [find_shard(f"{i}/3") for i in (1, 2, 3)] == [Shard(0, 3), Shard(1, 3), Shard(2, 3)]
    assert {find_shard(f"{i}/2").index for i in (0, 1)} == {0, 1}, "counting from 0 covers the same shares"
    assert find_shard(None, {"RANK": "1", "WORLD_SIZE": "4"}) == Shard(1, 4)
    assert find_shard(None, {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}) == Shard(2, 3)
    assert find_shard(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Shard(), "a batch script is no srun"
    assert find_shard("1/2", {"RANK": "1", "WORLD_SIZE": "4"}) == Shard(0, 2)
    for text in ("3/2", "1", "1/0", "a/b", "-1/2"):
        with pytest.raises(UserError, match="--shard"):
            find_shard(text)


def test_rendering_over_two_hosts(tmp_path: Path) -> None:
    """Two parts of 2,000 crops and one of the rest; the second host was killed and is started again."""
    options = SynthOptions(difficulty="plain", train=4400, validation=0, evaluation=0, seed=3)
    render_corpus(tmp_path / "whole", options, workers=0, progress=False)
    words = ["-m", "common.cli", "data", "synth", str(tmp_path / "shards"), "--difficulty", "plain", "--train", "4400"]
    words += ["--validation", "0", "--evaluation", "0", "--seed", "3", "--workers", "0"]
    killed = tmp_path / ".shards.rendering" / "training" / ".MJ.parts"
    assert "parts are not there yet" in on_host(*words, "--shard", "1/2")
    (killed / ".0000001.4242.tmp").mkdir()
    on_host(*words, RANK="1", WORLD_SIZE="2")
    for part in ("training/MJ", "training/ST"):
        assert (tmp_path / "shards" / part / "data.mdb").read_bytes() == (
            tmp_path / "whole" / part / "data.mdb"
        ).read_bytes()
    assert (tmp_path / "shards" / "contact_sheet.png").is_file() and not killed.exists()


def test_masks_in_two_shards(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "training" / "set", [f"w{i}" for i in range(50)], broken=[7])
    command = ["--data_path", f"{tmp_path}/training", "--processes", "1", "--part_size", "10", "--max_bad", "0.1"]
    assert generate_mask.main([*command, "--mask_path", f"{tmp_path}/whole"]) == 0
    assert generate_mask.main([*command, "--mask_path", f"{tmp_path}/shards", "--shard", "2/2"]) == 0
    assert "3 parts are not made yet" in capsys.readouterr().out
    assert generate_mask.main([*command, "--mask_path", f"{tmp_path}/shards", "--shard", "1/2"]) == 0
    assert (tmp_path / "shards/set/data.mdb").read_bytes() == (tmp_path / "whole/set/data.mdb").read_bytes()
    bad = [(tmp_path / name / "bad_samples.csv").read_text() for name in ("whole", "shards")]
    assert bad[0] == bad[1] and ",8," in bad[0]


def test_evaluation_in_two_shards(tmp_path: Path, monkeypatch, capsys) -> None:
    toy.install(monkeypatch)
    write_words(tmp_path / "data" / "one", ["abc"[i % 3] for i in range(70)], broken=[5])
    write_words(tmp_path / "data" / "two", ["a"] * 40)
    command = ["eval", "--checkpoint", str(toy.save_toy(tmp_path / "toy.pth")), "--model", "toy/brightness", "--device"]
    command += ["cpu", "--data", f"{tmp_path}/data", "--batch-size", "1"]
    assert main([*command, "--out", f"{tmp_path}/whole"]) == 0
    assert main([*command, "--out", f"{tmp_path}/shards", "--shard", "1/2"]) == 0
    assert "parts are not read yet" in capsys.readouterr().out and not (tmp_path / "shards" / "eval.json").exists()
    assert main([*command, "--out", f"{tmp_path}/shards", "--shard", "2/2"]) == 0
    for name in ("predictions.csv", "bad_samples.csv"):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    both = [json.loads((tmp_path / name / "eval.json").read_text()) for name in ("whole", "shards")]
    assert both[0]["sets"] == both[1]["sets"] and both[0]["totals"] == both[1]["totals"]
    assert main([*command, "--shard", "1/2"]) == 2
    assert len(WordLmdb(tmp_path / "data" / "two")) == 40


def test_doctor_in_two_shards(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(examine, "CHUNK", 10)
    monkeypatch.setattr(examine_shares, "CHUNK", 10)
    write_words(tmp_path / "data" / "set", [f"é{i}" for i in range(34)] + [""], broken=[3, 25])
    command = ["doctor", str(tmp_path / "data"), "--charset", "36", "--duplicates", "--workers", "1"]
    assert main([*command, "--json", f"{tmp_path}/whole.json"]) == 1
    whole = capsys.readouterr().out
    assert main([*command, "--json", f"{tmp_path}/shards.json", "--shard", "2/2"]) == 0
    assert "2 chunks are not looked at yet" in capsys.readouterr().out
    assert main([*command, "--json", f"{tmp_path}/shards.json", "--shard", "1/2"]) == 1
    assert capsys.readouterr().out == whole
    assert (tmp_path / "shards.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert main([*command, "--shard", "1/2"]) == 2
