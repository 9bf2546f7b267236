"""Fine-tuning data: where the sets are, how labels are prepared, and the batches (spec section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data.bad import FILE_NAME, BadSamples
from common.data.loader import Batch, SeededSampler, WordLoader, word_loader
from common.data.words import WordDataset, discover
from common.errors import UserError
from common.text.coverage import check_coverage
from common.text.normalise import Normaliser
from common.train.distributed import Dist
from projects.ssm.finetune.augment import SceneTextRandAugment
from projects.ssm.finetune.flags import DataOptions

TRAIN_ROOTS = {"Union": "Union/train_union", "icdar24": "icdar24/train", "iam": "iam/iam_train", "cvl": "cvl/cvl_train"}
VALIDATION_ROOTS = {
    "Union": "Union/val_union",
    "icdar24": "icdar24/val",
    "iam": "iam/iam_test",
    "cvl": "cvl/cvl_test",
}
CHINESE = {"scene_train": "scene", "web_train": "web", "document_train": "document"}


def rotated(image: np.ndarray, rng: np.random.Generator, mask=None, *, degrees: int = 0) -> np.ndarray:
    """Turned counter-clockwise by `degrees` on a canvas that holds all of it."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).rotate(degrees, expand=True))


def label_rules(charset: str, max_length: int, whitespace: bool = True, ascii_fold: bool = True) -> dict[str, Any]:
    """Rules of `WordDataset`: prepare, drop what is too long, adapt to the charset, drop what is empty then."""
    normaliser = Normaliser(charset, whitespace=whitespace, ascii_fold=ascii_fold, adapt=True)
    return {"max_length": max_length, "keep": normaliser, "measure": normaliser.prepare, "drop_empty": True}


def open_words(root: Path, image_size: tuple[int, int], rules: dict[str, Any], augment=None) -> WordDataset:
    """All LMDBs below `root`. Raises `UserError` that names the folder when it is missing or nothing is usable."""
    if not root.is_dir():
        raise UserError(f"data.root_dir: {root} does not exist; give the folder that holds train, val and test")
    try:
        return WordDataset(discover(root), image_size=image_size, augment=augment, **rules)
    except UserError as error:
        hint = "; other characters need a charset= and model.charset_test= (test.py: charset_test:str=) that have them"
        raise UserError(f"{error}{hint if 'no usable sample' in str(error) else ''}") from None


