"""Configuration files: flat Python assignments, read as data. Nothing in a file is executed."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from common.errors import UserError

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
    **dict.fromkeys(("exact_crop", "clean_glyph", "cache_latents", "fit_scaling_factor"), _SWITCH),
    "compile_backend": (str, None),
    "log_every": _WHOLE,
}
"""Additional keys, all with defaults that leave the published behaviour as it is."""
OUR_DEFAULTS = {
    **dict.fromkeys(("font_path", "compile_backend"), None),
    **dict.fromkeys(("exact_crop", "clean_glyph", "cache_latents", "fit_scaling_factor"), False),
    "log_every": 1,
}
OPTIONAL = ("guidance_scale", "language", "select_data_lenth", "local_rank")


def read_config(path: str | Path, known: dict[str, tuple], changes: Sequence[str] = ()) -> SimpleNamespace:
    """The assignments of a configuration file as attributes, with the defaults of our additional keys filled in.

    Args:
        path: a `.py` file of `name = literal` lines; `base = "file"`, beside it, goes before them.
        known: published keys and the types each may have (`VAE_KEYS`, `DIFFUSION_KEYS`).
        changes: `key=value` texts that go before the file's values (the flag `--set`).

    Raises:
        UserError: no file, a line that is not such an assignment, an unknown or missing key, a value of a wrong type.
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
        values[name] = value
    missing = [name for name in known if name not in values and name not in OPTIONAL]
    if missing:
        raise UserError(f"{path}: missing keys: {', '.join(missing)}; copy them from projects/textssr/configs")
    return SimpleNamespace(**values)


def _assignments(path: Path) -> list[tuple[str, object, str]]:
    """(key, value, place) of every line of a file, those of its `base` first."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file: give --config, for instance projects/textssr/configs/train_diff_step1_cfg.py"
        )
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a configuration file ({error}); write lines of the form name = value") from None
    lines = [_assignment(path, node) for node in tree.body]
    bases = [value for name, value, _ in lines if name == "base"]
    if len(bases) > 1 or bases == [path.name]:
        raise UserError(f"{path}: base: name one other file of the same folder")
    inherited = _assignments(path.parent / Path(str(bases[0])).name) if bases else []
    return inherited + [line for line in lines if line[0] != "base"]


def _assignment(path: Path, node: ast.stmt) -> tuple[str, object, str]:
    """(key, value, place) of one line."""
    where = f"{path}: line {node.lineno}"
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        try:
            return name, ast.literal_eval(node.value), where
        except ValueError:
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
    except (ValueError, SyntaxError):
        return name, value, "--set"


def _fits(value: object, kinds: tuple) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return any(value is None if kind is None else isinstance(value, kind) for kind in kinds)


def notices(config: SimpleNamespace) -> list[str]:
    """A line for each key that is set and has no effect."""
    return [f"{name} = {getattr(config, name)!r} has no effect (nor had it in the published code)"
            for name in NO_EFFECT if getattr(config, name, None) not in (None, -1)]  # fmt: skip
