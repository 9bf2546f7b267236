#!/usr/bin/env python
"""Fine-tune, train from scratch, or evaluate (`--eval`) a DiG recogniser.

python projects/dig/run_class_finetuning.py --model NAME --data_path LMDB … --eval_data_path LMDB --output_dir OUT …
torchrun --nproc_per_node=8 projects/dig/run_class_finetuning.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError, command
from common.models.weights import load_strict
from common.text.coverage import check_coverage
from common.train.checkpoint import load
from common.train.distributed import Dist
from common.train.epoch_resume import numbered_checkpoints, resume
from common.train.session import session
from projects.dig import data, text
from projects.dig.evaluate import Evaluator, report, sets_of
from projects.dig.files import load_pretrained, state_of, summary
from projects.dig.finetune_method import FineTuning, augmentation, build_ema, build_model, build_options
from projects.dig.flags_finetune import parse
from projects.dig.optim import freeze_encoder, parameter_groups
from projects.dig.pretrain_method import parameter_count
from projects.dig.trainer import Stopped, Trainer


def start_model(options):
    """The model with the weights of `--finetune`, where that is given."""
    model = build_model(options)
    if options.finetune:
        state = state_of(load(options.finetune), options.model_key, options.finetune)
        loaded = load_pretrained(model, state, options.finetune, options.model_prefix)
        print(f"Weights of {options.finetune}: {summary(loaded)}")
    return model


def prepare(options, dist: Dist) -> FineTuning:
    """Data, model and optimizer of the run, resumed where there is something to resume."""
    codec = text.codec(options.voc_type, options.max_len)
    dataset = data.words(
        options.data_path,
        codec,
        (options.input_h, options.input_w),
        lower=options.voc_type == "LOWERCASE",
        augment=augmentation(options, dist.rank),
        number=options.num_samples,
        legacy_items=options.legacy_items,
        exclude=options.exclude,
    )
    for line in check_coverage(dataset.coverage(), options.unsupported_share, "--voc_type"):
        print(line)
    model = start_model(options).to(dist.device)
    count = parameter_count(model)
    frozen = freeze_encoder(model, options.fixed_encoder_layers)
    depth = model.encoder.depth
    trainer = Trainer(
        options,
        dist,
        model,
        dataset,
        parameter_groups(model, options.weight_decay, options.layer_decay, depth),
        accumulate=options.update_freq,
        ema=build_ema(options, model),
        card=(f"dig/{options.model}", build_options(options)),
        find_unused=True,
    )
    resume(trainer)
    print(
        f"{len(dataset)} words ({dict(dataset.counts)}), {count / 1e6:.2f} M parameters, {len(frozen)} tensors frozen"
    )
    trainer.print_plan(len(dataset))
    evaluator = None if options.disable_eval_during_finetuning else Evaluator(options, dist)
    return FineTuning(trainer, evaluator)


def train(options, dist: Dist) -> None:
    """All epochs, each followed by its checkpoint, validation and log line."""
    run = prepare(options, dist)
    trainer = run.trainer
    count = parameter_count(trainer.bare)
    for epoch in trainer.epochs():
        averages = run.train_one_epoch(epoch)
        last = epoch + 1 == options.epochs
        if options.save_ckpt and ((epoch + 1) % options.save_ckpt_freq == 0 or last):
            trainer.save_checkpoint(str(epoch), epoch)
        entry = {f"train_{name}": value for name, value in averages.items()}
        result = run.validate(epoch)
        if result is not None:
            entry["train_max_accuracy"] = trainer.extra["max_accuracy"]
            entry |= {"test_loss": result.loss, "test_acc": result.accuracy}
            entry["test_recognition_fmeasure"] = result.f_measure
        trainer.note_epoch(epoch, {**entry, "n_parameters": count})
        trainer.end_epoch(options.save_ckpt)


def evaluate(options, dist: Dist) -> None:
    """`--eval`: read the set at `--eval_data_path` and its siblings, print all figures, write them down."""
    where = options.resume or options.finetune or next(map(str, numbered_checkpoints(Path(options.output_dir))), "")
    if not where:
        raise UserError("--resume: --eval needs a checkpoint, and there is none in --output_dir")
    model = build_model(options)
    load_strict(model, state_of(load(where), options.model_key, where), what=where)
    model.to(dist.device)
    print(f"Evaluating {where}: {parameter_count(model) / 1e6:.2f} M parameters")
    evaluator = Evaluator(options, dist)
    results = [evaluator.evaluate(model, path, name) for name, path in sets_of(options)]
    if dist.is_main:
        report(results, Path(options.output_dir))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, run."""
    options = parse(argv)
    with session(options) as dist:
        try:
            (evaluate if options.eval else train)(options, dist)
        except Stopped:
            print("stopped after saving its state; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
