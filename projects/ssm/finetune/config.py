"""The configuration of fine-tuning: what Hydra composed, checked and settled for this machine."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from common.flags import at_home
from common.text.charset import described
from common.text.charset import read_charset as read_charset_file
from projects.ssm.finetune.flags import DataOptions, Options
from projects.ssm.model.build import CLASSES

CONFIGS = Path(__file__).resolve().parent / "configs"
FAILED: list[UserError] = []
BEGUN: list[bool] = []
BUNDLES = ("SceneTextDataModule", "ChineseSceneTextDataModule")


def class_name(target: str, known: tuple[str, ...], key: str) -> str:
    """The class that a `_target_` names: of this tree, or the published path that ends the same."""
    name = str(target).rpartition(".")[2]
    if name not in known:
        raise UserError(f"{key}._target_: {target}: unknown; the classes are {', '.join(known)}")
    return name


def settle(config: DictConfig) -> Options:
    """The configuration as plain values, ready to build from.

    The data folder becomes absolute, a character list is read from its file, `gpus` becomes `devices`, and an absent
    GPU becomes the processor, with a line that says so. Raises `UserError` for values that cannot be.
    """
    OmegaConf.set_struct(config, False)
    read_charset(config)
    plain = at_home_everywhere(OmegaConf.to_container(config, resolve=True))
    model, data, trainer = plain["model"], plain["data"], plain["trainer"]
    for section in (model, data, trainer):
        section.pop("_convert_", None)
    model["class"] = class_name(model["_target_"], tuple(CLASSES), "model")
    data["kind"] = class_name(data.pop("_target_"), BUNDLES, "data")
    class_name(trainer.pop("_target_", "Trainer"), ("Trainer",), "trainer")
    check(model, data)
    if not isinstance(plain["seed"], int) or plain["seed"] < 0:
        raise UserError(f"seed: {plain['seed']!r} must be a whole number of at least 0")
    data["root_dir"], data["train_dir"] = str(Path(data["root_dir"]).absolute()), str(data["train_dir"])
    if unknown := data.keys() - {field.name for field in fields(DataOptions)}:
        raise UserError(f"data.{min(unknown)}: no such key; the keys are those of configs/main.yaml")
    settle_trainer(trainer)
    names = ("seed", "swa", "resume", "allow_changes", "ckpt_path", "pretrained")
    return Options(model, DataOptions(**data), trainer, **{name: plain[name] for name in names})


def at_home_everywhere(section: dict[str, Any]) -> dict[str, Any]:
    """All values with `~` as the home folder, but for the charsets."""
    return {
        key: at_home_everywhere(value) if isinstance(value, dict) else value if "charset" in key else at_home(value)
        for key, value in section.items()
    }


def read_charset(config: DictConfig) -> None:
    """`model.charset_file`: one character a line, where the character list is too long for a configuration."""
    file = at_home(config.model.get("charset_file"))
    if not file:
        return
    try:
        charset = read_charset_file(file)
    except UserError as error:
        raise UserError(f"model.charset_file: {error}") from None
    print(f"model.charset_file: {described(charset)}")
    config.model.charset_train = charset


def check(model: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse values of the wrong kind, and combinations that cannot train; settle the folding of labels to ASCII."""
    for key in ("lr", "weight_decay", "warmup_pct", *({"l_lr"} & set(model))):
        try:
            model[key] = float(model[key])
        except (TypeError, ValueError):
            raise UserError(f"model.{key}: {model[key]!r} is not a number") from None
        if not 0 <= model[key] < math.inf or (key == "lr" and not model[key]):
            raise UserError(f"model.{key}: {model[key]} must be {'above' if key == 'lr' else 'at least'} 0")
    if model["warmup_pct"] >= 1:
        raise UserError(f"model.warmup_pct: {model['warmup_pct']} must be below 1: it is a share of the steps")
    for name, value in (("model.batch_size", model["batch_size"]), ("data.num_workers", data["num_workers"])):
        if not isinstance(value, int) or value < (name == "model.batch_size"):
            raise UserError(f"{name}: {value!r} must be a whole number of at least {int(name == 'model.batch_size')}")
    for key in ("img_size", *({"patch_size"} & set(model))):
        size = model[key]
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise UserError(f"model.{key}: {size!r} must be [height,width]")
    for key in ("charset_train", "charset_test"):
        if not isinstance(model[key], str) or not model[key]:
            raise UserError(f"model.{key}: it must be a string of characters; choose one with charset=94_full")
    for key, usual in (("unsupported_share", 0.05), ("bad_share", 0.01)):
        share = data.setdefault(key, usual)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UserError(f"data.{key}: {share!r} must be a share from 0 to 1")
    if not isinstance(data.setdefault("exclude", None), (str, type(None))):
        raise UserError(f"data.exclude: {data['exclude']!r} must be a file that `strlab doctor --against` wrote")
    for key in ("augment", "remove_whitespace", "normalize_unicode"):
        if not isinstance(data[key], bool):
            raise UserError(f"data.{key}: {data[key]!r} must be true or false")
    if data["normalize_unicode"] and not (model["charset_train"] + model["charset_test"]).isascii():
        print("data.normalize_unicode: off, as a charset has letters outside ASCII")
        data["normalize_unicode"] = False


