"""SIGA's data: training samples with glyph masks, evaluation sets, and the words about them for the log."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from common.augment import recipes
from common.data.bad import FILE_NAME, BadSamples
from common.data.decode import BadImage
from common.data.loader import RatioMix, SeededSampler, WordLoader, word_loader
from common.data.masks import MaskSource, Mirrored, Replaced, StoredMasks
from common.data.words import NATIVE, RESIZED, WordDataset, discover, discover_groups
from common.errors import UserError
from common.text.charset import unsupported
from common.text.coverage import check_coverage, empty_line
from common.text.normalise import Normaliser
from common.train.distributed import Dist
from common.train.log import DASHES, sources_block, usage_lines
from projects.siga.model.kmeans_mask import text_mask
from projects.siga.options import data_usage, ratios, selection

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
    """S's mask LMDBs hold height·width raw bytes; ours hold PNG as R's do. Both are read."""

    def _raw(self, value: bytes, image: np.ndarray) -> np.ndarray:
        from common.data.decode import decode_mask

        return decode_mask(value) if value.startswith(PNG) else StoredMasks._raw(value, image)


def normaliser(character: str, sensitive: bool) -> Normaliser:
    """Lower case unless sensitive, then only the charset's characters stay."""
    return Normaliser(charset=character, lower=not sensitive)


def mask_form(options: argparse.Namespace) -> str:
    """How masks are brought to the input size, see `common.data.masks.fit_mask`. An augmented mask has fractions: R
    cuts them in the loss, after the rectification; S drops them before the resize."""
    return {"R": "float", "S": "integer"}.get(options.family, "binary") if options.Aug else "binary"


def mask_source(options: argparse.Namespace) -> tuple[MaskSource, str]:
    """Where masks come from, and a line about it.

    R, S: LMDBs below `--mask_path` that mirror what follows `training` in the picture's path; S without the flag looks
    for `Mask` in place of `training`, as published, and says where it found none. Otherwise, and always for T, k-means
    on the fly.
    """
    if options.family == "T":
        return MaskSource(text_mask, at="resized"), "masks: k-means on the resized image"
    form = mask_form(options)
    if options.mask_path:
        return EitherMasks(Mirrored(options.mask_path), raw=True, form=form), f"masks: {options.mask_path}"
    absent = ""
    if options.family == "S" and options.mask_path is None and "training" in Path(options.train_data).parts:
        beside = Replaced("training", "Mask")
        folder = beside(Path(options.train_data))
        if folder.is_dir():
            return EitherMasks(beside, raw=True, form=form), f"masks: {folder}"
        absent = f" (no folder {folder})"
    about = f"masks: k-means while training{absent}; mask_create makes them once and faster"
    return MaskSource(text_mask, at="native", form=form), about


def augmentation(options: argparse.Namespace) -> tuple[object | None, str]:
    """The augmenter that the flags ask for, or None, and where it works: before or after the resize."""
    if options.family != "T":
        made = recipes.abinet(seed=options.manual_seed, resample=options.aug_resample) if options.Aug else None
        return made, NATIVE
    if options.issel_aug and not any(getattr(options, group) for group in recipes.ALL_GROUPS):
        raise UserError(f"--issel_aug: no group was named; add some of --{' --'.join(recipes.ALL_GROUPS)}")
    return recipes.from_flags(vars(options), preset="siga"), RESIZED


def sources(options: argparse.Namespace) -> list[tuple[str, list[Path]]]:
    """(name, LMDB folders) of each selected training source."""
    names = selection(options.select_data)
    if names is None:
        return [("/", discover(options.train_data))]
    found = list(zip(names, discover_groups(options.train_data, names)))
    paths = [path for _, some in found for path in some]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"--select_data: {options.select_data}: two of its names select {twice}; leave one out")
    return found


def training_data(options: argparse.Namespace) -> tuple[WordDataset, list[tuple[str, list[Path]]], str]:
    """The training set, its sources, and the lines about them for the log.

    Raises:
        UserError: missing or foreign LMDBs, masks of another number, labels that the charset cannot write.
    """
    chosen = sources(options)
    masks, about_masks = mask_source(options)
    augment, place = augmentation(options)
    paths = list(dict.fromkeys(path for _, some in chosen for path in some))
    words = normaliser(options.character, options.sensitive)
    # "error" and "skip" judge what a label holds before the deletion, so that only the case is normalised there.
    judged = words if options.foreign == "delete" else Normaliser(lower=not options.sensitive)
    make = partial(
        WordDataset,
        paths,
        image_size=(options.imgH, options.imgW),
        max_length=options.batch_max_length,
        keep=judged,
        charset=options.character,
        on_unsupported="keep" if options.foreign == "delete" else options.foreign,
        drop_empty=not options.keep_empty_labels,
        augment=augment,
        augment_at=place,
        masks=masks,
        exclude=options.exclude or None,
    )
    try:
        dataset = make()
    except UserError as error:
        if "no usable sample" in str(error):
            raise UserError(f"{error}; --character must have the characters of the labels") from None
        raise
    if isinstance(masks, StoredMasks):
        masks.check(dataset.lmdbs)
    _refuse_empty(dataset, options)
    if options.foreign == "delete":
        check_coverage(dataset.coverage(), options.unsupported_share, "--character, or --sensitive for capitals")
    return dataset, chosen, describe(dataset, chosen, options, about_masks)


def _refuse_empty(dataset: WordDataset, options: argparse.Namespace) -> None:
    """Most labels without a character of the charset mean that it is the wrong one."""
    counts = dataset.counts
    if counts["empty"] > counts["stored"] / 2:
        raw = (words.label(i) for words in dataset.lmdbs[:1] for i in range(min(len(words), 200)))
        foreign = "".join(c for c, _ in unsupported(raw, options.character).most_common(12))
        raise UserError(
            f"--character: {counts['empty']:,} of {counts['stored']:,} labels under {options.train_data} have "
            f"no character of it (they have {foreign!r}); give the charset of the labels, or --sensitive"
        )


