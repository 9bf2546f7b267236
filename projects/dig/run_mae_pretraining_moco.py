#!/usr/bin/env python
"""Pre-train a ViT encoder on unlabelled word images, by reading (contrast) and writing (masked image modelling).

python projects/dig/run_mae_pretraining_moco.py --image_alone_path LMDB --output_dir OUT --num_view 2 --model NAME …
torchrun --nproc_per_node=8 projects/dig/run_mae_pretraining_moco.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.augment.views import ContrastiveView
from common.errors import command
from common.train.distributed import Dist
from common.train.jobs import each_epoch
from common.train.loop import Clock, Job
from common.train.schedule import constant, momentum_cosine
from common.train.session import session
from projects.dig.data import PairDataset
from projects.dig.files import parameter_count
from projects.dig.flags_pretrain import TABLE, Options, parse
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import MODELS, build_pretrainer
from projects.dig.optim import parameter_groups
from projects.dig.pretrain_method import PreTraining
from projects.dig.run import STOPPED, build_run, log_step


def train(o: Options, values: dict[str, Any], dist: Dist) -> None:
    """Build the run, resume it where there is something to resume, and run it to its end."""
    view = ContrastiveView(size=o.image_size)
    dataset = PairDataset(o.image_alone_path, view, o.image_size, o.aloneimage_num_samples, o.exclude)
    model = build_pretrainer(o.model, **o.build_options()).to(dist.device)
    count = parameter_count(model)
    print(f"{len(dataset)} images, {count / 1e6:.2f} M parameters")
    run, lr, weight_decay = build_run(
        o,
        values,
        TABLE,
        dist,
        dataset,
        model,
        parameter_groups(model, o.weight_decay),
        card=(f"dig/{o.model}", o.build_options()),
        find_unused=MODELS[o.model][0] == "moco",  # the contrast-only model's mask token never gets a gradient
        sync_batch_norm=True,
    )
    per_epoch = run.clock.per_epoch
    print(f"Number of training steps = {per_epoch}")
    print(f"Number of training examples per epoch = {o.batch_size * dist.world_size * per_epoch}")
    method = PreTraining(
        run.model,
        run.precision,
        dist.device,
        RandomMasking(model.encoder.grid, o.mask_ratio, views=2),
        model.encoder.patch,
        o.batch_size,
        o.seed,
        dist.rank,
        lr,
        weight_decay,
        momentum=momentum_cosine(o.moco_m, o.epochs) if o.use_moco_m_cos else constant(o.moco_m),
        contrast=(o.loss_weight_contrast, o.contrast_start_epoch, o.contrast_warmup_steps),
        pixel_weight=o.loss_weight_pixel,
        only_first=o.only_mim_on_ori_img,
        normalise_target=o.normlize_target,
    )

    def inside_due(clock: Clock) -> bool:
        """As published: by the number of the step from 0, and not after step 0."""
        number = (clock.step - 1) % clock.per_epoch
        return number > 0 and number % (10 * o.eval_freq) == 0

    def save_inside(clock: Clock) -> None:
        epoch, number = divmod(clock.step - 1, clock.per_epoch)
        run.files.checkpoint(f"{epoch}_{number}", f"{epoch}_{number}")

    def end_epoch(clock: Clock) -> None:
        averages, epoch = run.averages(), clock.epoch - 1
        if clock.epoch % o.save_ckpt_freq == 0 or clock.done:
            run.files.checkpoint(str(epoch), epoch)
        run.end_epoch({**averages, "n_parameters": count})

    jobs = [Job(inside_due, save_inside), Job(each_epoch(), end_epoch)]
    if not run.loop(method, partial(log_step, run), jobs, max_norm=o.clip_grad).run():
        print(STOPPED)


@command
def main(argv: Sequence[str] | None = None) -> None:
    options, values = parse(argv)
    with session(options, values) as dist:
        train(options, values, dist)


if __name__ == "__main__":
    sys.exit(main())
