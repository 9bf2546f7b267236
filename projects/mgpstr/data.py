"""Training and evaluation sets of MGP-STR and ACDS-STR, from the options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.augment import recipes
from common.data.bad import FILE_NAME, BadSamples
from common.data.decode import BadImage, picture_size
from common.data.lmdb import WordLmdb
from common.data.loader import RatioMix, SeededSampler, WordLoader, word_loader
from common.data.masks import MaskSource
from common.data.sources import open_words
from common.data.words import RESIZED, WordDataset, discover, discover_groups
from common.errors import UserError
from common.train.distributed import Dist
from common.train.log import DASHES, sources_block, usage_lines
from projects.mgpstr.box_masks import check_boxes, mask_from_boxes, parse_boxes
from projects.mgpstr.flags import shares, source_list, usage
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.preprocess import SIZE, label_normaliser

# the two code bases spell two folders differently; either is taken
BENCHMARK = (
    "IIIT5k_3000", "SVT", "IC03_860", "IC03_867", "IC13_857", ("IC13_1015", "IC131095"), "IC15_1811",
    ("IC15_2077", "IC152077"), "SVTP", "CUTE80",
)  # fmt: skip
FAST = ("IC13_857", "SVT", "IIIT5k_3000", "IC15_1811", "SVTP", "CUTE80")
ACDS_FAST = (("IC131095", "IC13_1015"), "SVT", "IIIT5k_3000", ("IC152077", "IC15_2077"), "SVTP", "CUTE80")
ACDS_BENCHMARK = ("IIIT5k_3000", "SVT", *ACDS_FAST[:1], *ACDS_FAST[3:])
PICKLE = b"\x80"


@dataclass(frozen=True)
class Source:
    """A source of the training mixture: its LMDB folders with their samples, and its samples in a batch."""

    name: str
    folders: Mapping[Path, int]
    share: int

    @property
    def samples(self) -> int:
        return sum(self.folders.values())


class BoxMasks(MaskSource):
    """Masks of character core areas drawn from the `boxes-%09d` value of a sample, for the resized picture."""

    def native(self, image: np.ndarray, words: WordLmdb, number: int) -> np.ndarray:
        """uint8 [32, 128] of 0 and 1. Raises `BadImage` for boxes that cannot be read."""
        height, width = image.shape[:2]
        try:
            boxes = parse_boxes(words.value("boxes", number), f"boxes-{number + 1:09d}")
        except UserError as error:
            raise BadImage(str(error)) from None
        return mask_from_boxes(boxes, width, height, SIZE)


def augmentation(options: argparse.Namespace):
    """The augmenter of the flags, None for none; with box masks only what moves no pixel is drawn."""
    if options.close_aug:
        return None
    if options.is_mask_supervision and not options.isrand_aug:
        moving = [n for n in ("issel_aug", "issemantic_aug", "isrotation_aug", "islearning_aug") if getattr(options, n)]
        if moving:
            raise UserError(f"--{moving[0]}: it moves pixels away from their boxes; use --isrand_aug or --close_aug")
    groups = recipes.STILL_GROUPS if options.is_mask_supervision else recipes.ALL_GROUPS
    return recipes.from_flags(vars(options), preset=options.aug_preset, groups=groups)


def make_dataset(
    paths: Iterable[Path],
    options: argparse.Namespace,
    *,
    length: int | None,
    augment=None,
    masks: MaskSource | None = None,
) -> WordDataset:
    """Sets with the labels and pictures that the options ask for; labels that become empty stay, as published."""
    return WordDataset(
        list(paths), image_size=SIZE, max_length=length, drop_empty=False, pad=options.PAD, augment=augment,
        augment_at=RESIZED, masks=masks, keep=label_normaliser(options.character, options.sensitive),
    )  # fmt: skip


def training_data(options: argparse.Namespace, codes: LabelCodes) -> tuple[WordDataset, list[Source]]:
    """The training set and its sources in the order of the set.

    Raises `UserError` for sources that are missing, box labels that are missing or malformed, labels that do not fit.
    """
    names = source_list(options)
    groups = discover_groups(options.train_data, names)
    masks, length = None, None if options.data_filtering_off else options.batch_max_length
    if options.is_mask_supervision:
        masks = BoxMasks()
        # the published filter counts the entries of the box table, which has one more for the word
        length = None if length is None else length - 1
        refuse_pickles(path for group in groups for path in group)
    paths = [path for group in groups for path in group]
    dataset = make_dataset(paths, options, length=length, augment=augmentation(options), masks=masks)
    sizes = iter(dataset.sizes)
    sources = [
        Source(name, {path: next(sizes) for path in group}, share)
        for name, group, share in zip(names, groups, batch_shares(options))
    ]
    empty = [source.name for source in sources if not source.samples]
    if empty:
        raise UserError(f"--select_data: {empty[0]} below {options.train_data} has no usable sample")
    check_labels(dataset, codes, options)
    if masks is not None:
        check_box_labels(dataset)
    return dataset, sources


def batch_shares(options: argparse.Namespace) -> list[int]:
    """Samples of each source in a batch of one process: round(batch_size * ratio), at least 1, as published."""
    return [max(round(options.batch_size * share), 1) for share in shares(options)]


def describe(options: argparse.Namespace, sources: list[Source], dataset: WordDataset) -> str:
    """What log_dataset.txt says about the training data, as published, and a line about samples that were skipped."""
    root, ratios = Path(options.train_data), options.batch_ratio.split("-")
    ratios = ratios if len(ratios) == len(sources) else ["1.0"]
    names = [
        (source.name, {str(path.relative_to(root)): n for path, n in source.folders.items()}) for source in sources
    ]
    first, *blocks = sources_block(options.train_data, names, ratios, "opt.")
    lines, usage_given = [DASHES, *first], options.total_data_usage_ratio
    for block, source, ratio in zip(blocks, sources, ratios):
        used = usage_lines(source.name, source.samples, usage_given, options.batch_size, float(ratio), source.share)
        lines += [DASHES, *block, *used]
    shares_of_batch = "+".join(str(source.share) for source in sources)
    lines += [DASHES, f"Total_batch_size: {shares_of_batch} = {sum(source.share for source in sources)}", DASHES]
    skipped = {why: count for why, count in dataset.counts.items() if why not in ("stored", "kept") and count}
    return "\n".join([*lines, f"skipped samples: {skipped or 'none'}"])


def refuse_pickles(paths: Iterable[Path]) -> None:
    """Say what to do with sets in ACDS's published form, whose labels are pickles, before they are taken for bad
    text.
    """
    for path in paths:
        words = open_words(path)
        value = words.value("label", 0)
        if value is not None and value.startswith(PICKLE):
            raise UserError(
                f"{path}: labels are pickled box tables; turn them into JSON: strlab data convert acds {path} NEW"
            )


def check_labels(dataset: WordDataset, codes: LabelCodes, options: argparse.Namespace) -> None:
    """Refuse labels that the model has not enough positions for (only filters turned off let them through)."""
    if not options.data_filtering_off and all(character.isascii() for character in options.character):
        return
    bad = [label for label in (dataset.label(i) for i in range(len(dataset))) if not codes.fits(label)]
    if bad:
        raise UserError(
            f"{options.train_data}: {len(bad)} labels do not fit into {codes.length} positions, {bad[0]!r} first; "
            "leave out --data_filtering_off or raise --batch_max_length"
        )


def check_box_labels(dataset: WordDataset, samples: int = 64) -> None:
    """Look at the boxes of some samples before the first step. Raises `UserError` for the first that is wrong."""
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(samples, len(dataset))).astype(int)):
        words, number = dataset.location(int(index))
        where = f"{words.path}: boxes-{number + 1:09d}"
        boxes = parse_boxes(words.value("boxes", number), where)
        try:
            width, height = picture_size(words.image_bytes(number))
        except (BadImage, KeyError):
            continue  # unreadable pictures are counted when they are met
        wrong = check_boxes(boxes, width, height)
        if wrong:
            raise UserError(f"{where}: {wrong}; boxes are [x1, y1, x2, y2, character] in pixels of the stored picture")


def training_loader(
    dataset: WordDataset, sources: list[Source], options: argparse.Namespace, dist: Dist, folder: Path
) -> WordLoader:
    """Endless batches of this rank: every batch has the sources in the shares of `--batch_ratio`."""
    counts = [source.samples for source in sources]
    mix = RatioMix(
        counts, shares(options), options.batch_size, seed=options.manualSeed, rank=dist.rank,
        world_size=dist.world_size, usage=usage(options),
    )  # fmt: skip
    listed = folder / FILE_NAME if dist.is_main else None
    bad = BadSamples(len(dataset) + len(dataset.index_bad), options.bad_share, listed)
    pin = dist.device.type == "cuda"
    return word_loader(dataset, mix, options.workers, endless=True, bad=bad, pin_memory=pin)


def evaluation_loader(dataset: WordDataset, batch_size: int, workers: int) -> WordLoader:
    """All samples once, in order; unreadable ones are counted and stop nothing."""
    sampler = SeededSampler(len(dataset), batch_size, shuffle=False)
    return word_loader(
        dataset, sampler, min(workers, len(sampler)), bad=BadSamples(len(dataset), 1.0), pin_memory=False
    )


def benchmark(options: argparse.Namespace) -> tuple[str | tuple[str, ...], ...]:
    """The paper's list of sets; alternatives of a name in a tuple."""
    if options.Transformer.startswith("ACDS"):
        return ACDS_FAST if options.fast_acc else ACDS_BENCHMARK
    return FAST if options.fast_acc else BENCHMARK


def evaluation_sets(options: argparse.Namespace) -> dict[str, list[Path]]:
    """Name -> folders of what test_final.py reads: the paper's list, or all below `--eval_data` as one.

    A set of the list that is not there is said and left out, where the original stops. Raises `UserError` without any.
    """
    if not options.eval_data:
        raise UserError("--eval_data: not given; name the folder of the evaluation LMDBs")
    found = discover(options.eval_data)
    if not options.benchmark_all_eval:
        return {Path(options.eval_data).name: found}
    by_name = {path.name: path for path in found}
    sets, missing = {}, []
    for wanted in benchmark(options):
        names = (wanted,) if isinstance(wanted, str) else wanted
        chosen = next((name for name in names if name in by_name), None)
        if chosen is None:
            missing.append(names[0])
        else:
            sets[chosen] = [by_name[chosen]]
    if missing:
        print(f"{options.eval_data}: not there and left out: {', '.join(missing)}")
    if not sets:
        raise UserError(
            f"--eval_data: {options.eval_data} has none of the paper's sets; leave out --benchmark_all_eval"
        )
    return sets