class SceneTextDataModule:
    """Training, validation and test sets below one root, in the published tree or in this library's.

    Published: train/<train_dir>, val, test/<name>, and the special places of Union, icdar24, iam and cvl. Where there
    is no `train` folder: training, validation, evaluation/<name>.
    """

    def __init__(self, options: DataOptions, seed: int = 0) -> None:
        self.options, self.seed = options, seed
        self.root, self.image_size = Path(options.root_dir), tuple(options.img_size)

    def train_root(self) -> Path:
        """Folder of the training LMDBs."""
        name = self.options.train_dir
        root = self.root / TRAIN_ROOTS.get(name, f"train/{name}")
        if not root.is_dir() and not (self.root / "train").is_dir() and (self.root / "training").is_dir():
            own = self.root / "training" / name
            return own if own.is_dir() else self.root / "training"
        return root

    def validation_root(self) -> Path:
        """Folder of the validation LMDBs; Union's own, where it exists, else val."""
        root = self.root / VALIDATION_ROOTS.get(self.options.train_dir, "val")
        if root.is_dir():
            return root
        return self.root / ("val" if (self.root / "val").is_dir() else "validation")

    def rules(self, charset: str) -> dict[str, Any]:
        """The label rules of these options for a charset."""
        o = self.options
        return label_rules(charset, o.max_label_length, o.remove_whitespace, o.normalize_unicode)

    def train_dataset(self) -> WordDataset:
        """Words to train on, augmented if the options say so."""
        augment = SceneTextRandAugment() if self.options.augment else None
        rules = self.rules(self.options.charset_train) | {"exclude": self.options.exclude or None}
        return open_words(self.train_root(), self.image_size, rules, augment)

    def validation_dataset(self) -> WordDataset:
        """Words to validate on; labels are those of `charset_test`."""
        return open_words(self.validation_root(), self.image_size, self.rules(self.options.charset_test))

    def loaders(self, place: Callable[[], tuple[int, int]], dist: Dist, out: Path) -> tuple[Batches, Batches]:
        """Training batches that begin at `place()` (epoch, batch), and validation batches.

        More than `bad_share` unreadable training words stop the run; those of the validation are counted and reported.
        """
        o, rank, world = self.options, dist.rank, dist.world_size
        train, validation = self.train_dataset(), self.validation_dataset()
        for line in check_coverage(train.coverage(), o.unsupported_share, "charset="):
            print(line)
        print(f"training: {len(train)} words of {self.train_root()}; validation: {len(validation)} words")
        sampler = SeededSampler(len(train), o.batch_size, self.seed, rank, world)
        fix = "raise data.bad_share or look with `strlab doctor`"
        listed = out / FILE_NAME if dist.is_main else None
        bad = BadSamples(len(train) + len(train.index_bad), o.bad_share, listed, fix)
        words = word_loader(train, sampler, o.num_workers, bad=bad, in_step=True)
        if len(validation) < world:
            raise UserError(f"data.root_dir: {len(validation)} validation words for {world} processes; start fewer")
        in_order = SeededSampler(len(validation), o.batch_size, 0, rank, world, shuffle=False, even=False)
        skipped = BadSamples(len(validation) + len(validation.index_bad), limit=1.0)
        read = word_loader(validation, in_order, o.num_workers, bad=skipped, in_step=True)
        most = math.ceil(math.ceil(len(validation) / world) / o.batch_size)  # batches of the rank that has most
        return Batches(words, place), Batches(read, at_least=most)


class ChineseSceneTextDataModule(SceneTextDataModule):
    """The Chinese benchmark's tree: {scene,web,document}/<train_dir> and {scene,web,document}_val next to it."""

    def train_root(self) -> Path:
        name = self.options.train_dir
        return self.root / CHINESE.get(name, name) / name

    def validation_root(self) -> Path:
        kind = CHINESE.get(self.options.train_dir, self.options.train_dir)
        return self.root / kind / f"{kind}_val"


BUNDLES = {cls.__name__: cls for cls in (SceneTextDataModule, ChineseSceneTextDataModule)}


class Batches:
    """A sized iterable over a word loader, each pass beginning where `place()` says: (epoch, batch).

    A pass of fewer than `at_least` batches ends with copies of its last one, of weight 0: all ranks make as many.
    """

    def __init__(
        self, loader: WordLoader, place: Callable[[], tuple[int, int]] = lambda: (0, 0), at_least: int = 0
    ) -> None:
        self.loader, self.place, self.at_least = loader, place, at_least

    def __len__(self) -> int:
        return max(len(self.loader.sampler), self.at_least)

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.loader.sampler
        sampler.epoch, sampler.position = self.place()
        if sampler.epoch or sampler.position:  # the run has an earlier part
            self.loader.bad.recall()
        count, batch = 0, None
        for count, batch in enumerate(self.loader, start=1):  # noqa: B007
            yield batch
        if batch is not None:
            yield from (replace(batch, weight=0.0) for _ in range(self.at_least - count))

    def state_dict(self) -> dict[str, int]:
        """The number of samples; Lightning asks for a state of every loader that can begin inside an epoch."""
        return {"samples": self.loader.sampler.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise `UserError` for another number of samples; `place()` knows the position."""
        if state.get("samples") != self.loader.sampler.n:
            raise UserError(
                f"ckpt_path: the run had {state.get('samples')} training words, now {self.loader.sampler.n}: give its "
                "data, or start a new run from its weights with pretrained="
            )


def rotation(degrees: int) -> Callable | None:
    """The augmenter that turns test images, None for 0."""
    return partial(rotated, degrees=degrees) if degrees else None
