#!/usr/bin/env python
"""Pre-train a ViT encoder on unlabelled word images, by reading (contrast) and writing (masked image modelling).

python projects/dig/run_mae_pretraining_moco.py --image_alone_path LMDB --output_dir OUT --num_view 2 --model NAME …
torchrun --nproc_per_node=8 projects/dig/run_mae_pretraining_moco.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.augment.views import ContrastiveView
from common.errors import command
from common.train.distributed import Dist
from common.train.epoch_resume import resume
from common.train.session import session
from projects.dig.data import PairDataset
from projects.dig.flags_pretrain import parse
from projects.dig.optim import parameter_groups
from projects.dig.pretrain_method import (
    build_model,
    build_options,
    parameter_count,
    train_one_epoch,
    uses_all_parameters,
)
from projects.dig.trainer import Stopped, Trainer


def prepare(options, dist: Dist) -> Trainer:
    """Data, model and optimizer of the run, resumed where there is something to resume."""
    size = (options.input_h, options.input_w)
    view = ContrastiveView(size=size)
    dataset = PairDataset(options.image_alone_path, view, size, options.aloneimage_num_samples)
    model = build_model(options).to(dist.device)
    trainer = Trainer(
        options,
        dist,
        model,
        dataset,
        parameter_groups(model, options.weight_decay),
        card=(f"dig/{options.model}", build_options(options)),
        find_unused=not uses_all_parameters(options.model),
        sync_batch_norm=True,
    )
    resume(trainer)
    print(f"{len(dataset)} images, {parameter_count(model) / 1e6:.2f} M parameters")
    trainer.print_plan(len(dataset))
    return trainer


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, run."""
    options = parse(argv)
    with session(options) as dist:
        trainer = prepare(options, dist)
        try:
            for epoch in trainer.epochs():
                averages = train_one_epoch(trainer, epoch)
                if (epoch + 1) % options.save_ckpt_freq == 0 or epoch + 1 == options.epochs:
                    trainer.save_checkpoint(str(epoch), epoch)
                entry = {f"train_{name}": value for name, value in averages.items()}
                trainer.note_epoch(epoch, {**entry, "n_parameters": parameter_count(trainer.bare)})
                trainer.end_epoch()
        except Stopped:
            print(f"stopped after step {trainer.step}; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
