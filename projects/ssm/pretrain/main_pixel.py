#!/usr/bin/env python
"""Text super-resolution and text segmentation from a pre-trained encoder (SSM, section 4.6).

python projects/ssm/pretrain/main_pixel.py --pixel_type SR --data_path TRAIN --eval_data_path TEST \\
    --pretrained OUT/checkpoint-19.pth --lr 1e-4 --batch_size 96 --epochs 100 --warmup_epochs 5
python projects/ssm/pretrain/main_pixel.py --pixel_type Seg --data_path DATA --pretrained … --warmup_epochs 10 …
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.flags import add_no_effect, note_no_effect, settle_device
from common.models.weights import load_strict
from common.train.checkpoint import load, save_atomic
from common.train.distributed import Dist
from common.train.epoch_resume import resume
from common.train.epoch_trainer import Stopped
from common.train.optim import parameter_groups
from common.train.progress import EpochLog
from common.train.session import session
from projects.ssm.finetune.weights import tensors_of
from projects.ssm.pixel.data import Pairs, evaluation_pairs, training_pairs
from projects.ssm.pixel.measure import best_name, measure, views
from projects.ssm.pixel.model import VARIANTS, UniPixelViT, load_encoder
from projects.ssm.pretrain import options as flags
from projects.ssm.pretrain.sim_pretrain import timed_lines
from projects.ssm.pretrain.trainer import Trainer

OF_PRETRAINING = (
    "mm", "mmschedule", "feat_start_epoch", "feat_ramp", "dense_loss", "teacher_seeds", "ema_decoder_once",
    "copy_prompt", "max_length", "data_filtering_off", "direction", "ratio", "isscatter_aug", "intact_prob", "augs_num",
    "augs_mag", *flags.GROUPS,
)  # fmt: skip
"""Flags of `sim_pretrain.py` that are taken here too and steer nothing."""
SWITCH = ("switch", False)
NO_EFFECT = {
    "scratch_path": (str, ""), "dig_path": (str, ""), "ccd_path": (str, ""), "train_val": SWITCH, "compare": SWITCH,
}  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of pre-training and those of the pixel tasks. Raises `UserError` for values that cannot run."""
    parser = flags.parser()
    parser.prog, parser.description = "main_pixel.py", "Text super-resolution or segmentation (SSM)."
    parser.set_defaults(model="pixel_vit_small")
    parser.epilog = f"Flags of pre-training without effect here: --{', --'.join(OF_PRETRAINING)}."
    group = parser.add_argument_group("pixel tasks")
    group.add_argument("--pixel_type", default="SR", choices=["SR", "Seg"], help="super-resolution or segmentation")
    group.add_argument("--pretrained", default="", help="encoder of SSM, DiG or CCD; without it: random")
    group.add_argument("--eval_data_path", default="", help="what to measure on; Seg: DATA_PATH/val without it")
    group.add_argument("--best_dir", default="", help="where the best checkpoints go; without it: OUTPUT_DIR/best")
    group.add_argument("--model_path", default="", help="checkpoint that --eval_only measures")
    group.add_argument("--eval_only", action="store_true", help="measure --model_path and end")
    group.add_argument("--vis", action="store_true", help="write input, prediction and truth into --demo_dir")
    add_no_effect(parser, NO_EFFECT)
    options = parser.parse_args(argv)
    flags.check(options, VARIANTS)
    if any(getattr(options, f"is{kind}_aug") for kind in ("rand", "sel", "semantic", "rotation", "learning")):
        raise UserError("--isrand_aug, --issel_aug, …: pairs are not augmented; leave the augmentation flags out")
    if options.eval_only and not options.model_path:
        raise UserError("--model_path: it is needed with --eval_only: the checkpoint to measure")
    unused = {name: (None, parser.get_default(name)) for name in OF_PRETRAINING}
    note_no_effect(options, {**flags.NO_EFFECT, **NO_EFFECT, **unused})
    settle_device(options, argv)
    return options


