"""The list of bad samples: of a resumed run, of a new one, and of several processes."""

from __future__ import annotations

from pathlib import Path

from common.data.bad import BadSample, BadSamples, stored
from common.data.loader import SeededSampler, word_loader
from common.data.words import WordDataset
from tests.common.lmdbs import put, write_words
from tests.common.processes import run, torchrun

RANKS = """
import sys
from common.data.bad import BadSample, BadSamples
from common.errors import command
from common.train.state import share_bad
from common.train.distributed import process_group

@command
def main():
    with process_group("cpu", "env://", -1) as dist:
        register = BadSamples(300, file={file!r} if dist.is_main else None)
        for number in (1, 2):  # of 3 that are allowed
            register.add([BadSample("words", 10 * dist.rank + number, "broken")])
            share_bad(register, dist)
            print(f"rank {{dist.rank}}: {{len(register)}}", force=True)

sys.exit(main())
"""


def numbers(file: Path) -> list[int]:
    return [int(line.split(",")[1]) for line in file.read_text().splitlines()[1:]]


def test_a_resumed_run_goes_on_with_its_list(tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.csv"
    earlier = [BadSample("a, b", 3, 'not "one"\nimage'), BadSample("a, b", 12, "x")]
    BadSamples(1000, file=file).add(earlier)
    resumed = BadSamples(1000, file=file)
    assert len(resumed) == 0
    resumed.recall()
    assert resumed.rows() == earlier
    resumed.add([BadSample("a, b", 7, "y"), BadSample("a, b", 12, "again")])
    assert [row.number for row in stored(file)] == [3, 7, 12]


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.csv"
    file.write_bytes(b"path,number,reason\na,1,x\na,one,y\n\n\xff,2,z\na,3")
    assert [row.number for row in stored(file)] == [1, 2]


def test_a_new_run_replaces_the_list_when_it_starts(tmp_path: Path) -> None:
    """Not before: while it is built it may still be refused, or resumed."""
    file = tmp_path / "bad_samples.csv"
    BadSamples(1000, file=file).add([BadSample("old", 5, "x")])
    path = write_words(tmp_path / "words", [f"w{i}" for i in range(200)])
    put(path, (b"label-000000004", None))
    dataset = WordDataset([path])
    loader = word_loader(dataset, SeededSampler(len(dataset), 100), bad=BadSamples(200, file=file))
    assert numbers(file) == [5]
    next(iter(loader))
    assert numbers(file) == [4]


def test_several_processes_have_one_list_and_one_limit(tmp_path: Path) -> None:
    """Two on each rank: more than 1 % of 300 only when they are put together, and then all ranks stop."""
    script, file = tmp_path / "ranks.py", tmp_path / "bad_samples.csv"
    script.write_text(RANKS.format(file=str(file)), "utf-8")
    done = run(*torchrun(), script)
    assert done.stdout.count("rank 0: 2") == done.stdout.count("rank 1: 2") == 1 and done.stdout.count("rank") == 2
    assert done.returncode == 1 and done.stderr.count("error: ") == 1, done.stderr
    assert "4 of 300 samples cannot be read, more than 1.0% (words 1: broken; words 2: broken; words 11" in done.stderr
    assert f"all in {file}" in done.stderr and numbers(file) == [1, 2, 11, 12]
