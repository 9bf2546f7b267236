"""`strlab train`: train the small reader that ships, `strlab/compact`, and no method of a paper.

The papers' trainings are `strlab reproduce NAME` (siga, mgpstr, dig, ssm, textssr) and the published scripts, as
`projects/siga/train.py`; the README of each project lists them. Here the reader learns from rendered words and, if
folders are given, real ones. Rendered words never end and never repeat exactly; a share of `--real_share` of the images
comes from the `--real` word sets. The rate warms up, stays, and falls linearly to zero over the last `--decay_images`;
so a run can be extended by the same command with more `--images` as long as the fall has not begun. `--out` gets
`metrics.jsonl` (a line for each validation), `progress.svg` (the same as a picture), `training_state-*.pth`, from which
the same command resumes exactly, and `best.pth`, the averaged weights that read most validation words, with the
metadata file that `strlab read --checkpoint` needs. A resumed run may have other values of flags that do not decide the
result (`--out`, `--store`, `--device`, `--workers`, `--save_every`, `--eval_every`, `--max_steps`, `--validation`,
`--unsupported_share`); other changes are refused.

Of real word sets, the tenth of the words whose hash is 0 is for validation and is never trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data.bad import FILE_NAME, BadSamples
from common.data.synth.options import SynthOptions
from common.errors import UserError
from common.files import write_text
from common.infer import shipped
from common.metrics.protocols import PROTOCOL_36
from common.models.compact import CompactReader
from common.models.images import to_float_nchw
from common.reader.data import EASY_FIRST, Mixed, RealWords, RenderedWords, collate, validation_words
from common.reader.reader import HALF, build, load_weights
from common.report.charts import Curve, line_chart
from common.text.charset import CHARSET_94
from common.text.codecs import CtcCodec
from common.text.coverage import DEFAULT_SHARE
from common.train.distributed import Dist, wrap
from common.train.jobs import Evaluate, States, every, save_published
from common.train.log import Meters, MetricsLog
from common.train.loop import Clock, Engine, Job, Loop, Step
from common.train.optim import Precision, build_optimizer, parameter_groups
from common.train.session import session
from common.train.state import TrainingState, newest_state

MODEL = "strlab/compact"
SAFE = {"out", "store", "device", "workers", "save_every", "eval_every", "max_steps", "validation", "unsupported_share"}
ENDLESS = 12_000_000  # crops that the store has room for, as holes in a file
WORDS = SynthOptions(min_length=1, max_length=25, charset="94", digit_share=0.1, vocabulary=120_000)


@dataclass(frozen=True)
class Options:
    """What the command line says; see `add_parser`."""

    out: Path
    images: int
    decay_images: int
    batch: int
    lr: float
    warmup: int
    seed: int
    repeat: int
    store: Path | None
    real: tuple[Path, ...]
    real_share: float
    validation: tuple[Path, ...]
    init: Path | None
    fonts: tuple[str, ...]
    amp: str
    device: str
    workers: int
    save_every: int
    eval_every: int
    max_steps: int
    exclude: Path | None = None
    unsupported_share: float = DEFAULT_SHARE

    def check(self) -> Options:
        """Return self, or raise `UserError` that names the first bad field."""
        for name in ("images", "batch", "warmup", "repeat", "workers", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: {getattr(self, name)} must be at least 1")
        if not 0 <= self.real_share <= 1 or (self.real_share and not self.real):
            raise UserError(f"--real_share {self.real_share:g}: from 0 to 1, and above 0 only with --real FOLDER")
        if self.exclude and not self.real:
            raise UserError("--exclude: it lists real words: give them with --real FOLDER")
        if not 0 <= self.unsupported_share <= 1:
            raise UserError(f"--unsupported_share {self.unsupported_share:g}: from 0 to 1")
        if not 0 <= self.decay_images <= self.images:
            raise UserError(f"--decay_images {self.decay_images}: from 0 to --images ({self.images})")
        return self


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("train", help="train the default reader, not a paper's method", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the run is kept")
    parser.add_argument("--images", type=int, default=1_500_000, help="images to see in all (default 1,500,000)")
    parser.add_argument("--decay_images", type=int, default=150_000, help="the rate falls over the last so many")
    parser.add_argument("--batch", type=int, default=64, help="images of a step and process (default 64)")
    parser.add_argument("--lr", type=float, default=1e-3, help="rate of AdamW (default 0.001)")
    parser.add_argument("--warmup", type=int, default=500, help="steps until that rate (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the words and the start weights (default 1)")
    parser.add_argument("--repeat", type=int, default=3, help="show each rendered crop about so often (default 3)")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep rendered crops (default: OUT/crops)")
    parser.add_argument("--real", type=Path, nargs="*", default=[], metavar="FOLDER", help="real word sets to learn")
    parser.add_argument("--real_share", type=float, help="share of real images (default 0.5 with --real, else 0)")
    parser.add_argument("--exclude", type=Path, metavar="LIST", help="real words not to train on, from `strlab doctor`")
    parser.add_argument("--unsupported_share", type=float, default=DEFAULT_SHARE, metavar="SHARE",
                        help="largest share of the real labels that lose characters to the 94 of the reader "
                        "(default 0.05)")  # fmt: skip
    parser.add_argument("--validation", type=Path, nargs="*", metavar="FOLDER", help="word sets (default: --real)")
    parser.add_argument("--init", metavar="FILE", help="start from this file, or shipped reader by its name")
    parser.add_argument("--fonts", nargs="*", default=[], metavar="FONT", help="default: every installed fontpkg-*")
    parser.add_argument("--amp", default="no", choices=["no", "bf16"], help="bf16 is faster where the processor has it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that render (default 1)")
    parser.add_argument("--save_every", type=int, default=250, help="steps between states (default 250)")
    parser.add_argument("--eval_every", type=int, default=1000, help="steps between validations (default 1000)")
    parser.add_argument("--max_steps", type=int, default=0, help="leave after this step; the command resumes it")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    share = args.real_share if args.real_share is not None else (0.5 if args.real else 0.0)
    validation = args.real if args.validation is None else args.validation
    fields = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
    fields |= {"real_share": share, "validation": tuple(validation), "real": tuple(args.real)}
    if args.init:
        fields["init"] = Path(args.init) if Path(args.init).exists() else shipped.find(args.init).path
    train(Options(**{**fields, "fonts": tuple(args.fonts), "store": args.store or args.out / "crops"}).check())
    return 0


class Average(nn.Module):
    """The weights averaged over the last steps (of few at the start): what is validated and written."""

    def __init__(self, model: nn.Module, longest: float = 0.999) -> None:
        super().__init__()
        self.longest = longest
        self.model = build()
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model` after `step` steps."""
        weight = 1 - min(self.longest, step / (step + 100))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for mine, new in zip(self.model.buffers(), model.buffers()):
            mine.lerp_(new, weight) if mine.is_floating_point() else mine.copy_(new)