def build_model(options: argparse.Namespace) -> UniPixelViT:
    """The model, its encoder started from `--pretrained`."""
    sizes = {"img_size": tuple(options.input_size), "patch_size": tuple(options.patch_size), **VARIANTS[options.model]}
    flags.check_grid(sizes["img_size"], sizes["patch_size"])
    model = UniPixelViT(options.pixel_type, **sizes)
    if options.pretrained and not options.eval_only:
        try:
            taken = load_encoder(model, load(options.pretrained))
        except ValueError as error:
            raise UserError(f"--pretrained: {options.pretrained}: {error}") from None
        print(f"--pretrained: {len(taken)} tensors of the encoder kept; the decoder starts anew")
    return model


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Run the steps left in the epoch; returns the mean of each meter over all ranks."""
    model, device = trainer.bare, trainer.dist.device
    log = EpochLog(f"Epoch: [{epoch}]", every=20, recent="median", last_value=("lr",))
    trainer.model.train()
    for micro_batches in trainer.steps(log):
        shown = []
        for batch in micro_batches:
            given, wanted = views(batch.images.to(device, non_blocking=True), model)
            with trainer.amp.autocast():
                predicted = trainer.model(given)
            loss = model.loss(predicted.float(), wanted, trainer.options.norm_pix_loss)
            trainer.backward(loss, batch)
            shown.append({"loss": loss.detach()})
        norm = trainer.optimise()
        trainer.record(log, shown, norm, trainer.options.batch_size * len(micro_batches))
    return log.averages(trainer.dist)


def prepare(options: argparse.Namespace, dist: Dist) -> Trainer:
    """Data, model and optimizer of the run, resumed where there is something to resume."""
    pairs = training_pairs(options.pixel_type, options.data_path, tuple(options.input_size))
    model = build_model(options).to(dist.device)
    groups = parameter_groups(model.named_parameters(), options.weight_decay)
    card = (f"ssm/{options.model}", {"pixel_type": options.pixel_type})
    trainer = Trainer(options, dist, model, pairs, groups, accumulate=options.accum_iter, card=card)
    resume(trainer)
    trainer.extra.setdefault("best", {})
    return trainer


def fit(options: argparse.Namespace, dist: Dist, pairs: Pairs) -> None:
    """Train; measure after every epoch and keep what is best."""
    trainer, best_dir = prepare(options, dist), Path(options.best_dir or Path(options.output_dir) / "best")
    for epoch in trainer.epochs():
        averages = train_one_epoch(trainer, epoch)
        trainer.save_checkpoint(str(epoch), epoch)
        figures = measure(trainer.bare, pairs, options, dist.device)
        name = best_name(options.pixel_type, figures, trainer.extra["best"], epoch)
        with dist.failing_together():
            if name and dist.is_main:
                best_dir.mkdir(parents=True, exist_ok=True)
                save_atomic(best_dir / name, trainer.published_form(epoch))
        print("  ".join(f"{key}: {value:.4f}" for key, value in figures.items()), flush=True)
        trainer.metrics.write(step=trainer.step, epoch=epoch, **figures)
        trainer.note_epoch(epoch, {f"train_{key}": value for key, value in averages.items()} | figures)
        trainer.end_epoch()


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, run."""
    options = parse(argv)
    with session(options) as dist, timed_lines():
        pairs = evaluation_pairs(
            options.pixel_type, options.data_path, options.eval_data_path, tuple(options.input_size)
        )
        if options.eval_only:
            model = build_model(options).to(dist.device)
            load_strict(model, tensors_of(load(options.model_path), options.model_path), what=options.model_path)
            figures = measure(model, pairs, options, dist.device)
            print("  ".join(f"{key}: {value:.4f}" for key, value in figures.items()))
            return
        try:
            fit(options, dist, pairs)
        except Stopped:
            print("stopped; run the same command with --auto_resume to go on")


if __name__ == "__main__":
    sys.exit(main())
