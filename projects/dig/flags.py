"""What the command lines of pre-training and fine-tuning have in common: rows of their tables, options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from common.errors import UserError
from common.flags import LAUNCH, Flag
from common.train.optim import OPTIMIZERS
from projects.dig.optim import SAME, optimizer_name

PLACEHOLDER = "/datasets01/imagenet_full_size/061417/train"  # the published default of --data_path, a leftover


@dataclass(frozen=True)
class RunOptions:
    """The options that both scripts have, under the names of their flags."""

    output_dir: str
    log_dir: str | None
    device: str
    seed: int
    resume: str
    auto_resume: bool
    start_epoch: int
    num_workers: int
    pin_mem: bool
    state_steps: int
    max_steps: int
    allow_changes: bool
    bad_share: float
    world_size: int
    dist_on_itp: bool
    dist_url: str
    local_rank: int
    dist_timeout: float
    batch_size: int
    epochs: int
    save_ckpt_freq: int
    eval_freq: int
    input_h: int
    input_w: int
    drop_path: float
    opt: str
    opt_eps: float
    opt_betas: list[float] | None
    clip_grad: float | None
    momentum: float
    weight_decay: float
    weight_decay_end: float | None
    lr: float
    min_lr: float
    warmup_epochs: int
    warmup_steps: int
    amp: str
    compile: bool
    tf32: bool

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.input_h, self.input_w


def switch(text: str) -> bool:
    """The value of a flag whose published type is `bool`, which takes any text, "False" included, for True; here no
    means no."""
    return text.lower() not in ("", "0", "false", "no", "off")


def no_effect(names: str, kind: type = bool, default: Any = None, **more: Any) -> Flag:
    """A flag that the published script parses and never reads."""
    return Flag(names, kind, default, "no effect", dead=True, **more)


def optimisation(*, lr: float, min_lr: float, warmup_epochs: int, betas: Any = None) -> tuple[Flag, ...]:
    """Optimizer, schedule and precision; the scripts differ in four defaults."""
    return (
        Flag("--opt", default="adamw", help=f"one of {', '.join([*OPTIMIZERS, *SAME])}"),
        Flag("--opt_eps", float, 1e-8, "epsilon of the optimizer", range=(0, inf)),
        Flag("--opt_betas", float, betas, nargs="+", help="betas of the optimizer; its own if not given"),
        Flag("--clip_grad", float, help="clip the gradient's 2-norm to this"),
        Flag("--momentum", float, 0.9, "of sgd"),
        Flag("--weight_decay", float, 0.05, "at the start", range=(0, inf)),
        Flag("--weight_decay_end", float, help="at the end of a cosine; as at the start if not given"),
        Flag("--lr", float, lr, "for a global batch of 256, scaled to the real one", range=(0, inf)),
        Flag("--min_lr", float, min_lr, "at the end of the cosine, not scaled", range=(0, inf)),
        Flag("--warmup_epochs", int, warmup_epochs, "of the learning rate, from 0"),
        Flag("--warmup_steps", int, -1, "replaces the epochs when positive"),
        Flag("--amp", default="auto", choices=["auto", "no", "fp16", "bf16"], help="precision; auto: fp16 on CUDA"),
        Flag("--compile", bool, help="torch.compile the model", free=True),
        Flag("--tf32", bool, help="TF32 matrix products on CUDA"),
    )


def run(*, workers: int) -> tuple[Flag, ...]:
    """Output, resuming, devices and processes."""
    return (
        Flag("--output_dir", default="", help="checkpoints and logs; needed", free=True),
        Flag("--log_dir", help="TensorBoard scalars", free=True),
        Flag("--device", default="cuda", help="cuda, cpu or auto; without the flag: CUDA if there is any", free=True),
        Flag("--seed", int, 0, "rank is added for the random draws of the model"),
        Flag("--resume", default="", help="a training state or a checkpoint", free=True),
        Flag("--auto_resume", bool, True, "resume from what is in --output_dir", free=True),
        Flag("--no_auto_resume", bool, True, "start anew", const=False, dest="auto_resume", free=True),
        Flag("--allow_changes", bool, help="resume although flags that decide the result differ", free=True),
        Flag("--start_epoch", int, 0, "first epoch of a run that resumes nothing", range=(0, inf), free=True),
        Flag("--num_workers", int, workers, "loader processes; 0 loads in this one", range=(0, inf), free=True),
        Flag("--pin_mem", bool, True, "page-locked batches on CUDA", free=True),
        Flag("--no_pin_mem", bool, True, "plain memory", const=False, dest="pin_mem", free=True),
        Flag("--state_steps", int, 0, "write the exact training state every so many steps", range=(0, inf), free=True),
        Flag("--max_steps", int, 0, "stop after so many steps, as on SIGTERM; 0: never", range=(0, inf), free=True),
        Flag("--bad_share", float, 0.01, "largest share of unreadable samples; above it the run stops",
             range=(0, 1), free=True),
        Flag("--world_size", int, 1, "checked against what the launcher started", free=True),
        Flag("--dist_on_itp", bool, help="read rank and world size from Open MPI first", free=True),
        *LAUNCH,
    )  # fmt: skip


def check_run(values: Mapping[str, Any]) -> None:
    """Refuse values of either script that cannot be, before anything is read. Raises `UserError`."""
    if not values["output_dir"]:
        raise UserError("--output_dir: it is needed: checkpoints and logs go there")
    for name in ("drop_path", "drop", "attn_drop_rate"):
        if not 0 <= values.get(name, 0) < 1:  # the last two are of fine-tuning only
            raise UserError(f"--{name}: {values[name]} must lie in [0, 1)")
    betas = values["opt_betas"]
    if betas and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"--opt_betas: {' '.join(map(str, betas))}: give two numbers in [0, 1), for example 0.9 0.999")
    if optimizer_name(values["opt"]) not in OPTIMIZERS:
        raise UserError(f"--opt: {values['opt']!r} is not one of {', '.join([*OPTIMIZERS, *SAME])}")
