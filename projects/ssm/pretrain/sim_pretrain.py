#!/usr/bin/env python
"""Pre-train an encoder on word images by separating symmetric superimpositions (SSM, IJCAI 2024).

python projects/ssm/pretrain/sim_pretrain.py --data_path DATA --output_dir OUT --model flipae_sim_vit_small_str …
torchrun --nproc_per_node=8 projects/ssm/pretrain/sim_pretrain.py …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.train.distributed import Dist
from common.train.session import session
from projects.ssm.model.pretrainer import VARIANTS, build_pretrainer
from projects.ssm.pretrain.data import Superimposer, build_dataset
from projects.ssm.pretrain.flags import PretrainOptions, check_grid, parse
from projects.ssm.pretrain.method import Pretraining, momentum_of
from projects.ssm.pretrain.run import Run, build_run, timed_lines


def build(o: PretrainOptions, dist: Dist) -> Run:
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
    superimpose = Superimposer(size[0], o.direction, bool(o.ratio), o.teacher_seeds == "random")
    momentum = momentum_of(o.mm, o.mmschedule, o.epochs)
    run = build_run(
        o, dist, model, dataset, (f"ssm/{o.model}", shape), lambda wrapped, rates, precision: Pretraining(
            wrapped, rates, precision, dist.device, superimpose, momentum, o.feat_start_epoch, o.feat_ramp,
            o.norm_pix_loss, o.dense_loss, o.seed, dist.rank, o.accum_iter, o.batch_size,
        ), "P",
    )  # fmt: skip
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    steps = run.loop.clock.per_epoch
    print(f"{len(dataset)} images, {steps} steps an epoch, {count / 1e6:.2f} M trainable parameters")
    return run


@command
def main(argv: Sequence[str] | None = None) -> None:
    o = parse(argv)
    with session(o, o.parsed) as dist, timed_lines():
        if dist.is_main:
            Path(o.demo_dir).mkdir(parents=True, exist_ok=True)
        run = build(o, dist)
        if not run.loop.run():
            print(f"stopped after step {run.loop.clock.step}; run the same command with --auto_resume to resume")


if __name__ == "__main__":
    sys.exit(main())
