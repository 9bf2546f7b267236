"""Training and evaluation sets of MGP-STR and ACDS-STR, and what the networks see of a picture (spec section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.data.bad import BadSample, BadSamples
from common.data.decode import BadImage, decode_rgb, pad_right, picture_size, resize_bicubic, resize_keeping_ratio
from common.data.lmdb import WordLmdb
from common.data.loader import Batch, RatioMix, WordLoader, word_loader
from common.data.masks import MaskSource
from common.data.sources import open_words, set_or_stand_in
from common.data.words import RESIZED, WordDataset, discover, discover_groups
from common.errors import UserError
from common.text.coverage import DEFAULT_SHARE, check_coverage
from common.text.normalise import Normaliser, fold_case, kept_by_regex_class
from common.train.distributed import Dist
from common.train.log import DASHES, sources_block, usage_lines
from projects.mgpstr.box_masks import check_boxes, mask_from_boxes, parse_boxes
from projects.mgpstr.flags import Network
from projects.mgpstr.label_codes import LabelCodes

SIZE = (32, 128)
# the two code bases spell two folders differently; either is taken
BENCHMARK = (
    "IIIT5k_3000", "SVT", "IC03_860", "IC03_867", "IC13_857", ("IC13_1015", "IC131095"), "IC15_1811",
    ("IC15_2077", "IC152077"), "SVTP", "CUTE80",
)  # fmt: skip
FAST = ("IC13_857", "SVT", "IIIT5k_3000", "IC15_1811", "SVTP", "CUTE80")
ACDS_FAST = (("IC131095", "IC13_1015"), "SVT", "IIIT5k_3000", ("IC152077", "IC15_2077"), "SVTP", "CUTE80")
ACDS_BENCHMARK = ("IIIT5k_3000", "SVT", *ACDS_FAST[:1], *ACDS_FAST[3:])
PICKLE = b"\x80"


def fit(image: np.ndarray, size: tuple[int, int] = SIZE, pad: bool = False) -> np.ndarray:
    """uint8 [h, w, 3] -> [H, W, 3]: bicubic regardless of the aspect, or with `pad` keeping it, black to the right."""
    return pad_right(resize_keeping_ratio(image, size), size[1]) if pad else resize_bicubic(image, size)


def label_normaliser(charset: str, sensitive: bool = False, published: bool = False) -> Normaliser:
    """Lower-case unless `sensitive`, then keep the characters of the charset only.

    The published code puts the charset unescaped into a regular expression and so deletes the backslash from
    case-sensitive labels; `published=True` does as well (no case-sensitive weights were published).
    """
    return Normaliser(kept_by_regex_class(charset) if published else charset, lower=not sensitive)


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
    """Masks of character core areas from the `boxes-%09d` value of a sample, for the picture resized to `size`."""

    def __init__(self, size: tuple[int, int] = SIZE) -> None:
        super().__init__()
        self.size = size

    def native(self, image: np.ndarray, words: WordLmdb, number: int) -> np.ndarray:
        """uint8 [32, 128], or of another size, of 0 and 1. Raises `BadImage` for boxes that cannot be read."""
        height, width = image.shape[:2]
        try:
            boxes = parse_boxes(words.value("boxes", number), f"boxes-{number + 1:09d}")
        except UserError as error:
            raise BadImage(str(error)) from None
        return mask_from_boxes(boxes, width, height, self.size)


def make_dataset(
    paths: Iterable[Path],
    network: Network,
    *,
    length: int | None,
    augment=None,
    masks: MaskSource | None = None,
    keep_empty: bool = False,
    exclude: str = "",
) -> WordDataset:
    """Word sets with the labels and pictures that a network reads.

    `length`: longest raw label that is kept, None for all. Words whose label becomes empty are skipped; the published
    loader keeps them (`keep_empty`). `exclude`: a list of words that are no part of the set.
    """
    return WordDataset(
        list(paths), image_size=network.size, max_length=length, drop_empty=not keep_empty, pad=network.pad,
        augment=augment, augment_at=RESIZED, masks=masks, keep=label_normaliser(network.character, network.sensitive),
        exclude=exclude or None,
    )  # fmt: skip


def training_data(
    root: str,
    names: Sequence[str],
    shares: Sequence[int],
    network: Network,
    codes: LabelCodes,
    *,
    filtered: bool,
    boxes: bool,
    augment,
    unsupported_share: float = DEFAULT_SHARE,
    keep_empty: bool = False,
    exclude: str = "",
) -> tuple[WordDataset, list[Source]]:
    """The training set and its sources in the order of the set.

    Args:
        root, names: `--train_data` and the sources of `--select_data` below it.
        shares: samples of each source in a batch.
        filtered: drop labels longer than the network's.
        boxes: the LMDBs hold character boxes, from which masks are drawn (`--is_mask_supervision`).
        augment: applied to the resized picture.
        unsupported_share: share of labels that may lose letters to the character set.
        keep_empty: train on labels of which it leaves nothing.
        exclude: `--exclude`, a list of words that are not trained on.

    Raises `UserError` for a character set that is not that of the labels, for sources that are missing, for box labels
    that are missing or malformed, and for labels that do not fit.
    """
    groups = discover_groups(root, names)
    paths = [path for group in groups for path in group]
    length = network.batch_max_length if filtered else None
    if boxes:
        # the published filter counts the entries of the box table, which has one more for the word
        length = None if length is None else length - 1
        refuse_pickles(paths)
    masks = BoxMasks(network.size) if boxes else None
    dataset = make_dataset(
        paths, network, length=length, augment=augment, masks=masks, keep_empty=keep_empty, exclude=exclude
    )
    check_coverage(dataset.coverage(), unsupported_share, "--character, or --sensitive for capitals")
    sizes = iter(dataset.sizes)
    sources = [
        Source(name, {path: next(sizes) for path in group}, share) for name, group, share in zip(names, groups, shares)
    ]
    empty = [source.name for source in sources if not source.samples]
    if empty:
        raise UserError(f"--select_data: {empty[0]} below {root} has no usable sample")
    if not filtered or not network.character.isascii():
        refuse_long_labels(dataset, codes, root)
    if boxes:
        check_box_labels(dataset)
    return dataset, sources


def batch_shares(batch_size: int, ratios: Sequence[float]) -> list[int]:
    """Samples of each source in a batch of one process: round(batch_size * ratio), at least 1, as published."""
    return [max(round(batch_size * ratio), 1) for ratio in ratios]


def describe(
    root: str, ratios: Sequence[str], usage: str, batch_size: int, sources: list[Source], dataset: WordDataset
) -> str:
    """What log_dataset.txt says about the training data, as published, and a line about samples that were skipped.

    `ratios`, `usage` and `batch_size` are those of the command line.
    """
    ratios = ratios if len(ratios) == len(sources) else ["1.0"]
    folders = [
        (source.name, {str(path.relative_to(root)): n for path, n in source.folders.items()}) for source in sources
    ]
    first, *blocks = sources_block(root, folders, ratios, "opt.")
    lines = [DASHES, *first]
    for block, source, ratio in zip(blocks, sources, ratios):
        used = usage_lines(source.name, source.samples, usage, batch_size, float(ratio), source.share)
        lines += [DASHES, *block, *used]
    shares = "+".join(str(source.share) for source in sources)
    lines += [DASHES, f"Total_batch_size: {shares} = {sum(source.share for source in sources)}", DASHES]
    skipped = {why: count for why, count in dataset.counts.items() if why not in ("stored", "kept") and count}
    charset = [coverage.line(name) for name, coverage in dataset.coverage().items()]
    return "\n".join([*lines, *charset, f"skipped samples: {skipped or 'none'}"])


def refuse_pickles(paths: Iterable[Path]) -> None:
    """Refuse sets in ACDS's published form, whose labels are pickles, and name the command that converts them."""
    for path in paths:
        words = open_words(path)
        value = words.value("label", 0)
        if value is not None and value.startswith(PICKLE):
            raise UserError(
                f"{path}: labels are pickled box tables; turn them into JSON: strlab data convert acds {path} NEW"
            )


