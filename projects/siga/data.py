"""SIGA's data: training samples with glyph masks, evaluation sets, and what the logs say about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.bad import FILE_NAME, BadSamples
from common.data.decode import BadImage, decode_mask
from common.data.loader import RatioMix, SeededSampler, WordLoader, word_loader
from common.data.masks import MaskSource, Mirrored, Replaced, StoredMasks
from common.data.sources import set_or_stand_in
from common.data.words import NATIVE, RESIZED, WordDataset, discover, discover_groups
from common.errors import UserError
from common.text.coverage import check_coverage, empty_line
from common.text.normalise import Normaliser
from common.train.distributed import Dist
from common.train.log import DASHES, sources_block, usage_lines
from projects.siga.flags import GROUPS
from projects.siga.model.kmeans_mask import text_mask

Sources = list[tuple[str, list[Path]]]
"""Name and LMDB folders of each training source."""

BENCHMARK = (
    "IIIT5k_3000",
    "SVT",
    "IC03_860",
    "IC03_867",
    "IC13_857",
    "IC13_1015",
    "IC15_1811",
    "IC15_2077",
    "SVTP",
    "CUTE80",
)
FAST = ("IC13_857", "SVT", "IIIT5k_3000", "IC15_1811", "SVTP", "CUTE80")
RELEASED_T = ("COCOText", "CTW", "TotalText", "HOST", "WOST")
PNG = b"\x89PNG"


class EitherMasks(StoredMasks):
    """S's mask LMDBs hold height·width raw bytes; R's, and those written here, hold PNG. Both are read."""

    def _raw(self, value: bytes, image: np.ndarray) -> np.ndarray:
        return decode_mask(value) if value.startswith(PNG) else StoredMasks._raw(value, image)


def mask_source(family: str, mask_path: str | None, train_data: str, augmented: bool) -> tuple[MaskSource, str]:
    """Where masks come from, and a line about it.

    R, S: LMDBs below `--mask_path` that mirror what follows `training` in the picture's path; S without the flag looks
    for `Mask` in place of `training`, as published, and says where it found none. Otherwise, and always for T, k-means
    on the fly. An augmented mask has fractions: R cuts them in the loss, after the rectification; S drops them before
    the resize (see `common.data.masks.fit_mask`).
    """
    if family == "T":
        return MaskSource(text_mask, at="resized"), "masks: k-means on the resized image"
    form = {"R": "float", "S": "integer"}[family] if augmented else "binary"
    if mask_path:
        return EitherMasks(Mirrored(mask_path), raw=True, form=form), f"masks: {mask_path}"
    absent = ""
    if family == "S" and mask_path is None and "training" in Path(train_data).parts:
        beside = Replaced("training", "Mask")
        folder = beside(Path(train_data))
        if folder.is_dir():
            return EitherMasks(beside, raw=True, form=form), f"masks: {folder}"
        absent = f" (no folder {folder})"
    about = f"masks: k-means while training{absent}; mask_create makes them once and faster"
    return MaskSource(text_mask, at="native", form=form), about


def augmentation(
    family: str, wanted: bool, seed: int, resample: bool, flags: Mapping[str, Any]
) -> tuple[object | None, str]:
    """The augmenter that the flags ask for, or None, and where it works: ABINet's for R and S (`wanted`: `--Aug`) on
    the stored picture, T's by its own flags on the resized one."""
    if family != "T":
        if not wanted:
            return None, NATIVE
        from common.augment.abinet import AbinetAugment, published_strengths  # operations that only --Aug needs

        return AbinetAugment(None if resample else published_strengths(seed)[0]), NATIVE
    if flags["issel_aug"] and not any(flags[group] for group in GROUPS):
        raise UserError(f"--issel_aug: no group was named; add some of --{' --'.join(GROUPS)}")
    from common.augment import recipes  # 36 operations that only T has

    return recipes.from_flags(flags, preset="siga"), RESIZED


