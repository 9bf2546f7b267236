"""Shards of the data commands, in network namespaces of their own where the machine allows it: the bytes of one
process.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.cli import main
from common.data import examine, examine_shares
from common.data.lmdb import WordLmdb
from common.data.parts import Shard, find_shard
from common.data.synth import SynthOptions, render_corpus, shards
from common.errors import UserError
from projects.siga.mask_create import generate_mask
from tests.common import toy
from tests.common.lmdbs import encoded, noise, write_words

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


def test_rendering_in_two_shards(tmp_path: Path, monkeypatch, capsys) -> None:
    """Parts of a hundred crops; the second shard was killed and is started again."""
    monkeypatch.setattr(shards, "JOBS", 1)
    options = SynthOptions(difficulty="plain", train=420, validation=0, evaluation=0, seed=3, fonts=("roboto", "arvo"))
    render_corpus(tmp_path / "whole", options, workers=0, progress=False)
    words = ["data", "synth", f"{tmp_path}/shards", "--difficulty", "plain", "--train", "420", "--validation", "0"]
    words += ["--evaluation", "0", "--seed", "3", "--workers", "0", "--fonts", "roboto", "arvo"]
    killed = tmp_path / ".shards.rendering" / "training" / ".MJ.parts"
    assert main([*words, "--shard", "1/2"]) == 0 and "parts are not there yet" in capsys.readouterr().out
    (killed / ".0000001.99999999.tmp").mkdir()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 0
    for part in ("training/MJ", "training/ST"):
        made = (tmp_path / "shards" / part / "data.mdb").read_bytes()
        assert made == (tmp_path / "whole" / part / "data.mdb").read_bytes()
    assert (tmp_path / "shards" / "contact_sheet.png").is_file() and not killed.exists()


def conversion(root: Path, out: Path) -> tuple[list[str], Path, list[str]]:
    """(command, where its parts are, files to compare): a list of 6,000 lines, in parts of 1,000."""
    if not (root / "gt.txt").exists():
        root.mkdir(parents=True)
        (root / "0.png").write_bytes(encoded(noise(0)))
        (root / "gt.txt").write_text("".join(f"{0 if n % 9 else 'gone'}.png\tw{n}\n" for n in range(6000)))
    command = [
        "-m",
        "common.cli",
        "data",
        "convert",
        "gt",
        str(root),
        f"{root}/gt.txt",
        f"{out}/words",
        "--workers",
        "1",
    ]
    return command, out / ".words.parts", ["words/data.mdb", "words/error_image_log.txt"]


def masks(root: Path, out: Path) -> tuple[list[str], Path, list[str]]:
    """The same of 400 masks, in parts of 40."""
    if not root.exists():
        write_words(root / "training" / "set", [f"w{number}" for number in range(400)], broken=[7])
    command = ["projects/siga/mask_create/generate_mask.py", "--data_path", f"{root}/training", "--mask_path", str(out)]
    return [*command, "--processes", "1", "--part_size", "40"], out / ".set.parts", ["set/data.mdb", "bad_samples.csv"]


def rendering(root: Path, out: Path) -> tuple[list[str], Path, list[str]]:
    """The same of 8,200 crops, in parts of 2,000."""
    command = ["-m", "common.cli", "data", "synth", f"{out}/synth", "--difficulty", "plain", "--train", "8200"]
    command += ["--validation", "0", "--evaluation", "0", "--workers", "0", "--fonts", "roboto", "arvo"]
    parts = out / ".synth.rendering" / "training" / ".MJ.parts"
    return command, parts, ["synth/training/MJ/data.mdb", "synth/training/ST/data.mdb", "synth/corpus.json"]


@pytest.mark.slow
@pytest.mark.parametrize("work", (conversion, masks, rendering), ids=lambda work: work.__name__)
def test_two_hosts_one_of_which_is_killed(work, tmp_path: Path) -> None:
    """Two hosts of network namespaces of their own, with the variables of a launcher: the bytes of one process."""
    if not host():
        pytest.skip("network namespaces are not allowed here")
    command, _, files = work(tmp_path / "in", tmp_path / "one")
    on_host(*command)
    command, parts, _ = work(tmp_path / "in", tmp_path / "two")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "RANK": "1"}
    process = subprocess.Popen(
        [*host(), sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not any(parts.glob("[0-9]*/data.mdb")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # after its first part, or later where the machine is slow
    process.wait()
    for rank in ("0", "1"):
        on_host(*command, RANK=rank, WORLD_SIZE="2")
    for name in files:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert not parts.exists()


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
