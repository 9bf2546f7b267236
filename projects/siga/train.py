"""Train SIGA: R (TRBA, RBA), S (TSBA) or T (char_str_base_patch4_3_32_128), with the published flags.

torchrun --nproc_per_node 2 projects/siga/train.py --model_name TRBA --train_data … --eval_data … --mask_path …
python -m torch.distributed.launch --nproc_per_node 2 projects/siga/train.py …
python projects/siga/train.py …
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.loader import WordLoader
from common.data.words import WordDataset
from common.errors import command
from common.train.distributed import Dist, process_group, wrap
from common.train.jobs import Evaluate, States, every
from common.train.log import MetricsLog, ScalarWriter
from common.train.loop import Clock, Engine, Job, Loop
from common.train.optim import Precision
from common.train.session import check_room, check_writable, folder_lock, precision_note, state_bytes
from common.train.state import TrainingState, seed_everything
from projects.siga import data, files
from projects.siga.evaluate import Evaluation, evaluate
from projects.siga.flags import TRAIN, Options, parse_training, ratios
from projects.siga.method import SigaMethod, make_optimizer, make_schedule
from projects.siga.model.base import SigaModel
from projects.siga.model.build import build_row, init_published, make_codec, start_model

if TYPE_CHECKING:
    from torch import nn


@command
def main(argv: Sequence[str] | None = None) -> int:
    o, values = parse_training(argv)
    folder = files.run_folder(o.exp_name, o.variant, o.manual_seed, Path(o.output) / o.saved_path)
    with process_group(o.device, o.dist_url, o.local_rank, o.dist_timeout) as dist:
        with dist.failing_together():
            if dist.is_main:
                check_writable(folder)
        with folder_lock(folder, dist):
            return train(o, values, folder, dist)


def train(o: Options, values: dict[str, Any], folder: Path, dist: Dist) -> int:
    """Build the run and train it to its last step or to a request to stop. Returns the exit status."""
    with dist.failing_together():
        seed_everything(o.manual_seed)
        loader, per_epoch, about = training_loader(o, folder, dist)
        sets = evaluation_sets(o)
        rectify = {"yes": True, "no": False, None: None}[o.rectify_masks]
        model = build_row(o.model_name, **o.build_options, freeze_tps=False, rectify_masks=rectify)
        init_published(model)
        start = files.starting_point(folder, o.resume, o.saved_model, dist)
        notes, warnings = start_model(model, o.tps, o.pretrained, o.download, start, o.init, o.character)
        if dist.is_main:
            check_room(folder, 2 * state_bytes(model), "a checkpoint")
    wrapped, told = distributed(model, o, dist)
    codec, precision = make_codec(o.family, o.character, o.batch_max_length), Precision(o.amp, dist.device)
    clock = Clock(o.steps or 10 * max(per_epoch // o.accumulate, 1))
    schedule = make_schedule(o.family, o.lr, clock.total, cosine=o.scheduler, drops=o.drops, rate=o.lr_drop_rate)
    optimizer = make_optimizer(wrapped, o.optimizer, o.lr, beta1=o.beta1, rho=o.rho, eps=o.eps)
    method = SigaMethod(wrapped, codec, schedule, precision, dist, o.data_ratio)
    begun = {"start": " ".join(notes), "warnings": warnings}
    state = TrainingState(
        wrapped,
        optimizer,
        {"sampler": loader.sampler, "scaler": precision},
        values,
        extra={"best_accuracy": -1.0, "loss_sum": 0.0, "loss_count": 0, **begun},
    )
    with dist.failing_together():
        changed = partial(TRAIN.changed, now=values, variant=o.family)
        notes += [told, files.resume(state, start, changed, o.allow_changes, clock.total, dist)]
    clock.step = state.step
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    notes += [
        precision_note(o.amp, o.compile, o.tf32, dist.device),
        f"{dist.world_size} process(es), {clock.total} steps, {per_epoch} batches an epoch, {trained:,} trained",
    ]
    log = run_log(o, folder, state, loader, method, dist)
    print("\n".join([about, *filter(None, notes), *state.extra["warnings"]]))
    if dist.is_main:
        described = "\n".join([repr(model), *filter(None, notes)])
        files.start_logs(folder, o.family, about, described, values, trained, state.extra["warnings"])
    if clock.step:
        loader.bad.recall()
    states = States(state, folder, dist, loader.bad, keep=o.keep_states, on_full=o.disk_full)
    loop = Loop(
        method,
        clock,
        loader,
        Engine(wrapped, optimizer, precision, dist),
        o.grad_clip,
        o.accumulate,
        note=log.note,
        jobs=jobs(o, folder, method, sets, state, states, log),
        leave=states,
        folder=folder,
    )
    with contextlib.closing(log.scalars):
        finished = loop.run()
    if not finished:
        print(f"asked to stop: state saved after step {clock.step}; resume with --resume auto")
        return 0
    best = f"best accuracy {state.extra['best_accuracy']:.3f}" if sets else "nothing evaluated (--eval_data)"
    print(f"done: {clock.total} steps; {best}; files in {folder}")
    return 0


def training_loader(o: Options, folder: Path, dist: Dist) -> tuple[WordLoader, int, str]:
    """The batches of this rank, the batches of an epoch, and what the logs say about the data."""
    sources = data.find_sources(o.train_data, o.selected)
    shares = ratios(o.shares, [name for name, _ in sources])
    masks, about_masks = data.mask_source(o.family, o.mask_path, o.train_data, o.Aug)
    augment, place = data.augmentation(o.family, o.Aug, o.manual_seed, o.aug_resample, o.recipe)
    dataset, coverage = data.training_data(
        sources,
        image_size=o.image_size,
        max_length=o.batch_max_length,
        character=o.character,
        sensitive=o.sensitive,
        foreign=o.foreign,
        unsupported_share=o.unsupported_share,
        keep_empty=o.keep_empty_labels,
        exclude=o.exclude,
        masks=masks,
        augment=augment,
        augment_at=place,
    )
    usage = o.total_data_usage_ratio if o.family == "T" else None
    lines = data.describe(dataset, sources, o.train_data, shares, o.batch_size, usage)
    lines += [*coverage, about_masks, data.check_samples(dataset, o.check_data)]
    loader, per_epoch = data.training_loader(
        dataset,
        sources,
        family=o.family,
        batch_size=o.batch_size,
        shares=shares,
        usage=o.usage,
        seed=o.manual_seed,
        workers=o.workers,
        bad_share=o.bad_share,
        folder=folder,
        dist=dist,
    )
    return loader, per_epoch, "\n".join(lines)


def evaluation_sets(o: Options) -> dict[str, WordDataset]:
    """The sets that are evaluated while training; none without `--eval_data`."""
    if not o.eval_data:
        return {}
    fast = data.FAST if o.family == "T" and o.fast_acc else None
    longest = data.longest_label(o.family, o.batch_max_length, o.data_filtering_off, o.sensitive)
    return data.evaluation_sets(
        o.eval_data,
        fast or (data.BENCHMARK if o.benchmark_all_eval else None),
        image_size=o.image_size,
        max_length=longest,
        character=o.character,
        sensitive=o.sensitive,
    )


def distributed(model: SigaModel, o: Options, dist: Dist) -> tuple[nn.Module, str]:
    """The model on its device, shared by the processes as published and perhaps compiled, and a line for the log."""
    sync = o.family == "R" and dist.distributed
    wrapped = wrap(model, dist, find_unused=True, sync_batch_norm=sync)
    if o.family == "T" and dist.rank:  # published: seed + rank; R and S draw alike on all ranks
        seed_everything(o.manual_seed, dist.rank)
    told = ""
    if sync and dist.device.type != "cuda":
        told = "SyncBatchNorm exists on CUDA only: batch statistics are those of each process"
    if o.compile:
        wrapped.compile()
    return wrapped, told


def run_log(
    o: Options, folder: Path, state: TrainingState, loader: WordLoader, method: SigaMethod, dist: Dist
) -> files.RunLog:
    """Console, metrics and curves of the run; rank 0 writes."""
    tensorboard = Path(o.output) / o.tensorboard / folder.name if o.tensorboard else None
    with dist.failing_together():
        if tensorboard is not None and dist.is_main:
            check_writable(tensorboard, "--tensorboard")
    return files.RunLog(
        folder,
        o.family,
        state,
        ScalarWriter(tensorboard if dist.is_main else None),
        MetricsLog(folder / "metrics.jsonl" if dist.is_main else None, state.step or None),
        dist,
        loader,
        method.pictures,
        data_ratio=o.data_ratio,
        print_interval=o.print_interval,
        log_interval=o.log_interval,
        ten_sets=o.benchmark_all_eval,
    )


def jobs(
    o: Options,
    folder: Path,
    method: SigaMethod,
    sets: dict[str, WordDataset],
    state: TrainingState,
    states: States,
    log: files.RunLog,
) -> list[Job]:
    """What is done after a step: evaluation, the numbered checkpoint, the training state."""
    dist, period, card = method.dist, o.val_interval * o.data_ratio, (f"siga/{o.model_name}", o.build_options)
    size = o.test_batch_size or o.batch_size

    def keep_best(clock: Clock, result: Evaluation) -> None:
        files.save_weights(folder / "best_accuracy.pth", state, clock.step, card, accuracy=result.accuracy)

    def numbered(clock: Clock) -> None:
        with dist.failing_together():
            if dist.is_main:
                name = files.published_name(o.family, clock, o.data_ratio)
                files.save_weights(folder / name, state, clock.step, card)

    evaluation = Evaluate(
        measure=lambda: evaluate(method.bare, method.codec, sets, batch_size=size, workers=o.workers, dist=dist),
        accuracy=lambda result: result.best_accuracy,
        state=state,
        dist=dist,
        keep_best=keep_best,
        record=log.record,
        bad=states.bad,
    )

    def evaluate_now(clock: Clock) -> None:
        evaluation(clock)
        log.pause()

    def evaluation_due(clock: Clock) -> bool:
        done = clock.step - 1 if o.family == "T" else clock.step  # T validates after steps 1, N + 1, 2 N + 1, …
        return bool(sets) and (done % period == 0 or clock.done)

    return [
        Job(evaluation_due, evaluate_now),
        Job(lambda clock: files.published_name(o.family, clock, o.data_ratio) is not None, numbered),
        Job(every(o.save_interval or period), states),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
