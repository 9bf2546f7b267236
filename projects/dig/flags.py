"""What the command lines of pre-training and fine-tuning have in common, and how flags without effect are taken."""

from __future__ import annotations

import argparse
import math

from common.errors import UserError
from common.train.distributed import add_launch_arguments
from common.train.optim import OPTIMIZERS

PLACEHOLDER = "/datasets01/imagenet_full_size/061417/train"  # the published default of --data_path, a leftover
PLAIN_MOMENTUM = ("momentum", "fusedmomentum")
# published names of the same rules; "fused" was Apex's faster form of them
SAME = {
    "nesterov": "sgd", "momentum": "sgd", "fusedsgd": "sgd", "fusedmomentum": "sgd", "fusedadam": "adam",
    "fusedadamw": "adamw",
}  # fmt: skip


def add_optimisation(parser: argparse.ArgumentParser, *, lr: float, min_lr: float, warmup_epochs: int) -> None:
    """Optimiser, schedule and precision; the two scripts differ in three defaults."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--opt", default="adamw", help=f"one of {', '.join([*OPTIMIZERS, *SAME])}")
    group.add_argument("--opt_eps", type=float, default=1e-8, help="epsilon of the optimiser")
    group.add_argument("--opt_betas", type=float, nargs="+", help="betas of the optimiser; its own if not given")
    group.add_argument("--clip_grad", type=float, help="clip the gradient's 2-norm to this")
    group.add_argument("--momentum", type=float, default=0.9, help="of sgd")
    group.add_argument("--weight_decay", type=float, default=0.05, help="at the start")
    group.add_argument("--weight_decay_end", type=float, help="at the end of a cosine; as at the start if not given")
    group.add_argument("--lr", type=float, default=lr, help="for a global batch of 256, scaled to the real one")
    group.add_argument("--min_lr", type=float, default=min_lr, help="at the end of the cosine, not scaled")
    group.add_argument("--warmup_epochs", type=int, default=warmup_epochs, help="of the learning rate, from 0")
    group.add_argument("--warmup_steps", type=int, default=-1, help="replaces the epochs when positive")
    group.add_argument("--amp", choices=["auto", "no", "fp16", "bf16"], default="auto", help="auto: fp16 on CUDA")
    group.add_argument("--compile", action="store_true", help="torch.compile the model")
    group.add_argument("--tf32", action="store_true", help="TF32 matrix products on CUDA")


def add_run(parser: argparse.ArgumentParser, *, workers: int) -> None:
    """Output, resuming, devices and processes."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="", help="checkpoints and logs; needed")
    group.add_argument("--log_dir", help="TensorBoard scalars")
    group.add_argument("--device", default="cuda", help="cuda, cpu or auto; without the flag: CUDA if there is any")
    group.add_argument("--seed", type=int, default=0, help="rank is added for the random draws of the model")
    group.add_argument("--resume", default="", help="a training state or a checkpoint")
    group.add_argument("--auto_resume", action="store_true", default=True, help="go on from what is in --output_dir")
    group.add_argument("--no_auto_resume", action="store_false", dest="auto_resume", help="start anew")
    group.add_argument("--start_epoch", type=int, default=0, help="first epoch of a run that resumes nothing")
    group.add_argument("--num_workers", type=int, default=workers, help="loader processes; 0 loads in this one")
    group.add_argument("--pin_mem", action="store_true", default=True, help="page-locked batches on CUDA")
    group.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", help="plain memory")
    group.add_argument("--state_steps", type=int, default=0, help="write the exact training state every so many steps")
    group.add_argument("--max_steps", type=int, default=0, help="stop after so many steps, as on SIGTERM; 0: never")
    add_launch_arguments(parser, default_rank=-1)
    group.add_argument("--world_size", type=int, default=1, help="checked against what the launcher started")
    group.add_argument("--dist_on_itp", action="store_true", help="read rank and world size from Open MPI first")


def check_common(options: argparse.Namespace) -> None:
    """Refuse values that cannot be, before anything is read. Raises `UserError`."""
    if not options.output_dir:
        raise UserError("--output_dir: it is needed: checkpoints and logs go there")
    for name in ("batch_size", "epochs", "save_ckpt_freq", "eval_freq", "input_h", "input_w"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)} must be at least 1")
    for name in ("lr", "min_lr", "weight_decay", "opt_eps"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{name}: {value} must be a number of at least 0")
    for name in ("drop_path", "drop", "attn_drop_rate"):
        if not 0 <= getattr(options, name, 0) < 1:  # the last two are of fine-tuning only
            raise UserError(f"--{name}: {getattr(options, name)} must lie in [0, 1)")
    betas = options.opt_betas
    if betas and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"--opt_betas: {' '.join(map(str, betas))}: give two numbers in [0, 1), for example 0.9 0.999")
    if optimizer_name(options) not in OPTIMIZERS:
        raise UserError(f"--opt: {options.opt!r} is not one of {', '.join([*OPTIMIZERS, *SAME])}")
    if options.num_workers < 0:
        raise UserError(f"--num_workers: {options.num_workers} must be at least 0")


def optimizer_options(options: argparse.Namespace) -> dict:
    """Keyword arguments of the optimiser that the flags ask for."""
    name = optimizer_name(options)
    chosen: dict = {}
    if name == "sgd":
        # the published "sgd" is Nesterov's too
        chosen.update(momentum=options.momentum, nesterov=options.opt.lower() not in PLAIN_MOMENTUM)
    elif name == "rmsprop":
        chosen.update(momentum=options.momentum, alpha=0.9, eps=options.opt_eps)
    elif name != "adafactor":
        chosen["eps"] = options.opt_eps
    if options.opt_betas and name in ("adam", "adamw", "nadam", "radam"):
        chosen["betas"] = tuple(options.opt_betas)
    if name in ("adam", "adamw"):
        chosen["fused"] = True  # one pass over memory a step, on CPU and CUDA
    return chosen


def optimizer_name(options: argparse.Namespace) -> str:
    """torch's optimiser behind `--opt`."""
    return SAME.get(options.opt.lower(), options.opt.lower())