def find_sources(train_data: str, names: Sequence[str] | None) -> Sources:
    """The training sources by name; all LMDBs as one, called "/", where no names are given."""
    if names is None:
        return [("/", discover(train_data))]
    found = list(zip(names, discover_groups(train_data, names)))
    paths = [path for _, some in found for path in some]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"--select_data: {'-'.join(names)}: two of its names select {twice}; leave one out")
    return found


def training_data(
    sources: Sources,
    *,
    image_size: tuple[int, int],
    max_length: int,
    character: str,
    sensitive: bool,
    foreign: str,
    unsupported_share: float,
    keep_empty: bool,
    exclude: str,
    masks: MaskSource,
    augment: object | None,
    augment_at: str,
) -> tuple[WordDataset, list[str]]:
    """The training set over all sources, and what the charset does to the labels of each LMDB, a line each.

    Raises:
        UserError: missing or foreign LMDBs, masks of another number, labels that the charset cannot write.
    """
    # "error" and "skip" judge what a label holds before the deletion, so that only the case is normalised there.
    deletes = foreign == "delete"
    make = partial(
        WordDataset,
        list(dict.fromkeys(path for _, some in sources for path in some)),
        image_size=image_size,
        max_length=max_length,
        keep=Normaliser(charset=character if deletes else None, lower=not sensitive),
        charset=character,
        on_unsupported="keep" if deletes else foreign,
        drop_empty=not keep_empty,
        augment=augment,
        augment_at=augment_at,
        masks=masks,
        exclude=exclude or None,
    )
    try:
        dataset = make()
    except UserError as error:
        if "no usable sample" in str(error):
            raise UserError(f"{error}; --character must have the characters of the labels") from None
        raise
    if isinstance(masks, StoredMasks):
        masks.check(dataset.lmdbs)
    limit = unsupported_share if deletes else 1.0
    return dataset, check_coverage(dataset.coverage(), limit, "--character, or --sensitive for capitals")


def describe(
    dataset: WordDataset, sources: Sources, train_data: str, shares: Sequence[float], batch_size: int, usage: str | None
) -> list[str]:
    """What is trained on, in the form of the published logs, and what was skipped.

    `usage`: `--total_data_usage_ratio` of T as given; None for R and S, whose logs do not mention it.
    """
    sizes = dict(zip((words.path for words in dataset.lmdbs), dataset.sizes))
    root, t = Path(train_data), usage is not None
    found = [(name, {path.relative_to(root).as_posix(): sizes[path] for path in paths}) for name, paths in sources]
    shown = [f"{share:g}" for share in shares] if t else [round(share, 3) for share in shares]
    lines, *blocks = sources_block(train_data, found, shown, "opt." if t else "")
    parts = [max(round(batch_size * share), 1) for share in shares]
    for (name, folders), share, part, block in zip(found, shares, parts, blocks):
        lines += [DASHES, *block]
        if t:
            lines += usage_lines(name, sum(folders.values()), usage, batch_size, share, part)
    if t:
        lines += [DASHES, f"Total_batch_size: {'+'.join(map(str, parts))} = {sum(parts)}"]
    counts = dataset.counts
    skipped = ", ".join(f"{counts[why]:,} {why}" for why in ("too_long", "empty", "unsupported", "bad") if counts[why])
    told = f" (skipped: {skipped})" if skipped else ""
    return [*lines, DASHES, f"samples: {len(dataset):,} of {counts['stored']:,}{told}"]


def check_samples(dataset: WordDataset, count: int) -> str:
    """Read and decode `count` samples spread over the set before the first step; returns a line with what was seen.

    Raises:
        UserError: half of them or more cannot be read.
    """
    if not count:
        return "samples checked: none"
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    reasons, shares = [], []
    for index in chosen:
        try:
            sample = dataset.sample(int(index), epoch=0, seed=0)
        except BadImage as error:
            words, number = dataset.location(int(index))
            reasons.append(f"{words.path} {number + 1}: {error}")
            continue
        shares.append(float(sample.mask.mean()) if sample.mask is not None else 0.0)
    if len(reasons) * 2 >= len(chosen):
        raise UserError(
            f"{reasons[0]} ({len(reasons)} of {len(chosen)} samples looked at cannot be read); look with "
            "`strlab doctor`"
        )
    text = f"text pixels {100 * np.mean(shares):.1f} %, images without any {sum(share == 0 for share in shares)}"
    return f"samples checked: {len(chosen)}, unreadable {len(reasons)}, {text}"