def describe(
    dataset: WordDataset, chosen: Iterable[tuple[str, list[Path]]], options: argparse.Namespace, masks: str
) -> str:
    """What is trained on, one line a folder."""
    sizes = dict(zip((words.path for words in dataset.lmdbs), dataset.sizes))
    root = Path(options.train_data)
    found = [(name, {path.relative_to(root).as_posix(): sizes[path] for path in paths}) for name, paths in chosen]
    shares = ratios(options, [name for name, _ in found])
    t = options.family == "T"
    shown = [f"{share:g}" for share in shares] if t else [round(share, 3) for share in shares]
    first, *blocks = sources_block(options.train_data, found, shown, "opt." if t else "")
    lines = [*first]
    for (name, folders), share, block in zip(found, shares, blocks):
        lines += [DASHES, *block]
        if t:
            per_batch = max(round(options.batch_size * share), 1)
            usage = options.total_data_usage_ratio
            lines += usage_lines(name, sum(folders.values()), usage, options.batch_size, share, per_batch)
    if t:
        every = [max(round(options.batch_size * share), 1) for share in shares]
        lines += [DASHES, f"Total_batch_size: {'+'.join(map(str, every))} = {sum(every)}"]
    lines.append(DASHES)
    counts = dataset.counts
    left_out = ", ".join(f"{counts[why]:,} {why}" for why in ("too_long", "empty", "unsupported", "bad") if counts[why])
    lines += [coverage.line(name) for name, coverage in dataset.coverage().items()]
    lines.append(
        f"samples: {len(dataset):,} of {counts['stored']:,}" + (f" (left out: {left_out})" if left_out else "")
    )
    return "\n".join([*lines, masks])


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
    dataset: WordDataset, chosen: list[tuple[str, list[Path]]], options: argparse.Namespace, dist: Dist, folder: Path
) -> tuple[WordLoader, int]:
    """Endless batches of this rank, and the batches of one epoch.

    R: a shuffled, dropped-last sampler over all sets. S: the same without dropping; its batch is all processes'.
    T: every batch has the sources in the shares of `--batch_ratio`.
    """
    place = {"seed": options.manual_seed, "rank": dist.rank, "world_size": dist.world_size}
    size, usage = options.batch_size, data_usage(options)
    if options.family == "S":
        if size % dist.world_size:
            raise UserError(f"--batch_size: {size} (of all processes together) is not divisible by {dist.world_size}")
        size //= dist.world_size
    shares = ratios(options, [name for name, _ in chosen])
    if options.family == "T" and len(chosen) > 1:
        by_path = dict(zip((words.path for words in dataset.lmdbs), dataset.sizes))
        sampler = RatioMix(
            [sum(by_path[path] for path in paths) for _, paths in chosen], shares, size, usage=usage, **place
        )
        per_epoch = max(len(source) for source in sampler.sources)
    else:
        used = max(int(len(dataset) * usage), 1)  # a source's first samples, as published
        sampler = SeededSampler(used, size, drop_last=options.family == "R", **place)
        per_epoch = len(sampler)
    listed = folder / FILE_NAME if dist.is_main else None
    bad = BadSamples(len(dataset) + len(dataset.index_bad), options.bad_share, listed)
    loader = word_loader(
        dataset, sampler, options.workers, endless=True, bad=bad, pin_memory=dist.device.type == "cuda"
    )
    return loader, per_epoch


def wanted_sets(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Names of the evaluation sets that the flags ask for; None for all that are there."""
    if options.family == "T":
        return FAST if options.fast_acc else BENCHMARK if options.benchmark_all_eval else None
    return BENCHMARK if options.benchmark_all_eval else None


def named_sets(root: str | Path) -> dict[str, Path]:
    """The LMDBs at or below `root` by folder name; where several have the same, by their path below `root`."""
    paths = discover(root)
    names = [path.absolute().name for path in paths]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return {path.relative_to(root).as_posix() if name in shared else name: path for name, path in zip(names, paths)}


def evaluation_sets(
    root: str | Path, names: Iterable[str] | None, options: argparse.Namespace
) -> dict[str, WordDataset]:
    """Evaluation sets by name, in the order of `names` (sorted without), without masks and augmentation.

    Sets that are named and absent are said and left out. Label lengths: R takes all, S drops over-long ones, T too
    unless `--data_filtering_off` or `--sensitive`.
    """
    found = named_sets(root)
    if names is not None:
        missing = [name for name in names if name not in found]
        several = [path for path in found for name in missing if path.endswith(f"/{name}")]
        if several:
            raise UserError(f"--eval_data: {root}: sets of one name: {', '.join(several)}; name a folder with one only")
        if missing:
            print(f"{root}: not there and left out: {', '.join(missing)}")
        there, found = ", ".join(found), {name: found[name] for name in names if name in found}
        if not found:
            raise UserError(f"--eval_data: {root}: none of the sets {', '.join(missing)}; there are {there}")
    free = options.family == "R" or (options.family == "T" and (options.data_filtering_off or options.sensitive))
    make = partial(
        WordDataset,
        image_size=(options.imgH, options.imgW),
        max_length=None if free else options.batch_max_length,
        keep=normaliser(options.character, options.sensitive),
        pad=options.family == "T" and options.PAD,
    )
    sets = {name: make([path]) for name, path in found.items()}
    for name, words in sets.items():
        if empty := words.counts["empty"]:
            print(empty_line(name, empty))
    return sets
