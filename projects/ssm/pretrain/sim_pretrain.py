#!/usr/bin/env python
"""Pre-train an encoder on word images by separating symmetric superimpositions (SSM, IJCAI 2024).

python projects/ssm/pretrain/sim_pretrain.py --data_path DATA --output_dir OUT --model flipae_sim_vit_small_str …
torchrun --nproc_per_node=8 projects/ssm/pretrain/sim_pretrain.py …
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.train.distributed import Dist
from common.train.epoch_resume import resume
from common.train.epoch_trainer import Stopped
from common.train.optim import parameter_groups
from common.train.session import session
from projects.ssm.pretrain.data import build_dataset
from projects.ssm.pretrain.model import VARIANTS, SSMPretrainer, build_pretrainer
from projects.ssm.pretrain.options import check_grid, parse
from projects.ssm.pretrain.trainer import Trainer, train_one_epoch


def build_options(options: argparse.Namespace) -> dict:
    """Constructor arguments, also kept in the checkpoints' cards."""
    chosen = {"img_size": tuple(options.input_size), "copy_prompt": options.copy_prompt,
              "ema_decoder_twice": not options.ema_decoder_once}  # fmt: skip
    if VARIANTS[options.model] != "micro_patch16x8":
        chosen["patch_size"] = tuple(options.patch_size)
    return chosen


def build_model(options: argparse.Namespace) -> SSMPretrainer:
    """The pre-trainer that the flags ask for."""
    try:
        model = build_pretrainer(options.model, **build_options(options))
    except (AssertionError, ValueError) as error:
        raise UserError(f"--input_size, --patch_size: {error}") from None
    check_grid(model.img_size, model.patch_size)
    model.student_norm.requires_grad_(options.dense_loss)
    return model


def prepare(options: argparse.Namespace, dist: Dist) -> Trainer:
    """Data, model and optimizer of the run, resumed where there is something to resume."""
    dataset = build_dataset(options)
    model = build_model(options).to(dist.device)
    groups = parameter_groups(model.named_parameters(), options.weight_decay)
    card = (f"ssm/{options.model}", build_options(options))
    trainer = Trainer(options, dist, model, dataset, groups, accumulate=options.accum_iter, card=card)
    resume(trainer)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{len(dataset)} images, {trainer.per_epoch} steps an epoch, {count / 1e6:.2f} M trainable parameters")
    return trainer


@contextlib.contextmanager
def timed_lines() -> Iterator[None]:
    """Begin every printed line with `[HH:MM:SS.ffffff] `, as the published script does."""
    before = builtins.print

    def timed(*words: object, **options: object) -> None:
        before(f"[{datetime.datetime.now().time()}]", *words, **options)

    builtins.print = timed
    try:
        yield
    finally:
        builtins.print = before


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, run."""
    options = parse(argv)
    with session(options) as dist, timed_lines():
        if dist.is_main:
            Path(options.demo_dir).mkdir(parents=True, exist_ok=True)
        trainer = prepare(options, dist)
        try:
            for epoch in trainer.epochs():
                averages = train_one_epoch(trainer, epoch)
                trainer.save_checkpoint(str(epoch), epoch)
                trainer.note_epoch(epoch, {f"train_{name}": value for name, value in averages.items()})
                trainer.end_epoch()
        except Stopped:
            print(f"stopped after step {trainer.step}; run the same command with --auto_resume to go on")


if __name__ == "__main__":
    sys.exit(main())
