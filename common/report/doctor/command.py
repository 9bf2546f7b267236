"""Look over word sets and say what is wrong with each: an incomplete copy, a wrong or missing num-samples, keys
numbered in another way, missing keys, pictures that do not decode or are of one colour, labels that are not UTF-8,
empty, too long or outside a charset, and (--duplicates) pictures stored twice. With --repair, write what is sound,
renumbered, into a new folder; nothing is changed in place.

--against FOLDER finds words that are also in other sets (leaks of a benchmark into training, say), also where the
picture was resized, stored again or cut a little, and writes their list; --exclude LIST leaves them out of the repaired
copy.
--with [CHECKPOINT] lists words whose label is likely wrong, with a contact sheet; fill in the column new_label (-
excludes the word) and give the list to --apply. --page FILE writes statistics with plots.

Shares (--shard) look at samples together; leaks and label errors are looked for by the process that ends last.

An LMDB without a single label (for pre-training, or of scenes) is sound without labels. One of masks alone may lack
numbers and keeps them. In scene LMDBs and scene files (JSON with data_root and data_list; DIR may be such a file) the
annotated words are examined: polygons inside the picture, text, sizes.

Exit status: 0 when all is well, 1 when something was found that a repair would fix, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from common.console import Rule, show
from common.data.doctor import as_dict, describe, refuse_place, repair
from common.data.examine import Examination, Wishes, examine
from common.data.examine_scenes import examine_scenes, find_scenes
from common.data.examine_shares import examine_share
from common.data.exclude import read_exclusions
from common.data.leaks import find_leaks, write_leaks
from common.data.parts import add_shard_argument, find_shard
from common.data.sources import find_sources
from common.data.words import discover
from common.errors import UserError
from common.files import write_text
from common.report.doctor.page import write_page
from common.report.doctor.suspects import find_suspects, read_corrections, write_suspects
from common.text.charset import named_charset

RULES: tuple[Rule, ...] = ((r"\A.*", "bold"), (r"(?m)^  [A-Z][A-Z -]+(?=  )", "bold red"))  # the set; faults of it

SHIPPED = True  # `--with` without a value


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("doctor", help="check word sets", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="every word set at or below it is examined")
    parser.add_argument("--charset", metavar="NAME", help="36, 62, 94, siga36, LOWERCASE, … or the characters")
    parser.add_argument("--max-length", type=int, metavar="N", help="report labels longer than this")
    parser.add_argument("--no-decode", action="store_true", help="do not decode the pictures (much faster)")
    parser.add_argument("--duplicates", action="store_true", help="also look for pictures that are stored twice")
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="samples to name for each finding (5)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything found, all samples named")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="write statistics of the sets with plots")
    add_shard_argument(parser)
    leaks = parser.add_argument_group("leaks")
    leaks.add_argument(
        "--against", type=Path, nargs="+", metavar="FOLDER", help="sets that must not share words with DIR"
    )
    leaks.add_argument("--leaks", type=Path, default=Path("leaks.csv"), metavar="FILE", help="their list (leaks.csv)")
    errors = parser.add_argument_group("label errors")
    errors.add_argument(
        "--with",
        dest="reader",
        type=Path,
        nargs="?",
        const=SHIPPED,
        metavar="CHECKPOINT",
        help="a trained reader judges the labels; without a value: the reader that ships with the package",
    )
    errors.add_argument("--model", metavar="NAME", help="its registry entry, where it has no metadata file")
    errors.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    errors.add_argument(
        "--suspects", type=Path, default=Path("suspects.csv"), metavar="FILE", help="list (suspects.csv)"
    )
    errors.add_argument("--most", type=int, default=1000, metavar="N", help="length of that list (1000)")
    copy = parser.add_argument_group("repaired copy")
    copy.add_argument("--repair", type=Path, metavar="OUT", help="write the sound samples into this new folder")
    copy.add_argument("--drop-duplicates", action="store_true", help="without repeated pictures")
    copy.add_argument("--exclude", type=Path, metavar="LIST", help="without the words of this list of path and number")
    copy.add_argument("--apply", type=Path, metavar="LIST", help="with the labels that were filled in there")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    scenes = find_scenes(args.folder) if args.folder.exists() else []
    annotated = [examine_scenes(path, not args.no_decode) for path in scenes]
    for one in annotated:
        print("\n".join(one.describe(args.examples)), flush=True)
    if scenes and (args.folder.is_file() or not find_sources(args.folder)):  # scene files alone
        return int(any(one.faults for one in annotated))
    folders = discover(args.folder)
    for flag in ("exclude", "apply"):
        if getattr(args, flag) is not None and args.repair is None:
            raise UserError(f"--{flag}: name the folder for the changed copy with --repair")
    if args.repair is not None:
        refuse_place(args.repair, args.folder)
    charset = None if args.charset is None else named_charset(args.charset)
    duplicates = args.duplicates or args.drop_duplicates
    wishes = Wishes(charset, args.max_length, not args.no_decode, duplicates, args.page is not None)
    found = []
    shard, missing = find_shard(args.shard), 0
    shares = None if args.json is None else args.json.with_name(f".{args.json.name}.shares")
    if shard.count > 1 and shares is None:
        raise UserError("--shard: the shares meet next to a file: give --json")
    for folder in folders:
        if shard.count > 1:
            examination, left = examine_share(folder, wishes, shares, shard, args.workers, _progress(folder.name))
            missing += left
        else:
            examination = examine(folder, wishes, args.workers, _progress(folder.name))
        found.append(examination)
        if not missing:
            show("\n".join(describe(examination, args.examples)), *RULES)
    if missing:
        print(f"shard {shard} is done; {missing} chunks are not looked at yet")
        return 0
    faults = sum(examination.faults for examination in found)
    style = "bold red" if faults else "bold green"
    show(f"{len(found)} word sets, {sum(e.highest for e in found):,} samples, {faults:,} faults", (r".*", style))
    if args.json is not None:
        text = json.dumps([as_dict(examination) for examination in found], indent=1, ensure_ascii=False)
        write_text(args.json, text)
        shutil.rmtree(shares, ignore_errors=True)
    if args.page is not None:
        print(f"statistics: {write_page(args.page, found)}")
    if args.against:
        _report_leaks(args, [e.path for e in found if not e.fatal and e.counts.get("label")])
    if args.reader is not None:
        _report_suspects(args, [e.path for e in found if not e.fatal and e.counts.get("label")])
    if args.repair is not None:
        return _repair(args, found)
    return int(faults > 0 or any(one.faults for one in annotated))


def _report_leaks(args: argparse.Namespace, folders: list[Path]) -> None:
    against = [path for folder in args.against for path in discover(folder)]
    found = find_leaks(folders, against, args.workers, _progress("comparing"))
    write_leaks(args.leaks, found)
    for leak in found[: args.examples]:
        print(
            f"  {leak.path} {leak.number} = {leak.against} {leak.against_number}: {leak.label} ({leak.correlation:.3f})"
        )
    told = (
        f", listed in {args.leaks}; `--exclude {args.leaks} --repair NEW` writes a copy without them" if found else ""
    )
    print(f"{len(found):,} words are also in {', '.join(map(str, args.against))}{told}")


def _report_suspects(args: argparse.Namespace, folders: list[Path]) -> None:
    # torch, which looking at data does without
    from common.infer import shipped
    from common.infer.recognizer import open_recognizer

    reader = shipped.default().path if args.reader is SHIPPED else args.reader
    recognizer = open_recognizer(reader, args.model, args.device, published=True)
    found = find_suspects(recognizer, folders, args.most)
    sheet = write_suspects(args.suspects, found)
    for suspect in found[: args.examples]:
        told = f"label {suspect.label!r}, read {suspect.prediction!r} ({suspect.confidence:.2f})"
        print(f"  {suspect.path} {suspect.number}: {told}")
    print(
        f"{len(found):,} labels to look at: {args.suspects}, the first of them in {sheet}; fill in new_label "
        f"(- excludes the word), then `--apply {args.suspects} --repair NEW`"
    )


def _repair(args: argparse.Namespace, found: list[Examination]) -> int:
    exclude: dict[Path, dict[int, str]] = defaultdict(dict)
    labels: dict[Path, dict[int, str]] = {}
    if args.apply is not None:
        labels, dropped = read_corrections(args.apply)
        exclude.update(dropped)
    if args.exclude is not None:
        for path, numbers in read_exclusions(args.exclude).items():
            exclude[path] |= dict.fromkeys(numbers, f"listed in {args.exclude.name}")
    known = {examination.path.resolve() for examination in found}
    for path in (set(exclude) | set(labels)) - known:
        print(f"warning: {path}: in the list, but not below {args.folder}: its rows change nothing")
    changed = sum(map(len, labels.values()))
    if changed:
        print(f"{changed:,} labels are corrected")
    return repair(found, args.folder, args.repair, args.drop_duplicates, exclude, labels)


def _progress(name: str) -> Callable[[int, int], None]:
    """A progress bar on terminals, silence elsewhere."""
    bar = tqdm(desc=name, unit="img", disable=None, leave=False)

    def step(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return step