def training_loader(
    dataset: WordDataset,
    sources: Sources,
    *,
    family: str,
    batch_size: int,
    shares: Sequence[float],
    usage: float,
    seed: int,
    workers: int,
    bad_share: float,
    folder: Path,
    dist: Dist,
) -> tuple[WordLoader, int]:
    """Endless batches of this rank, and the batches of one epoch.

    R: a shuffled, dropped-last sampler over all sets. S: the same without dropping; its batch is all processes'.
    T: every batch has the sources in their shares.
    """
    place = {"seed": seed, "rank": dist.rank, "world_size": dist.world_size}
    if family == "S":
        if batch_size % dist.world_size:
            raise UserError(
                f"--batch_size: {batch_size} (of all processes together) is not divisible by {dist.world_size}"
            )
        batch_size //= dist.world_size
    if family == "T" and len(sources) > 1:
        by_path = dict(zip((words.path for words in dataset.lmdbs), dataset.sizes))
        sizes = [sum(by_path[path] for path in paths) for _, paths in sources]
        sampler = RatioMix(sizes, shares, batch_size, usage=usage, **place)
        per_epoch = max(len(source) for source in sampler.sources)
    else:
        used = max(int(len(dataset) * usage), 1)  # a source's first samples, as published
        sampler = SeededSampler(used, batch_size, drop_last=family == "R", **place)
        per_epoch = len(sampler)
    bad = BadSamples(len(dataset) + len(dataset.index_bad), bad_share, folder / FILE_NAME if dist.is_main else None)
    pin = dist.device.type == "cuda"
    loader = word_loader(dataset, sampler, workers, endless=True, bad=bad, pin_memory=pin, in_step=dist.distributed)
    return loader, per_epoch


def named_sets(root: str | Path) -> dict[str, Path]:
    """The LMDBs at or below `root` by folder name; where several have the same, by their path below `root`."""
    paths = discover(root)
    names = [path.absolute().name for path in paths]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return {path.relative_to(root).as_posix() if name in shared else name: path for name, path in zip(names, paths)}


def evaluation_sets(
    root: str | Path,
    names: Iterable[str] | None,
    *,
    image_size: tuple[int, int],
    max_length: int | None,
    character: str,
    sensitive: bool,
    pad: bool = False,
) -> dict[str, WordDataset]:
    """Evaluation sets by name, in the order of `names` (sorted without), without masks and augmentation.

    Sets that are named and absent are reported and skipped, and so are words of which the charset leaves nothing.
    """
    found = named_sets(root)
    if names is not None:
        names = [set_or_stand_in(name, found) or name for name in names]
        missing = [name for name in names if name not in found]
        several = [path for path in found for name in missing if path.endswith(f"/{name}")]
        if several:
            raise UserError(f"--eval_data: {root}: sets of one name: {', '.join(several)}; name a folder with one only")
        if missing:
            print(f"{root}: not there and skipped: {', '.join(missing)}")
        there, found = ", ".join(found), {name: found[name] for name in names if name in found}
        if not found:
            raise UserError(f"--eval_data: {root}: none of the sets {', '.join(missing)}; there are {there}")
    keep = Normaliser(charset=character, lower=not sensitive)
    make = partial(WordDataset, image_size=image_size, max_length=max_length, keep=keep, pad=pad)
    sets = {name: make([path]) for name, path in found.items()}
    for name, words in sets.items():
        if empty := words.counts["empty"]:
            print(empty_line(name, empty))
    return sets


def longest_label(family: str, batch_max_length: int, data_filtering_off: bool, sensitive: bool) -> int | None:
    """Length beyond which a word is not evaluated: R takes all, S skips over-long ones, T too unless
    `--data_filtering_off` or `--sensitive`."""
    free = family == "R" or (family == "T" and (data_filtering_off or sensitive))
    return None if free else batch_max_length