@dataclass
class CtcMethod:
    """What the reader adds to the loop: CTC over its 32 columns."""

    model: nn.Module
    plain: CompactReader
    average: Average
    precision: Precision
    device: torch.device
    options: Options
    world_size: int
    codec: CtcCodec = field(default_factory=lambda: CtcCodec(CHARSET_94))

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Mean CTC loss per character. A word that 32 columns cannot hold (25 letters with many doubles) adds zero."""
        with self.precision.autocast():
            logits = self.model(to_float_nchw(batch.images.to(self.device, non_blocking=True), HALF, HALF))
        ids, lengths = self.codec.encode(batch.labels)
        columns = torch.full((len(batch),), logits.shape[1])
        likely = logits.float().log_softmax(-1).transpose(0, 1)
        targets = torch.from_numpy(ids).to(self.device)
        loss = nn.functional.ctc_loss(likely, targets, columns, torch.from_numpy(lengths), zero_infinity=True)
        return loss, {"loss": loss.detach()}

    def rates(self, step: int) -> tuple[float, float | None]:
        """Warm up, stay, and fall linearly to zero at the end."""
        size = self.options.batch * self.world_size
        total, fall = self.options.images // size, max(1, self.options.decay_images // size)
        return self.options.lr * min(1.0, (step + 1) / self.options.warmup, max(0.0, (total - step) / fall)), None

    def stepped(self, clock: Clock) -> None:
        """Move the averaged copy, whose weights are evaluated and kept, towards the trained ones."""
        self.average.update(self.plain, clock.step)


@dataclass
class Batch:
    """uint8 `[B, 32, 128, 3]` and labels; `indices` are the positions in the stream."""

    images: Tensor
    labels: list[str]
    indices: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)


def batches(words: Mixed, options: Options, dist: Dist, start: int, end: int) -> Iterator[Batch]:
    """The batches of this process from step `start` on: positions are dealt out to the processes in turn."""
    size = options.batch * dist.world_size
    positions = range(start * size + dist.rank, end * size, dist.world_size)
    loader = DataLoader(
        words, options.batch, sampler=positions, num_workers=options.workers, prefetch_factor=6, collate_fn=collate
    )
    for number, (images, labels) in enumerate(loader):
        first = number * options.batch
        yield Batch(images, labels, np.asarray(positions[first : first + options.batch]))


@torch.inference_mode()
def measure(model: CompactReader, sets: Mapping[str, tuple[Tensor, list[str]]], device: torch.device) -> dict[str, Any]:
    """Words of each set read right under 36 characters, as {name: {"words": n, "accuracy": %}} with "weighted"."""
    codec, found, right = CtcCodec(CHARSET_94), {}, 0.0
    model.eval()
    for name, (images, labels) in sets.items():
        ids = [model(to_float_nchw(part.to(device), HALF, HALF)).argmax(-1).cpu() for part in images.split(64)]
        texts = [word.text for word in codec.decode(torch.cat(ids).numpy())]
        share, count = PROTOCOL_36.accuracy(texts, labels)
        found[name] = {"words": count, "accuracy": round(100 * share, 2)}
        right += share * count
    words = sum(row["words"] for row in found.values())
    return {"sets": found, "weighted": round(100 * right / words, 2) if words else 0.0}


def train(options: Options) -> Path:
    """Run or resume; returns the checkpoint of the best validation."""
    settings = SimpleNamespace(
        output_dir=options.out, log_dir="", device=options.device, dist_url="env://", local_rank=-1, dist_timeout=10.0,
        world_size=1, dist_on_itp=False, seed=options.seed, amp=options.amp, compile=False, tf32=False,
    )  # fmt: skip
    with session(settings, asdict(options)) as dist:
        reader = build().to(dist.device)
        if options.init:
            load_weights(reader, options.init, "give --init the weights of a reader of the 94 characters")
        average = Average(reader).to(dist.device)
        model, precision = wrap(reader, dist), Precision(options.amp, dist.device)
        groups = parameter_groups(reader.named_parameters(), 0.02)
        optimizer = build_optimizer("adamw", groups, options.lr, fused=True)
        kept = {name: str(value) for name, value in asdict(options).items() if name != "exclude" or value}
        state = TrainingState(model, optimizer, {"average": average}, kept, extra={"best": -1.0})
        clock = Clock(options.images // (options.batch * dist.world_size), stop_at=options.max_steps)
        if found := newest_state(options.out, dist):
            refuse_other_run(found[0], found[1], options, dist.world_size)
            clock.step = state.resume(found[1], dist).step
            print(f"resumes at step {clock.step}: {found[0]}")
        words = RenderedWords(
            SynthOptions(**{**vars(WORDS), "fonts": options.fonts}),
            options.seed,
            ENDLESS,
            options.repeat,
            options.store,
            easy_first=0 if options.init else EASY_FIRST,
        )
        real = RealWords(options.real, options.exclude, options.unsupported_share) if options.real else None
        if dist.is_main and real is not None:
            print(real.describe())
        bad = real.bad if real else BadSamples(1)
        if dist.is_main and len(bad):
            bad.file = options.out / FILE_NAME
            bad.save()
            print(f"{len(bad)} of {bad.total} real pictures cannot be decoded: {bad.file}", file=sys.stderr)
        source = batches(Mixed(words, real, options.real_share), options, dist, clock.step, clock.total)
        method = CtcMethod(model, reader, average, precision, dist.device, options, dist.world_size)
        loop = Loop(method, clock, source, Engine(model, optimizer, precision, dist), max_norm=5.0, folder=options.out)
        states = States(state, options.out, dist, bad)
        log = MetricsLog(options.out / "metrics.jsonl" if dist.is_main else None, clock.step)
        loop.note, loop.leave = Console(log, clock.total), states
        best = options.out / "best.pth"
        sets = validation_words(options.validation)

        def record(clock: Clock, result: dict[str, Any]) -> None:
            seen = clock.step * options.batch * dist.world_size
            print(f"step {clock.step}, {seen:,} images: {json.dumps(result)}", flush=True)
            log.write(step=clock.step, images=seen, **result, images_per_second=round(loop.note.rate, 1))
            write_text(options.out / "progress.svg", progress_chart(options.out / "metrics.jsonl"))

        def keep_best(clock: Clock, result: dict[str, Any]) -> None:
            facts = {"images_seen": clock.step * options.batch * dist.world_size, "validation": result}
            facts |= {"data": "rendered words" + (" and real ones" if real else ""), "charset": CHARSET_94}
            save_published(best, average.model.state_dict, Dist(), (MODEL, {}), **facts)

        evaluate = Evaluate(
            lambda: measure(average.model, sets, dist.device),
            lambda result: result["weighted"] if sets else float(clock.step),  # without words to read: the newest
            state, dist,
            keep_best, record, best_key="best",
        )  # fmt: skip
        loop.jobs = [Job(every(options.eval_every), evaluate), Job(every(options.save_every), states)]
        loop.run()
    return best


def refuse_other_run(state_file: Path, state: Mapping[str, Any], options: Options, world_size: int) -> None:
    """Raise `UserError` where a state was written by a run that these options would not continue.

    `--images` and `--decay_images` may change as long as the rate has begun to fall neither in the old plan nor in the
    new one.
    """
    old, new = state["options"], {name: str(value) for name, value in asdict(options).items()}
    lengths = {"images", "decay_images"}
    changed = {name for name in new if name not in SAFE and old.get(name, "None") != new[name]}
    if world_size != state["world_size"]:
        raise UserError(
            f"{state_file}: written by {state['world_size']} processes, now there are {world_size}: the positions in "
            "the stream of words would not continue; give the number of that run, or another --out"
        )
    told = "; ".join(f"--{name} {old.get(name)} -> {new[name]}" for name in sorted(changed))
    if changed - lengths:
        raise UserError(f"{state_file}: written with other options ({told}); give those of that run, or another --out")
    seen = state["step"] * options.batch * world_size
    falls = min(int(old["images"]) - int(old["decay_images"]), options.images - options.decay_images)
    if changed and seen > falls:
        raise UserError(
            f"{state_file}: {seen:,} images were seen and the rate falls from {falls:,} on ({told}): the length of a "
            "run can be changed only before; give the old one, or --init with its best.pth and another --out"
        )


def progress_chart(metrics: Path) -> str:
    """SVG: word accuracy on each validation set, and on all their words, over the images seen."""
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    seen = [row["images"] for row in rows]
    names = list(rows[-1]["sets"]) if rows else []
    curves = [Curve("all words", seen, [row["weighted"] for row in rows])]
    for name in names if len(names) > 1 else ():
        curves.append(Curve(name, seen, [row["sets"].get(name, {}).get("accuracy", float("nan")) for row in rows]))
    return line_chart("Validation words read right (36 characters)", curves, "images seen", "%")


class Console:
    """A line each fifty steps; the mean loss of them goes to the log."""

    def __init__(self, log: MetricsLog, total: int) -> None:
        self.log, self.total, self.meters, self.began = log, total, Meters(50), time.perf_counter()

    @property
    def rate(self) -> float:
        """Images a second over the last fifty steps."""
        return self.meters.throughput

    def __call__(self, clock: Clock, step: Step) -> None:
        self.meters.add(step.images, lr=step.lr, **step.means())
        self.meters.count(step.images, step.waited)
        if clock.step % 50 == 0:
            print(self.meters.line(clock.step, self.total), flush=True)
