#!/usr/bin/env python
"""Text super-resolution and text segmentation from a pre-trained encoder (SSM, section 4.6).

python projects/ssm/pretrain/main_pixel.py --pixel_type SR --data_path TRAIN --eval_data_path TEST \\
    --pretrained OUT/checkpoint-19.pth --lr 1e-4 --batch_size 96 --epochs 100 --warmup_epochs 5
python projects/ssm/pretrain/main_pixel.py --pixel_type Seg --data_path DATA --pretrained … --warmup_epochs 10 …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import command
from common.models.weights import load_strict
from common.train.checkpoint import load, save_atomic
from common.train.distributed import Dist, unwrap
from common.train.jobs import each_epoch
from common.train.loop import Clock, Job
from common.train.session import session
from projects.ssm.model.pixel import VARIANTS, UniPixelViT
from projects.ssm.pixel.data import Pairs, evaluation_pairs, training_pairs
from projects.ssm.pixel.evaluate import best_name, measure
from projects.ssm.pixel.method import PixelTask
from projects.ssm.pretrain.flags import PixelOptions, check_grid, parse_pixel
from projects.ssm.pretrain.run import build_run, log_step, timed_lines
from projects.ssm.weights import load_pixel_encoder, tensors_of


def build_model(o: PixelOptions) -> UniPixelViT:
    """The model, its encoder started from `--pretrained`."""
    sizes = {"img_size": tuple(o.input_size), "patch_size": tuple(o.patch_size), **VARIANTS[o.model]}
    check_grid(sizes["img_size"], sizes["patch_size"])
    model = UniPixelViT(o.pixel_type, **sizes)
    if o.pretrained and not o.eval_only:
        load_pixel_encoder(model, o.pretrained)  # the decoder starts from its own draws
    return model


def figures_of(o: PixelOptions, model: UniPixelViT, pairs: Pairs, dist: Dist) -> dict[str, float]:
    """Figures of the evaluation pairs; with `--vis` their pictures."""
    shown = Path(o.demo_dir) if o.vis else None
    figures = measure(model, pairs, o.pixel_type, o.batch_size, o.num_workers, dist.device, shown)
    print("  ".join(f"{key}: {value:.4f}" for key, value in figures.items()), flush=True)
    return figures


def train(o: PixelOptions, dist: Dist, pairs: Pairs) -> None:
    """Build the run, resume it where there is something to resume, and run it to its end.

    After every epoch the model is measured on `pairs`, and kept where it is better than before.
    """
    dataset = training_pairs(o.pixel_type, o.data_path, tuple(o.input_size))
    model = build_model(o).to(dist.device)
    run, rates = build_run(o, dist, model, dataset, (f"ssm/{o.model}", {"pixel_type": o.pixel_type}), "X")
    best = run.state.extra.setdefault("best", {})

    def end_epoch(clock: Clock) -> None:
        averages, epoch = run.averages(), clock.epoch - 1
        run.files.checkpoint(str(epoch), epoch)
        figures = figures_of(o, unwrap(run.model), pairs, dist)
        run.model.train()
        name = best_name(o.pixel_type, figures, best, epoch)
        with dist.failing_together():
            if name and dist.is_main:
                Path(o.best_dir).mkdir(parents=True, exist_ok=True)
                save_atomic(Path(o.best_dir) / name, run.files.published_form(epoch))
        run.metrics.write(step=clock.step, epoch=epoch, **figures)
        run.end_epoch(averages | figures)

    method = PixelTask(run.model, rates, run.precision, dist.device, o.norm_pix_loss)
    # --clip_grad has no effect, as published
    loop = run.loop(method, partial(log_step, run), [Job(each_epoch(), end_epoch)], accumulate=o.accum_iter)
    if not loop.run():
        print("stopped; run the same command with --auto_resume to resume")


@command
def main(argv: Sequence[str] | None = None) -> None:
    o = parse_pixel(argv)
    with session(o, o.parsed) as dist, timed_lines():
        pairs = evaluation_pairs(o.pixel_type, o.data_path, o.eval_data_path, tuple(o.input_size))
        if o.eval_only:
            model = build_model(o).to(dist.device)
            load_strict(model, tensors_of(load(o.model_path), o.model_path), what=o.model_path)
            figures_of(o, model, pairs, dist)
            return
        train(o, dist, pairs)


if __name__ == "__main__":
    sys.exit(main())