def refuse_long_labels(dataset: WordDataset, codes: LabelCodes, root: str) -> None:
    """Refuse labels that the network does not have enough positions for (only filters turned off let them through)."""
    bad = [label for label in (dataset.label(i) for i in range(len(dataset))) if not codes.fits(label)]
    if bad:
        raise UserError(
            f"{root}: {len(bad)} labels do not fit into {codes.length} positions, {bad[0]!r} first; "
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
    dataset: WordDataset,
    sources: list[Source],
    ratios: Sequence[float],
    dist: Dist,
    *,
    batch_size: int,
    usage: float,
    seed: int,
    workers: int,
    bad_share: float,
    bad_list: Path,
) -> WordLoader:
    """Endless batches of this rank: every batch has the sources in the shares of `--batch_ratio`.

    Unreadable samples are listed in `bad_list` by rank 0; more than `bad_share` of them stop the run.
    """
    mix = RatioMix(
        [source.samples for source in sources], list(ratios), batch_size, seed=seed, rank=dist.rank,
        world_size=dist.world_size, usage=usage,
    )  # fmt: skip
    bad = BadSamples(len(dataset) + len(dataset.index_bad), bad_share, bad_list if dist.is_main else None)
    pin = dist.device.type == "cuda"
    return word_loader(dataset, mix, workers, endless=True, bad=bad, pin_memory=pin, in_step=dist.distributed)


