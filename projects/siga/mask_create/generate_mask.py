"""Make the text pseudo-masks of whole data sets once, in parallel.

    python projects/siga/mask_create/generate_mask.py --data_path data/training/label/Synth --mask_path data/Mask

Every LMDB below `--data_path` gets a mask LMDB below `--mask_path`, at what follows `training` in its path; `train.py
--mask_path` reads them. A stopped run resumes where it was when the same command is given again.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.data.bad import FILE_NAME, BadSamples, stored
from common.data.lmdb import WordLmdb
from common.data.masks import Mirrored, misfit
from common.data.parts import add_shard_argument, find_shard
from common.data.sources import open_words
from common.data.words import discover
from common.errors import UserError, command
from common.flags import Parser, fill
from projects.siga.mask_create.shards import Part, PartDone, finish, make_part, missing, plan, without_mask


@dataclass(frozen=True)
class Options:
    """The flags of the same names describe the fields."""

    data_path: list[str]
    mask_path: str
    processes: int
    part_size: int
    max_bad: float
    anchor: str
    shard: str | None


def parse(argv: Sequence[str] | None) -> Options:
    """The command line. Raises UserError for a number below 1."""
    parser = Parser(prog="generate_mask.py", description=__doc__)
    parser.add_argument(
        "--data_path", nargs="+", required=True, help="roots of picture LMDBs; a folder 'training' is in their path"
    )
    parser.add_argument("--mask_path", required=True, help="root of the mask LMDBs")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="worker processes (default: one per core)"
    )
    parser.add_argument(
        "--part_size", type=int, default=10_000, help="pictures of one part, the unit of resuming (default: 10000)"
    )
    parser.add_argument(
        "--max_bad", type=float, default=0.01, help="share of unreadable pictures that stops the run (default: 0.01)"
    )
    parser.add_argument(
        "--anchor", default="training", help="path component after which the mask path mirrors the data path"
    )
    add_shard_argument(parser)
    options = fill(Options, vars(parser.parse_args(argv)))
    for name in ("processes", "part_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)} must be at least 1")
    return options


def targets(roots: Sequence[str], mask_path: str, anchor: str) -> list[tuple[Path, Path]]:
    """(picture LMDB, mask LMDB) pairs of the LMDBs below `roots`. Raises UserError where a path cannot be mirrored."""
    mirror = Mirrored(mask_path, anchor)
    sources = dict.fromkeys(path for root in roots for path in discover(root))
    return [(source, mirror(source)) for source in sources]


def check_existing(source: Path, target: Path) -> bool:
    """Whether the masks of `source` are there already. Raises UserError if they are of other pictures."""
    if not (target / "data.mdb").exists():
        return False
    wrong = misfit(WordLmdb(target), open_words(source))
    if wrong:
        raise UserError(f"{target}: {wrong}: remove it to make them again")
    return True


def run_parts(parts: list[Part], processes: int) -> Iterator[PartDone]:
    """Make the parts, in any order, in this process or in several."""
    if processes == 1 or len(parts) < 2:
        yield from map(make_part, parts)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(parts))) as pool:
        yield from pool.imap_unordered(make_part, parts)


def register_of(root: Path, todo: list[tuple[Path, Path]], total: int, max_bad: float) -> BadSamples:
    """The list of this and earlier runs: the parts of these know theirs, rows of other data stay and do not count.

    Raises UserError where what earlier runs have found is too much already.
    """
    fix = f"look with `strlab doctor` and remove the folders .*.parts below {root}, or raise --max_bad"
    register = BadSamples(total, max_bad, root / FILE_NAME, fix)
    sources = {str(source) for source, _ in todo}
    register.others = [row for row in stored(register.file) if row.path not in sources]
    register.start()
    register.add(row for pair in todo for row in without_mask(*pair))
    return register


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing and say what was made."""
    options = parse(argv)
    pairs = targets(options.data_path, options.mask_path, options.anchor)
    there = [check_existing(*pair) for pair in pairs]
    todo = [pair for pair, done in zip(pairs, there) if not done]
    for (_, target), done in zip(pairs, there):
        if done:
            print(f"{target}: there already")
    total = sum(len(open_words(source)) for source, _ in todo)
    shard = find_shard(options.shard)
    parts = [part for pair in todo for part in plan(*pair, options.part_size, shard)]
    register = register_of(Path(options.mask_path), todo, total, options.max_bad)
    sources = {str(source) for source, _ in todo}
    left = sum(part.stop - part.start for part in parts)
    with tqdm(total=left, unit="image", disable=None) as bar:
        for done in run_parts(parts, options.processes):
            if shard.count > 1:  # others write the same list
                register.add((row for row in stored(register.file) if row.path in sources), write=False)
            register.add(done.bad)
            bar.update(done.pictures)
    for source, target in todo:
        if absent := missing(source, target, options.part_size):
            print(f"{target}: shard {shard} is done; {absent} parts are not made yet")
            continue
        register.add(without_mask(source, target))  # those of other shards too
        if (masks := finish(source, target)) is None:
            print(f"{target}: shard {shard} is done; another process joins the parts")
        else:
            print(f"{target}: {masks} masks of {len(open_words(source))} pictures")
    if len(register):
        print(f"{len(register)} pictures have no mask: {register.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
