#!/usr/bin/env python
"""Pre-train an encoder on word images by separating symmetric superimpositions (SSM, IJCAI 2024).

python projects/ssm/pretrain/sim_pretrain.py --data_path DATA --output_dir OUT --model flipae_sim_vit_small_str …
torchrun --nproc_per_node=8 projects/ssm/pretrain/sim_pretrain.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.train.distributed import Dist
from common.train.jobs import each_epoch
from common.train.loop import Clock, Job
from common.train.session import session
from projects.ssm.model.pretrainer import VARIANTS, build_pretrainer
from projects.ssm.pretrain.data import Superimposer, build_dataset
from projects.ssm.pretrain.flags import PretrainOptions, check_grid, parse
from projects.ssm.pretrain.method import Pretraining, momentum_of
from projects.ssm.pretrain.run import build_run, log_step, timed_lines


def train(o: PretrainOptions, dist: Dist) -> None:
    """Build the run, resume it where there is something to resume, and run it to its end."""
    size = tuple(o.input_size)
    longest = None if o.data_filtering_off else o.max_length
    dataset = build_dataset(o.data_path, size, longest, o.parsed, o.exclude)
    shape = {"img_size": size, "copy_prompt": o.copy_prompt, "ema_decoder_twice": not o.ema_decoder_once}
    if VARIANTS[o.model] != "micro_patch16x8":
        shape["patch_size"] = tuple(o.patch_size)
    try:
        model = build_pretrainer(o.model, **shape)
    except (AssertionError, ValueError) as error:
        raise UserError(f"--input_size, --patch_size: {error}") from None
    check_grid(model.img_size, model.patch_size)
    model.student_norm.requires_grad_(o.dense_loss)
    model.to(dist.device)
    run, rates = build_run(o, dist, model, dataset, (f"ssm/{o.model}", shape), "P")
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{len(dataset)} images, {run.clock.per_epoch} steps an epoch, {count / 1e6:.2f} M trainable parameters")

    superimpose = Superimposer(size[0], o.direction, bool(o.ratio), o.teacher_seeds == "random")
    method = Pretraining(
        run.model, rates, run.precision, dist.device, superimpose, momentum_of(o.mm, o.mmschedule, o.epochs),
        o.feat_start_epoch, o.feat_ramp, o.norm_pix_loss, o.dense_loss, o.seed, dist.rank, o.accum_iter, o.batch_size,
    )  # fmt: skip

    def end_epoch(clock: Clock) -> None:
        averages, epoch = run.averages(), clock.epoch - 1
        run.files.checkpoint(str(epoch), epoch)
        run.end_epoch(averages)

    # --clip_grad has no effect, as published
    loop = run.loop(method, partial(log_step, run), [Job(each_epoch(), end_epoch)], accumulate=o.accum_iter)
    if not loop.run():
        print(f"stopped after step {run.clock.step}; run the same command with --auto_resume to resume")


@command
def main(argv: Sequence[str] | None = None) -> None:
    o = parse(argv)
    with session(o, o.parsed) as dist, timed_lines():
        if dist.is_main:
            Path(o.demo_dir).mkdir(parents=True, exist_ok=True)
        train(o, dist)


if __name__ == "__main__":
    sys.exit(main())
