"""`strlab sources`: which words are worth training on?

The default reader is trained on N words of each source, for several N and seeds, and reads the same validation words:

    strlab sources rendered=corpus/training painted=made/words real=IIIT5k,IC15 --mix rendered+painted \\
        --validation IIIT5k IC15 --init start/best.pth --max-length 6

A source is NAME=FOLDER,… of word sets; with `--mix A+B` half of the N words come from A and half from B. A seed decides
which words are taken (those of a smaller N are among those of a larger one), their order and their changes; all other
things are equal, and every run sees `--images` images, so few words are shown more often. `--init` is where every run
begins, random weights if it is absent: with few images these read nothing yet. The validation words are the tenth of
the words of `--validation` whose hash is 0; no source trains on a word of that tenth. What is measured are the weights
at the end, at one look, so nothing is selected on the words that are measured.

Every finished run is kept and the same command resumes. `--out` gets `sources.svg`, `sources.csv` (every run) and
`sources.md` (means, ranges, and differences with intervals).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from common.data.parts import add_shard_argument, find_shard
from common.data.words import WordDataset
from common.errors import UserError
from common.files import write_text
from common.infer import shipped
from common.infer.evaluate import COLUMNS, csv_text, evaluate, find_sets
from common.infer.recognizer import open_recognizer
from common.metrics.intervals import paired_difference, wilson
from common.report.charts import Curve, line_chart
from common.reproduce import recipe as recipes
from common.reproduce import runner
from common.reproduce.curve import BATCH, TRAIN, stored, train, training_words, validation_tenth, write_words


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("sources", help="which words are worth training on", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="NAME=FOLDER,…", help="word sets to compare, by a name for each")
    parser.add_argument("--mix", nargs="*", default=[], metavar="A+B", help="also: half of the words of A, half of B")
    parser.add_argument("--validation", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="word sets whose validation tenth is read")  # fmt: skip
    parser.add_argument("--words", type=int, nargs="+", default=[300, 1000, 3000], metavar="N",
                        help="how many words of a source (default: 300 1000 3000)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument("--images", type=int, default=16_000, help="images that every run sees (default 16,000)")
    parser.add_argument("--lr", type=float, default=1e-3, help="rate of AdamW (default 0.001)")
    parser.add_argument("--init", metavar="FILE", help="weights that every run begins from, or a shipped reader's name")
    parser.add_argument("--max-length", type=int, default=25, metavar="N",
                        help="longer words are neither trained on nor read (default 25)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--amp", default="no", choices=["no", "bf16"], help="bf16 is faster where the processor has it")
    parser.add_argument("--out", type=Path, default=Path("outputs/sources"), metavar="FOLDER",
                        help="where runs, table and chart are written (default: outputs/sources)")  # fmt: skip
    add_shard_argument(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.images < 1280:
        raise UserError(f"--images {args.images}: at least 1280 are needed")
    sizes, seeds, shard = sorted(set(args.words)), sorted(set(args.seeds)), find_shard(args.shard)
    pools = open_sources(args.sources, args.max_length)
    for mix in args.mix:
        if mix.count("+") != 1 or len(set(mix.split("+"))) != 2:
            raise UserError(f"--mix {mix}: give two different sources, A+B")
    mixes = {name: (name,) for name in pools} | {mix: tuple(mix.split("+")) for mix in args.mix}
    check_sizes(sizes, mixes, pools)
    start = find_start(args.init)
    out = args.out.absolute()
    prepare(out, pools, start, args)
    points = [_point(out, "start", 0, 0, args, start)] if start else []
    for number, (seed, size, name) in enumerate((a, b, c) for a in seeds for b in sizes for c in mixes):
        if shard.has(number):
            chosen = choose(pools, mixes[name], size, seed)
            write_words(out / "training" / f"{name}-{size}-{seed}", chosen)
            points.append(_point(out, name, size, seed, args, start))
        elif (done := _folder(out, name, size, seed) / "point.json").is_file():
            points.append(json.loads(done.read_text("utf-8")))
    left = len(seeds) * len(sizes) * len(mixes) + bool(start) - len(points)
    if left:
        print(f"{out}: shard {shard} is done; {left} runs of other shards are not")
        return 0
    write_files(out, points, args.images)
    print(f"written: {out / 'sources.svg'} with sources.csv and sources.md")
    return 0


def open_sources(texts: Sequence[str], max_length: int) -> dict[str, WordDataset]:
    """The words of each source to train on: not of the validation tenth, and not too long. Raises `UserError`."""
    pools: dict[str, WordDataset] = {}
    for text in texts:
        name, equals, folders = text.partition("=")
        if not name or not equals or not folders or set(name) & set("+/"):
            raise UserError(f"{text}: not NAME=FOLDER or NAME=FOLDER,FOLDER (a name without + and /)")
        if name in pools or name == "start":
            raise UserError(f"{text}: the name {name} is taken; give another")
        pools[name] = training_words(folders.split(","), max_length)
        counts = pools[name].counts
        print(
            f"{name}: {len(pools[name]):,} of {counts['stored']:,} words; {counts['too_long']:,} are longer than "
            f"{max_length}, {counts['empty']:,} in the validation tenth or empty, {counts['bad']:,} without a label"
        )
    return pools


def check_sizes(sizes: Sequence[int], mixes: Mapping[str, Sequence[str]], pools: Mapping[str, WordDataset]) -> None:
    """Raise `UserError` for a mix of unknown sources, or more words than a source has."""
    for name, parts in mixes.items():
        for part in parts:
            if part not in pools:
                raise UserError(f"--mix {name}: {part or 'an empty name'} is none of {', '.join(pools)}")
            most = len(pools[part]) * len(parts)
            if not BATCH <= min(sizes) <= max(sizes) <= most:
                told = f"{name} has {most}" if len(parts) == 1 else f"{part} has {len(pools[part])} for its share"
                raise UserError(f"--words {' '.join(map(str, sizes))}: from {BATCH} to {most}; {told}")


def find_start(init: str | None) -> str:
    """The file that every run begins from, "" for random weights. Raises `UserError`."""
    if not init:
        return ""
    return str(Path(init).absolute() if Path(init).exists() else shipped.find(init).path)


def choose(pools: Mapping[str, WordDataset], parts: Sequence[str], size: int, seed: int) -> list[tuple[bytes, str]]:
    """`size` words, the same number of each part. Those of a smaller size are among those of a larger one."""
    chosen = []
    for number, name in enumerate(parts):
        share = size // len(parts) + (number < size % len(parts))
        order = np.random.default_rng(seed).permutation(len(pools[name]))
        chosen += [(stored(pools[name], i), pools[name].label(i)) for i in order[:share]]
    return chosen


def prepare(out: Path, pools: Mapping[str, WordDataset], start: str, args: argparse.Namespace) -> None:
    """Write the validation words and a note of what the runs depend on, or check that it is an earlier run's."""
    tenth = validation_tenth(find_sets(args.validation), args.max_length)
    plan = {"validation": {name: len(items) for name, items in tenth.items()}, "images": args.images, "lr": args.lr,
            "amp": args.amp, "start": shipped.sha256(Path(start)) if start else "", "words": {}}  # fmt: skip
    plan["words"] = {name: pool.fingerprint for name, pool in pools.items()}
    note = out / "plan.json"
    old = json.loads(note.read_text("utf-8")) if note.is_file() else plan
    words = old["words"] | plan["words"]
    if {**old, "words": {}} != {**plan, "words": {}} or any(old["words"].get(n, w) != w for n, w in words.items()):
        raise UserError(
            f"{note}: the runs there were made from other words, --init, --images, --lr or --amp; give another --out"
        )
    for name, items in tenth.items():
        write_words(out / "validation" / name, items)
    write_text(note, json.dumps({**plan, "words": words}, indent=1))


