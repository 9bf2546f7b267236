#!/usr/bin/env python
"""Fine-tune, train from scratch, or evaluate (`--eval`) a DiG recogniser.

python projects/dig/run_class_finetuning.py --model NAME --data_path LMDB … --eval_data_path LMDB --output_dir OUT …
torchrun --nproc_per_node=8 projects/dig/run_class_finetuning.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError, command
from common.models.weights import load_strict
from common.text.codecs import EosPadUnkCodec
from common.text.coverage import check_coverage
from common.train.checkpoint import load, numbered_checkpoints
from common.train.distributed import Dist
from common.train.jobs import Evaluate, each_epoch
from common.train.loop import Clock, Job
from common.train.optim import Ema
from common.train.session import session
from projects.dig import data
from projects.dig.evaluate import Evaluator, SetResult, report, sets_of
from projects.dig.files import charset_of, load_by_character, load_pretrained, parameter_count, shape_of, state_of
from projects.dig.finetune_method import FineTuning, HostEma, augmentation
from projects.dig.flags_finetune import TABLE, Options, parse
from projects.dig.model.recogniser import Recogniser, build_recogniser
from projects.dig.optim import freeze_encoder, parameter_groups
from projects.dig.run import STOPPED, build_run, log_step


def training_words(o: Options, dist: Dist) -> data.WordDataset:
    """The words of `--data_path`, augmented as the flags say; prints what the charset does to their labels.

    Raises `UserError` above `--unsupported_share`.
    """
    augment = None
    if o.num_view > 1:
        augment = augmentation(
            o.image_size, abinet=o.use_abi_aug, frozen=o.legacy_frozen_augment, seed=o.seed, rank=dist.rank,
            lmdbs=len(o.data_path),
        )  # fmt: skip
    dataset = data.words(
        o.data_path,
        EosPadUnkCodec(o.charset, o.max_len),
        o.image_size,
        lower=o.voc_type == "LOWERCASE",
        augment=augment,
        number=o.num_samples,
        legacy_items=o.legacy_items,
        exclude=o.exclude,
    )
    for line in check_coverage(dataset.coverage(), o.unsupported_share, "--voc_type or --charset_file"):
        print(line)
    return dataset


def start_model(o: Options) -> Recogniser:
    """The recogniser with the dropout of training, and the weights of `--finetune` or `--init` where that is given."""
    model = build_recogniser(
        o.model, **o.build_options(), drop=o.drop, attention_drop=o.attn_drop_rate, drop_path=o.drop_path
    )
    if o.finetune:
        load_pretrained(model, state_of(load(o.finetune), o.model_key, o.finetune), o.finetune, o.model_prefix)
    if o.init:
        state = state_of(load(o.init), o.model_key, o.init)
        load_by_character(model, state, charset_of(o.init, shape_of(state, o.init).classes), o.charset, o.init)
    return model


def evaluator_of(o: Options, dist: Dist) -> Evaluator:
    """Reads sets as the flags say."""
    return Evaluator(
        dist,
        EosPadUnkCodec(o.charset, o.max_len),
        o.image_size,
        batch_size=int(1.5 * o.batch_size),  # as published
        workers=o.num_workers,
        share=o.dist_eval,
        lower=o.voc_type == "LOWERCASE",
        beam_width=o.beam_width,
        legacy_beam_search=o.legacy_beam_search,
        legacy_items=o.legacy_items,
        legacy_percent=o.legacy_percent,
        legacy_empty=o.legacy_empty,
    )


def train(o: Options, values: dict[str, Any], dist: Dist) -> None:
    """Build the run, resume it where there is something to resume, and run it to its end."""
    dataset = training_words(o, dist)
    model = start_model(o).to(dist.device)
    count = parameter_count(model)  # as published: before anything is frozen
    frozen = freeze_encoder(model, o.fixed_encoder_layers)
    print(f"{len(dataset)} words ({dict(dataset.counts)})")
    print(f"{count / 1e6:.2f} M parameters, {len(frozen)} tensors frozen")
    ema = (HostEma if o.model_ema_force_cpu else Ema)(model, o.model_ema_decay) if o.model_ema else None
    run, lr, weight_decay = build_run(
        o,
        values,
        TABLE,
        dist,
        dataset,
        model,
        parameter_groups(model, o.weight_decay, o.layer_decay, model.encoder.depth),
        card=(f"dig/{o.model}", o.build_options() | ({"charset": o.charset} if o.charset_file else {})),
        accumulate=o.update_freq,
        ema=ema,
        find_unused=True,
    )
    print(f"Update frequent = {o.update_freq}")
    print(f"Number of training examples = {len(dataset)}")
    print(f"Number of training training per epoch = {run.clock.per_epoch}")
    method = FineTuning(
        run.model,
        run.precision,
        dist.device,
        EosPadUnkCodec(o.charset, o.max_len),
        lr,
        weight_decay,
        o.smoothing,
        o.legacy_smoothing,
        whole=o.compile or o.legacy_smoothing,  # compiled models want one shape; the faulty loss counts every column
        ema=ema,
    )

    # between the steps; inside an epoch `--eval_freq` counts from its first step and is never due at its end
    validating, evaluator = not o.disable_eval_during_finetuning, evaluator_of(o, dist)

    def save_inside(clock: Clock) -> None:
        run.files.checkpoint(f"{clock.epoch}_{clock.inside}", f"{clock.epoch}_{clock.inside}")

    def keep_best(clock: Clock, result: SetResult) -> None:
        if o.save_ckpt:
            run.files.write("best", (clock.step - 1) // clock.per_epoch)

    def record(clock: Clock, result: SetResult) -> None:
        epoch = (clock.step - 1) // clock.per_epoch
        print(f"Max accuracy: {run.state.extra['max_accuracy']:.2%}")
        run.metrics.write(step=clock.step, epoch=epoch, accuracy=100 * result.accuracy, val_loss=result.loss)
        run.board.scalar("perf/test_acc", result.accuracy, epoch)
        run.board.scalar("perf/test_loss", result.loss, epoch)

    validate = Evaluate(
        measure=lambda: evaluator.evaluate(model, o.eval_data_path),
        accuracy=lambda result: result.accuracy,
        state=run.state,
        dist=dist,
        keep_best=keep_best,
        record=record,
        best_key="max_accuracy",
    )

    def end_epoch(clock: Clock) -> None:
        entry, epoch = run.averages(), clock.epoch - 1
        if o.save_ckpt and (clock.epoch % o.save_ckpt_freq == 0 or clock.done):
            run.files.checkpoint(str(epoch), epoch)
        if validating:
            result = validate(clock)
            entry |= {"train_max_accuracy": run.state.extra["max_accuracy"], "test_loss": result.loss}
            entry |= {"test_acc": result.accuracy, "test_recognition_fmeasure": result.f_measure}
        run.end_epoch({**entry, "n_parameters": parameter_count(model)})

    jobs = [
        Job(lambda clock: validating and clock.inside > 0 and clock.inside % o.eval_freq == 0, validate),
        Job(lambda clock: o.save_ckpt and clock.inside > 0 and clock.inside % (10 * o.eval_freq) == 0, save_inside),
        Job(each_epoch(), end_epoch),
    ]
    loop = run.loop(
        method, partial(log_step, run), jobs, max_norm=o.clip_grad, accumulate=o.update_freq, save=o.save_ckpt
    )
    if not loop.run():
        print(STOPPED)


def evaluate(o: Options, dist: Dist) -> None:
    """`--eval`: read the set at `--eval_data_path` and its siblings, print all figures, write them down."""
    where = o.resume or o.finetune or next(map(str, numbered_checkpoints(Path(o.output_dir))), "")
    if not where:
        raise UserError("--resume: --eval needs a checkpoint, and there is none in --output_dir")
    model = build_recogniser(o.model, **o.build_options())
    load_strict(model, state_of(load(where), o.model_key, where), what=where)
    model.to(dist.device)
    print(f"Evaluating {where}: {parameter_count(model) / 1e6:.2f} M parameters")
    evaluator = evaluator_of(o, dist)
    sets = sets_of(Path(o.eval_data_path), o.other_test_data_folders)
    results = [evaluator.evaluate(model, path, name) for name, path in sets]
    if dist.is_main:
        report(results, Path(o.output_dir))


@command
def main(argv: Sequence[str] | None = None) -> None:
    options, values = parse(argv)
    with session(options, values) as dist:
        evaluate(options, dist) if options.eval else train(options, values, dist)


if __name__ == "__main__":
    sys.exit(main())
