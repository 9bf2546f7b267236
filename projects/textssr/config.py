"""Configuration files: flat Python assignments, read as data. Nothing in a file is executed."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from common.errors import UserError
from common.files import read_regular
from common.flags import at_home
from projects.textssr.conditions import SHIPPED
from projects.textssr.model.unet import PLANE_SIZE, PLANES

NO_EFFECT = ("language", "guidance_scale", "select_data_lenth", "local_rank")
"""Published keys that the published code never used: accepted, with a notice."""

_TEXT, _WHOLE, _NUMBER, _SWITCH = (str,), (int,), (int, float), (bool,)
_SHARED = {
    **dict.fromkeys(("lmdb_path", "output_dir", "logging_dir", "report_to", "lr_scheduler"), _TEXT),
    **dict.fromkeys(("revision", "non_ema_revision", "hub_token", "hub_model_id", "mixed_precision"), (str, None)),
    "resume_from_checkpoint": (str, None),
    **dict.fromkeys(
        ("seed", "resolution", "train_batch_size", "num_train_epochs", "gradient_accumulation_steps"), _WHOLE
    ),
    **dict.fromkeys(("lr_warmup_steps", "dataloader_num_workers", "checkpointing_steps"), _WHOLE),
    **dict.fromkeys(("max_train_steps", "checkpoints_total_limit"), (int, None)),
    **dict.fromkeys(
        ("learning_rate", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm"), _NUMBER
    ),
    **dict.fromkeys(("gradient_checkpointing", "scale_lr", "use_8bit_adam", "allow_tf32", "push_to_hub"), _SWITCH),
    "enable_xformers_memory_efficient_attention": _SWITCH,
}
VAE_KEYS = {**_SHARED, "pretrained_model_name_or_path": _TEXT, "local_rank": _WHOLE}
DIFFUSION_KEYS = {
    **_SHARED,
    **dict.fromkeys(("scheduler_path", "pretrained_vae", "pretrained_unet"), _TEXT),
    **dict.fromkeys(("ttf_size", "max_len", "select_data_lenth"), _WHOLE),
    "language": (str, None),
    "guidance_scale": _NUMBER,
    "use_ema": _SWITCH,
}
OURS = {
    "font_path": (str, None),
    **dict.fromkeys(("exact_crop", "clean_glyph", "tight_glyph", "cache_latents", "fit_scaling_factor"), _SWITCH),
    "compile_backend": (str, None),
    **dict.fromkeys(("log_every", "sample_sheet"), _WHOLE),
    **dict.fromkeys(("condition_dropout", "region_loss_weight"), _NUMBER),
    "min_snr_gamma": (int, float, None),
    "allow_changes": _SWITCH,
}
"""Additional keys, all with defaults that leave the published behaviour as it is."""
OUR_HELP = {
    "font_path": "font of the glyph conditions",
    "exact_crop": "keep the crop on the word, where the published code may start one pixel late",
    "clean_glyph": "keep whole strokes in the glyph of the word",
    "tight_glyph": "let the ink of the glyph fill the region",
    "cache_latents": "encode each region once and keep its mean and variance below output_dir/latents",
    "fit_scaling_factor": "train_vae: the factor of the latents is that of its own data (a VAE from random weights)",
    "compile_backend": "torch.compile with this backend, as inductor",
    "log_every": "updates between logged losses (1)",
    "sample_sheet": "samples that are painted at each checkpoint (8; 0: none)",
    "condition_dropout": "share of samples with blank character planes, for --guidance of infer.py",
    "region_loss_weight": "weight of the loss inside the text region (1)",
    "min_snr_gamma": "min-SNR weighting of the loss, as 5",
    "allow_changes": "resume although keys that decide the result have changed",
}
"""One line for each additional key, for `--help`."""
OUR_DEFAULTS = {
    **dict.fromkeys(("font_path", "compile_backend"), None),
    **dict.fromkeys(("exact_crop", "clean_glyph", "tight_glyph", "cache_latents", "fit_scaling_factor"), False),
    "allow_changes": False,
    "log_every": 1,
    "sample_sheet": 8,
    "condition_dropout": 0.0,
    "region_loss_weight": 1.0,
    "min_snr_gamma": None,
}
DECIDING = (
    *("seed", "resolution", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "scale_lr"),
    *("lr_scheduler", "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon"),
    *("max_grad_norm", "mixed_precision", "use_8bit_adam", "use_ema", "exact_crop", "clean_glyph", "tight_glyph"),
    *("ttf_size", "condition_dropout", "region_loss_weight", "min_snr_gamma"),
)
"""Keys that a resumed run may only change with `allow_changes`."""
OPTIONAL = ("guidance_scale", "language", "select_data_lenth", "local_rank")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
CHOICES = {
    "lr_scheduler": SCHEDULES,
    "mixed_precision": (None, "no", "fp16", "bf16"),
    "max_len": (PLANES,),
    "ttf_size": (PLANE_SIZE,),
}
"""Values that can be honoured: the glyph encoder takes planes of one number and size only."""
LEAST = {
    **dict.fromkeys(("seed", "lr_warmup_steps", "dataloader_num_workers", "learning_rate", "adam_weight_decay"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"), 0),
    **dict.fromkeys(("train_batch_size", "num_train_epochs", "gradient_accumulation_steps", "log_every"), 1),
    **dict.fromkeys(("checkpointing_steps", "max_train_steps", "checkpoints_total_limit"), 1),
    "resolution": 8,
    **dict.fromkeys(("sample_sheet", "condition_dropout", "min_snr_gamma"), 0),
    "region_loss_weight": 1,
}
WITHOUT_USE = {
    "vae": ("gradient_checkpointing", "enable_xformers_memory_efficient_attention", "cache_latents", "clean_glyph",
            "tight_glyph", "font_path", "min_snr_gamma"),
    "unet": ("fit_scaling_factor",),
}  # fmt: skip
"""Keys that only the other trainer uses."""
ONLINE = ("revision", "non_ema_revision", "hub_token", "hub_model_id")
"""Published keys of downloads and uploads: models are read from folders here."""
OF_PAINTER = {"pretrained_unet": "unet", "pretrained_vae": "vae", "scheduler_path": "scheduler"}
"""Keys whose value may be "shipped", and the part of the painter that ships which each then names."""


def read_config(path: str | Path, known: dict[str, tuple], changes: Sequence[str] = ()) -> SimpleNamespace:
    """The assignments of a configuration file as attributes, with the defaults of our additional keys filled in.

    Args:
        path: a `.py` file of `name = literal` lines; `base = "file"`, next to it, goes before them.
        known: published keys and the types each may have (`VAE_KEYS`, `DIFFUSION_KEYS`).
        changes: `key=value` texts that go before the file's values (the flag `--set`).

    Raises:
        UserError: no file, a line that is not such an assignment, an unknown or missing key, a value of a wrong type
            or out of range.
    """
    path = Path(path)
    values = dict(OUR_DEFAULTS)
    types = {**known, **OURS}
    for name, value, where in _assignments(path) + [_change(text) for text in changes]:
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown key {name}{hint}")
        if not _fits(value, types[name]):
            wanted = " or ".join("None" if kind is None else kind.__name__ for kind in types[name])
            raise UserError(f"{where}: {name}: {value!r} is not of type {wanted}")
        values[name] = _shipped(name) if value == "shipped" and name in OF_PAINTER else at_home(value)
    missing = [name for name in known if name not in values and name not in OPTIONAL]
    if missing:
        raise UserError(f"{path}: missing keys: {', '.join(missing)}; copy them from projects/textssr/configs")
    for name, value in values.items():
        _check(path, name, value)
    return SimpleNamespace(**values)


def _shipped(name: str) -> str:
    """The folder of the painter that ships for a key. Raises UserError where none is installed."""
    folder = SHIPPED / OF_PAINTER[name]
    if not folder.is_dir():
        raise UserError(f"{name}: no painter ships with this installation: give a diffusers folder")
    return str(folder)


def _check(path: Path, name: str, value: object) -> None:
    """Raise UserError for a value that no run can use."""
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"{path}: {name}: {value!r}: use {', '.join(map(repr, CHOICES[name]))}")
    if name in LEAST and value is not None and not value >= LEAST[name]:
        raise UserError(f"{path}: {name}: {value!r}: give {LEAST[name]} or more")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {name}: {value!r} is not a finite number")
    if name in ("adam_beta1", "adam_beta2", "condition_dropout") and value >= 1:
        raise UserError(f"{path}: {name}: {value!r}: give less than 1")
    if name == "resolution" and value % 8:
        raise UserError(f"{path}: {name}: {value!r}: give a multiple of 8")


def _assignments(path: Path, inheriting: tuple[Path, ...] = ()) -> list[tuple[str, object, str]]:
    """(key, value, place) of every line of a file, those of its `base` first; `inheriting` are the files before it."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file: give --config, for instance projects/textssr/configs/train_diff_step1_cfg.py"
        )
    try:
        tree = ast.parse(read_regular(path).decode("utf-8-sig"))
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a configuration file ({reason}); write lines of the form name = value") from None
    lines = [_assignment(path, node) for node in tree.body]
    bases = [value for name, value, _ in lines if name == "base"]
    if len(bases) > 1 or not all(isinstance(base, str) and base for base in bases):
        raise UserError(f"{path}: base: name one other file of the same folder")
    before = [path.parent / Path(base).name for base in bases]
    if circle := [file for file in before if file.resolve() in (path.resolve(), *inheriting)]:
        raise UserError(f"{path}: base: {circle[0].name} is built on this file itself; remove one of the two lines")
    inherited = _assignments(before[0], (*inheriting, path.resolve())) if before else []
    return inherited + [line for line in lines if line[0] != "base"]