def _folder(out: Path, name: str, size: int, seed: int) -> Path:
    return out / "runs" / f"{name}-{size}-{seed}"


def _point(out: Path, name: str, size: int, seed: int, args: argparse.Namespace, start: str) -> dict[str, Any]:
    """Train and measure one run, or take it from an earlier command. Without words the start is measured."""
    folder = _folder(out, name, size, seed)
    done, title = folder / "point.json", f"{name}, {size:,} words, seed {seed}" if size else "start"
    if done.is_file():
        point = json.loads(done.read_text("utf-8"))
        print(f"{title}: {point['accuracy']:.1f} % (measured before)", flush=True)
        return point
    print(title, flush=True)
    values = recipes.Values(
        data=str(out / "training" / folder.name), out=str(folder), batch=str(BATCH), validation=str(out / "validation"),
        images=str(args.images), seed=str(seed),
        device=runner.default_device() if args.device == "auto" else args.device, **runner.programs(),
    )  # fmt: skip
    checkpoint = folder / "best.pth"
    if not size:
        checkpoint = Path(start)
    else:
        command = recipes.command_line(f"{TRAIN} --amp {args.amp} --lr {args.lr:g} --real_share 1", values)
        train([*command, "--init", start] if start else command, folder, title)
    recognizer = open_recognizer(checkpoint, device=values["device"], engine="torch", second_look=False)
    lines = evaluate(recognizer, find_sets([out / "validation"])).lines
    right = [int(line[COLUMNS.index("correct_36")] or 0) for line in lines]
    low, high = wilson(sum(right), len(right))
    by_set = {line[0]: [] for line in lines}
    for line, mark in zip(lines, right):
        by_set[line[0]].append(mark)
    point = {
        "source": name, "words": size, "seed": seed, "accuracy": round(100 * mean(right), 2),
        "low": round(100 * low, 2), "high": round(100 * high, 2), "validation_words": len(right),
        "sets": {key: round(100 * mean(marks), 2) for key, marks in by_set.items()}, "right": right,
    }  # fmt: skip
    write_text(done, json.dumps(point))
    print(f"    {point['accuracy']:.1f} % ({point['low']:.1f} to {point['high']:.1f}) of {len(right)}", flush=True)
    return point