def settle_trainer(trainer: dict[str, Any]) -> None:
    """The published rules of precision and devices, and what this machine has of them."""
    if "gpus" in trainer:
        trainer["devices"] = trainer.pop("gpus")
    for key in ("max_epochs", "max_steps"):
        if not isinstance(trainer.get(key, 0), int):
            raise UserError(f"trainer.{key}: {trainer[key]!r} is not a whole number")
    if trainer.get("max_epochs", 0) < 0 and trainer.get("max_steps", -1) < 0:
        raise UserError(
            "trainer.max_epochs: without trainer.max_steps it must be at least 0, as learning rates need an end"
        )
    if trainer.get("val_check_interval") == 0:
        raise UserError("trainer.val_check_interval: it must be above 0: steps, or a share of an epoch")
    if trainer.get("accelerator") == "gpu" and not torch.cuda.is_available():
        print("trainer.accelerator: no GPU can be used here; training on the processor, one process")
        trainer["accelerator"], trainer["devices"] = "cpu", 1
    if trainer.get("accelerator") == "auto":
        trainer["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    devices = trainer.get("devices", 1)
    if trainer["accelerator"] == "gpu":
        trainer.setdefault("precision", "16-mixed")
    if isinstance(devices, int) and devices > 1 and "strategy" not in trainer:
        trainer["strategy"] = {
            "_target_": "lightning.pytorch.strategies.DDPStrategy",
            "find_unused_parameters": False,
            "gradient_as_bucket_view": True,
        }
        for key in ("val_check_interval", "max_steps"):
            if isinstance(trainer.get(key), int) and trainer[key] > 0:
                trainer[key] = max(trainer[key] // devices, 1)


def explained(task: Callable) -> Callable:
    """Turn Hydra's errors (unknown experiment, group choice, key, malformed override) into one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    @wraps(task)
    def wrapped(*args, **kwargs):
        try:
            return task(*args, **kwargs)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(str(error))) from None

    return wrapped


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning praises its other products at every start."""
    return "Tip: For seamless" not in record.getMessage()


def quietly(job: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Keep a job's errors of input from Hydra, which would add a line of its own; `start` raises them."""

    @wraps(job)
    def wrapped(config: DictConfig) -> None:
        BEGUN.append(True)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_advertisement)
        try:
            explained(job)(config)
        except UserError as error:
            FAILED.append(error)

    return wrapped


@explained
def start(task: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Run a `hydra.main` function on the given words, or on the command line's."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to `explained`, which reports them in a line
    words = map(str, sys.argv[1:] if argv is None else argv)
    # Hydra itself takes a value that begins with ~ for a fault, and makes hydra.run.dir before the job begins.
    sys.argv = [sys.argv[0], *(re.sub(r"""(?<==)(["']?)~(?=/|\1$)""", home, word) for word in words)]
    FAILED.clear()
    BEGUN.clear()
    try:
        task()
    except OSError as error:  # Hydra makes the run's folder before the job begins
        if BEGUN or error.filename is None:  # Hydra's own error of a missing configuration is an OSError too
            raise
        told = f"{error.filename}: {error.strerror}"
        raise UserError(f"hydra.run.dir: {told}; give a folder that can be written") from None
    if FAILED:
        raise FAILED[0]


def home(found: re.Match) -> str:
    """The home folder in place of a `~` that begins a value, behind its quote if it has one."""
    return found[1] + str(Path.home())


def one_line(message: str) -> str:
    """The first facts of Hydra's message, with the near names where it lists the possible ones."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = lines[0] if lines else "unknown error"
    asked = re.search(r"Could not find '(?:\w+/)*([^']+)'|Could not load '(?:\w+/)*([^']+)'", message)
    if asked:
        wanted = next(word for word in asked.groups() if word)
        group = re.search(r"'(\w+)/", asked[0])  # experiment, model, …: names of the same kind only
        folder = CONFIGS / group[1] if group else CONFIGS
        names = sorted({path.stem for path in folder.rglob("*.yaml")})
        near = get_close_matches(wanted, names, n=4, cutoff=0.3)
        return f"{told}; near names: {', '.join(near) or 'none'}"
    key = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", message)
    if key:
        word = next(word for word in key.groups() if word)
        near = get_close_matches(word.rpartition(".")[2], known_keys(), n=4, cutoff=0.5)
        return f"{word}: no such key; near names: {', '.join(near) or 'none'}; a new key needs + in front"
    return " ".join(lines)[:300]


def known_keys() -> list[str]:
    """All keys of the configuration files."""
    keys: set[str] = set()
    for path in CONFIGS.rglob("*.yaml"):
        keys |= set(re.findall(r"^\s*(\w+):", path.read_text("utf-8"), re.M))
    return sorted(keys)