def _assignment(path: Path, node: ast.stmt) -> tuple[str, object, str]:
    """(key, value, place) of one line."""
    where = f"{path}: line {node.lineno}"
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        try:
            return name, ast.literal_eval(node.value), where
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise UserError(f"{where}: {name}: write a plain value, not an expression") from None
    raise UserError(
        f"{where}: only lines of the form name = value are read (nothing is executed); comments begin with #"
    )


def _change(text: str) -> tuple[str, object, str]:
    """(key, value, place) of a `key=value`; what is no Python literal is a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: give key=value")
    try:
        return name, ast.literal_eval(value), "--set"
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return name, value, "--set"


def _fits(value: object, kinds: tuple) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return any(value is None if kind is None else isinstance(value, kind) for kind in kinds)


def notices(config: SimpleNamespace) -> list[str]:
    """A line for each key that is set and has no effect."""
    kind = "unet" if hasattr(config, "pretrained_unet") else "vae"

    def told(names: Sequence[str], why: str) -> list[str]:
        off = (None, -1, False)
        used = [(name, getattr(config, name, None)) for name in names]
        return [f"{name} = {value!r} has no effect{why}" for name, value in used if value not in off]

    lines = told(NO_EFFECT, " (nor had it in the published code)")
    if config.lr_scheduler == "constant":
        lines += told(["lr_warmup_steps"] if config.lr_warmup_steps else [], " with lr_scheduler = 'constant'")
    online = [name for name in ONLINE if getattr(config, name, None) is not None]  # a token is not for a log
    lines += [f"{name} has no effect: models are read from folders, nothing is uploaded" for name in online]
    return lines + told(WITHOUT_USE[kind], f" on the training of the {kind}")