def write_files(out: Path, points: Sequence[Mapping[str, Any]], images: int) -> None:
    """The table of all runs, the page with means, ranges and differences, and the chart."""
    sets, count = list(points[0]["sets"]), points[0]["validation_words"]
    header = ("source", "words", "seed", "all words", "low", "high", "validation words", *sets)
    names = ("source", "words", "seed", "accuracy", "low", "high", "validation_words")
    rows = [(*(point[name] for name in names), *point["sets"].values()) for point in points]
    write_text(out / "sources.csv", csv_text(header, rows))

    before = [point for point in points if not point["words"]]
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["words"]:
            groups.setdefault((point["source"], point["words"]), []).append(point)
    sources, sizes = list(dict.fromkeys(name for name, _ in groups)), sorted({size for _, size in groups})
    lines = [
        f"Word accuracy in % under 36 characters of {count} validation words: mean of the seeds and their range. Every "
        f"run saw {images:,} images.",
        "",
        f"| source | {' | '.join(f'{size:,} words' for size in sizes)} |",
        "| --- " * (1 + len(sizes)) + "|",
    ]
    if before:
        lines.append("| none: the start " + f"| {before[0]['accuracy']:.1f} " * len(sizes) + "|")
    for name in sources:
        cells = [[point["accuracy"] for point in groups[name, size]] for size in sizes]
        told = [f"{mean(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    lines += ["", f"Differences to {sources[0]} in points, the seeds averaged, with the 95 % interval of a paired "
              "bootstrap over the words:", "", lines[2], lines[3]]  # fmt: skip

    def marks(name: str, size: int) -> np.ndarray:
        """Share of the seeds that read each validation word."""
        return np.mean([point["right"] for point in groups[name, size]], axis=0)

    for name in sources[1:]:
        found = [paired_difference(marks(name, size), marks(sources[0], size)) for size in sizes]
        told = [f"{100 * shift:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" for shift, low, high in found]
        lines.append(f"| {name} | {' | '.join(told)} |")
    write_text(out / "sources.md", "\n".join(lines) + "\n")

    curves = []
    for name in sources:
        means = [mean(point["accuracy"] for point in groups[name, size]) for size in sizes]
        ends = [tuple(100 * end for end in wilson(value / 100 * count, count)) for value in means]
        curves.append(Curve(name, sizes, means, ends))
    if before:
        curves.append(Curve("none: the start", [sizes[0], sizes[-1]], [before[0]["accuracy"]] * 2))
    chart = line_chart("Validation words read right (36 characters)", curves, "words of the source", "%", log_x=True)
    write_text(out / "sources.svg", chart)
