"""The options of fine-tuning, whose command line is Hydra's (`config.py`), and the flags of `test.py`, `test_custom.py`
and `read.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.flags import at_home, new_parser

UNSEEN = ("unseen_union", "unseen_syn", "unseen_origin")


@dataclass(frozen=True)
class DataOptions:
    """The `data` section of the configuration.

    Attributes:
        kind: class of the data module, whose folders `root_dir` and `train_dir` name.
        exclude: list of words not to train on, or None.
        bad_share, unsupported_share: largest share of the training words that are unreadable, or lose more than marks
            to the charset; above it the run stops.
    """

    kind: str
    root_dir: str
    train_dir: str
    batch_size: int
    num_workers: int
    img_size: list[int]
    charset_train: str
    charset_test: str
    max_label_length: int
    augment: bool
    remove_whitespace: bool
    normalize_unicode: bool
    exclude: str | None
    bad_share: float
    unsupported_share: float


@dataclass(frozen=True)
class Options:
    """The configuration of `train.py`.

    Attributes:
        model: arguments of the recogniser's `class`, and lr, weight_decay, warmup_pct, batch_size and where its weights
            start. Which ones there are depends on the class; they are stored in checkpoints as they are.
        trainer: arguments of Lightning's Trainer.
        swa: average the weights of the last quarter of the epochs.
        resume, allow_changes: continue what the folder holds, also with other values.
        ckpt_path: the checkpoint to continue, or None.
        pretrained: whole recogniser to start from, or None.
    """

    model: dict[str, Any]
    data: DataOptions
    trainer: dict[str, Any]
    seed: int
    swa: bool
    resume: bool
    allow_changes: bool
    ckpt_path: str | None
    pretrained: str | None


@dataclass(frozen=True)
class EvalOptions:
    """The flags of `test.py`, those that `test_custom.py` adds, and the words `name:type=value` for the model."""

    checkpoint: str
    data_root: str
    batch_size: int
    num_workers: int
    cased: bool
    punctuation: bool
    union: bool
    new: bool
    chinese: bool
    rotation: int
    device: str
    standard: bool
    model_words: tuple[str, ...] = ()
    only_custom: bool = False
    common_length: bool = False
    union_length: bool = False
    unseen: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Path of the checkpoint, next to which the tables are written."""
        return at_home(self.checkpoint.removeprefix("pretrained="))


def evaluation_parser() -> argparse.ArgumentParser:
    """The published flags of `test.py`; further words are `name:type=value`."""
    parser = new_parser("test.py", "Word accuracy of a recogniser on the benchmarks.")
    parser.add_argument("checkpoint", help="a checkpoint file, or pretrained=FILE")
    parser.add_argument("--data_root", default="data", help="folder that holds test (or evaluation)")
    parser.add_argument("--batch_size", type=int, default=512, help="images a forward pass")
    parser.add_argument("--num_workers", type=int, default=4, help="loader processes")
    parser.add_argument("--cased", action="store_true", default=False, help="case-sensitive comparison")
    parser.add_argument("--punctuation", action="store_true", default=False, help="check punctuation")
    parser.add_argument("--union", action="store_true", default=False, help="Union14M's benchmarks too")
    parser.add_argument("--new", action="store_true", default=False, help="the newer benchmarks too")
    parser.add_argument("--chinese", action="store_true", help="scene_test, web_test and document_test too")
    parser.add_argument("--rotation", type=int, default=0, help="turn images counter-clockwise by so many degrees")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--standard", action="store_true", default=False, help="force the standard encoder; the "
                        "checkpoint's names decide otherwise")  # fmt: skip
    return parser


def splits_parser() -> argparse.ArgumentParser:
    """The flags of `test.py` and the choice of splits."""
    parser = evaluation_parser()
    parser.prog, parser.description = "test_custom.py", "Word accuracy by length and on unseen words."
    group = parser.add_argument_group("splits")
    group.add_argument("--only_custom", action="store_true", help="leave the tables of test.py out")
    group.add_argument("--common_length", action="store_true", help="the common benchmarks by word length")
    group.add_argument("--union_length", action="store_true", help="Union14M's benchmarks by word length")
    for name in UNSEEN:
        group.add_argument(f"--{name}", action="store_true", help=f"words of test_custom/{name}")
    return parser


def parse_evaluation(argv: Sequence[str] | None, parser: argparse.ArgumentParser) -> EvalOptions:
    """Parse and check the command line of `test.py` or `test_custom.py`."""
    namespace, words = parser.parse_known_args(argv)
    given = vars(namespace)
    if given["batch_size"] < 1 or given["num_workers"] < 0:
        raise UserError("--batch_size, --num_workers: at least 1 image and at least 0 processes")
    known = {field.name for field in fields(EvalOptions)} & given.keys()
    unseen = tuple(name for name in UNSEEN if given.get(name))
    return EvalOptions(**{name: given[name] for name in known}, model_words=tuple(words), unseen=unseen)


def read_parser() -> argparse.ArgumentParser:
    """The published flags of `read.py`; further words are `name:type=value`."""
    parser = new_parser("read.py", "Read images with a recogniser; further words are name:type=value.")
    parser.add_argument("checkpoint", help="a checkpoint file, or pretrained=FILE")
    parser.add_argument("--images", nargs="+", help="image files")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    return parser


def parse_read(argv: Sequence[str] | None) -> tuple[str, list[str], str, list[str]]:
    """Parse the command line of `read.py`: checkpoint, image files, device, words `name:type=value`."""
    options, words = read_parser().parse_known_args(argv)
    # model arguments behind --images are no files; the published parser takes them for such
    behind = [word for word in options.images or [] if "=" in word and not Path(word).exists()]
    files = [word for word in options.images or [] if word not in behind]
    if not files:
        raise UserError("--images: it is needed: one or more image files")
    return at_home(options.checkpoint.removeprefix("pretrained=")), files, options.device, words + behind