def benchmark(acds: bool, fast: bool) -> tuple[str | tuple[str, ...], ...]:
    """The paper's list of sets, or its short one; alternatives of a name in a tuple."""
    if acds:
        return ACDS_FAST if fast else ACDS_BENCHMARK
    return FAST if fast else BENCHMARK


def evaluation_sets(root: str | None, wanted: Sequence[str | tuple[str, ...]] | None) -> dict[str, list[Path]]:
    """Name -> LMDB folders of what test_final.py reads: the `wanted` sets one by one, or (None) all as one.

    A set of the list that is not there is reported and skipped, where the published code stops. Raises `UserError`
    where none is there.
    """
    if not root:
        raise UserError("--eval_data: not given; name the folder of the evaluation LMDBs")
    found = discover(root)
    if wanted is None:
        return {Path(root).name: found}
    by_name = {path.name: path for path in found}
    sets, missing = {}, []
    for entry in wanted:
        names = (entry,) if isinstance(entry, str) else entry
        chosen = next((found for name in names if (found := set_or_stand_in(name, by_name))), None)
        if chosen is None:
            missing.append(names[0])
        else:
            sets[chosen] = [by_name[chosen]]
    if missing:
        print(f"{root}: not there, skipped: {', '.join(missing)}")
    if not sets:
        raise UserError(f"--eval_data: {root} has none of the paper's sets; leave out --benchmark_all_eval")
    return sets


class ListedBatches:
    """`--eval_img`: batches of a list, whose lines are `label path`; unreadable files are reported and stand in `bad`.

    Labels are lower-cased unless sensitive and not reduced to the charset, as published. Raises `UserError` for a line
    of another form.
    """

    def __init__(self, path: Path, network: Network, size: int) -> None:
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        self.path, self.network, self.size = path, network, size
        self.rows = [(number, *line.split(" ", 1)) for number, line in lines if line.strip()]
        wrong = next((row[0] for row in self.rows if len(row) != 3), None)
        if wrong:
            raise UserError(f"{path}: line {wrong}: give a label, a blank and the path of its image")
        self.bad = BadSamples(len(self.rows), 1.0)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.size):
            pictures, labels = [], []
            for number, label, file in self.rows[start : start + self.size]:
                try:
                    data = (self.path.parent / file).read_bytes()
                    pictures.append(fit(decode_rgb(data), self.network.size, self.network.pad))
                except (OSError, BadImage) as error:
                    print(f"{file}: skipped ({error})")
                    self.bad.add([BadSample(str(self.path), number, f"{file}: {error}")])
                    continue
                labels.append(label if self.network.sensitive else fold_case(label, self.network.character))
            if labels:
                yield Batch(torch.from_numpy(np.stack(pictures)), labels, torch.arange(len(labels)))


def lists(root: str | None, wanted: Sequence[str | tuple[str, ...]] | None) -> list[Path]:
    """The lists `<name>.txt` below `--eval_data` that `--eval_img` reads: those of the benchmark, or (None) all."""
    if not root:
        raise UserError("--eval_data: not given; name the folder of the lists <name>.txt for --eval_img")
    found = {path.stem: path for path in sorted(Path(root).glob("*.txt"))}
    names = [name for entry in wanted or found for name in ([entry] if isinstance(entry, str) else entry)]
    chosen = [found[name] for name in names if name in found]
    if not chosen:
        raise UserError(f"--eval_data: {root}: no list <name>.txt for --eval_img; lines are `label path`")
    return chosen
