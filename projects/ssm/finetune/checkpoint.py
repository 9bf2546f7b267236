"""Checkpoints of fine-tuned recognisers: Lightning's form on disk, safely, and models built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf
from torch import nn

from common.errors import UserError
from common.models.weights import load_strict
from common.train.checkpoint import load, save_atomic, write_card
from projects.ssm.finetune.config import CONFIGS
from projects.ssm.finetune.shapes import class_of, known_names, sizes_of
from projects.ssm.finetune.weights import guess_charset, local, tensors_of
from projects.ssm.models.build import build_recogniser

ROW = "ssm/{}"


class SafeFiles(CheckpointIO):
    """Writes whole files or none, with a card beside them; reads weights and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace the file in one step."""
        options = checkpoint.get("hyper_parameters", {})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic(path, checkpoint)
        write_card(path, ROW.format(options.get("class", "TransOCR")), {}, step=checkpoint.get("global_step", 0))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Without running anything of the file."""
        content = load(path, map_location or "cpu")
        if "pytorch-lightning_version" not in content:
            raise UserError(f"ckpt_path: {path} holds no state to go on from; start from its weights with pretrained=")
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """The file and its card."""
        for file in (Path(path), Path(f"{path}.json")):
            file.unlink(missing_ok=True)


class Checkpoints(ModelCheckpoint):
    """The three best by validation accuracy, and `last.ckpt` after every validation and epoch (not only after one
    that was among the best) and on SIGTERM."""

    def __init__(self, folder: Path) -> None:
        name = "{epoch}-{step}-{val_accuracy:.4f}-{val_NED:.4f}"
        super().__init__(folder, name, monitor="val_accuracy", mode="max", save_top_k=3, enable_version_counter=False)
        self.last_step = -1

    def save_newest(self, trainer: Trainer) -> None:
        """Write `last.ckpt` unless this step already has. Collective."""
        if trainer.sanity_checking or trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.averaged:  # no run goes on from the average; its validation has half of the batch statistics
            super().on_validation_end(trainer, pl_module)
            self.save_newest(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.averaged:
            super().on_train_epoch_end(trainer, pl_module)
            self.save_newest(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, SIGTERMException):  # raised between two steps
            self.save_newest(trainer)
            print(
                f"stopped after step {trainer.global_step}; go on with ckpt_path={self.dirpath}/last.ckpt", flush=True
            )


def parse_model_args(words: Sequence[str]) -> dict[str, Any]:
    """`name:type=value` words -> values; type is int, float, str or bool ("true", in any case, is True).

    Raises `UserError` for a word of another form.
    """
    kinds = {"int": int, "float": float, "str": str, "bool": lambda text: text.lower() == "true"}
    found: dict[str, Any] = {}
    for word in words:
        head, equals, value = word.partition("=")
        name, colon, kind = head.partition(":")
        if not (equals and colon and name) or kind not in kinds:
            raise UserError(f"{word!r}: model arguments are name:type=value with type int, float, str or bool")
        try:
            found[name] = kinds[kind](value)
        except ValueError:
            raise UserError(f"{word!r}: {value!r} is no {kind}") from None
    return found


def stock_arguments(name: str) -> dict[str, Any]:
    """The published configuration of a class, for files that say nothing about themselves."""
    group = {"TRBC": "trba"}.get(name, name.lower())
    main = OmegaConf.load(CONFIGS / "main.yaml").model
    return {
        key: value
        for key, value in OmegaConf.to_container(
            OmegaConf.merge(main, OmegaConf.load(CONFIGS / "model" / f"{group}.yaml"))
        ).items()
        if value is not None and value != "???"
    }


def open_model(
    path: str | Path, overrides: Mapping[str, Any] | None = None, standard: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """A recogniser from a checkpoint of ours or of the published form, with its arguments.

    Args:
        path: the file.
        overrides: constructor arguments that replace those of the file.
        standard: force the standard encoder; by default the names in the file decide.

    Raises `UserError` for a file that is no recogniser or does not fit its arguments.
    """
    path = local(str(path).removeprefix("pretrained="))
    content = load(path)
    state = known_names(tensors_of(content, path))
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    hyper = dict(hyper or {})
    name = str(hyper.get("class") or class_of(state, path))
    options = {**stock_arguments(name), **sizes_of(state, name), **hyper, **(overrides or {}), "class": name}
    options["charset_train"] = guess_charset(state, options, path)
    if name == "TransOCR":
        options["standard"] = standard or "encoder.blocks.0.attn.qkv.weight" in state
    model = build_recogniser(name, options["charset_train"], options)
    load_strict(model, state, what=path)
    return model, options


def to_device(name: str) -> torch.device:
    """The published default, cuda, means CUDA if there is any."""
    from common.infer.recognizer import pick_device

    if name == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: reading on the CPU")
        return torch.device("cpu")
    return pick_device(name)
