"""A fine-tuning run from its configuration: where it begins or resumes, its parts, the fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from common.errors import UserError
from common.models.cpu import keep_freed_memory
from common.train.checkpoint import clear_unfinished, load
from common.train.session import LOCK, check_writable, take_lock
from common.train.state import plain, seed_everything
from projects.ssm import weights
from projects.ssm.finetune.data import BUNDLES
from projects.ssm.finetune.method import System
from projects.ssm.finetune.trainer import build_trainer

START = ("encoder_", "parseq_", "ckpt_", "charset_file")
"""Options of the model that say where the weights start; a resumed run does not need them."""
OF_THE_TRAINER = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "precision", "devices",
                  "num_nodes")  # fmt: skip
OF_THE_DATA = ("augment", "normalize_unicode", "remove_whitespace", "train_dir")


def run(config: dict[str, Any], out: Path) -> pl.Trainer:
    """Build and fit; a run that `out` already holds is resumed. Returns the Trainer.

    Raises `UserError` for anything that the user can correct, before the first batch.
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    if config["pretrained"]:  # also of a resumed run: its model has the sizes of that file
        weights.take_sizes(config["model"], config["pretrained"])
    out, checkpoint = begin(config, out)
    check_writable(out, "hydra.run.dir")
    if rank == 0:
        take_lock(out / LOCK)
        for folder in (out, out / "checkpoints"):
            clear_unfinished(folder)
    try:
        keep_freed_memory()
        seed_everything(config["seed"], rank)
        return fit(config, out, checkpoint)
    finally:
        if rank == 0:
            (out / LOCK).unlink(missing_ok=True)


def fit(config: dict[str, Any], out: Path, checkpoint: Path | None) -> pl.Trainer:
    """Build system, Trainer and data; train."""
    system = build(config, out, resumed=checkpoint is not None)
    trainer = build_trainer(config, out)

    def place() -> tuple[int, int]:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return trainer.current_epoch, done % len(train)

    bundle = BUNDLES[config["data"]["class"]](config["data"], config["seed"])
    train, validation = bundle.loaders(place, trainer.global_rank, trainer.world_size, out)
    wanted = config["trainer"].get("val_check_interval")
    if isinstance(wanted, int) and wanted > len(train) and trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = 1.0  # a short epoch is validated at its end
        print(f"trainer.val_check_interval: an epoch has {len(train)} batches: validating at the end of each epoch")
    trainer.fit(system, train, validation, ckpt_path=checkpoint)
    if not system.trained:
        print(
            f"nothing was trained: the run has done its {trainer.global_step} steps; trainer.max_epochs gives it more"
        )
    if system.averaged:
        average = out / "checkpoints" / "swa.ckpt"
        trainer.save_checkpoint(average, weights_only=True)
        print(f"the averaged weights of the last epochs are in {average}; last.ckpt holds those of the last step")
    return trainer


def begin(config: dict[str, Any], out: Path) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint that it resumes from: `ckpt_path`, or the `last.ckpt` of the folder."""
    last = out / "checkpoints" / "last.ckpt"
    if config["ckpt_path"]:
        path = Path(config["ckpt_path"])
        if not path.is_file():
            raise UserError(f"ckpt_path: {path} does not exist")
        out = path.resolve().parents[1]  # <run>/checkpoints/<file>: the run continues in its folder
    elif last.is_file():
        if not config["resume"]:
            raise UserError(
                f"resume=false: {out} holds a run already ({last}); give another hydra.run.dir for a new one, or "
                "resume=true to continue it"
            )
        path = last
        print(f"resuming from {path} (another hydra.run.dir starts a new run)")
    else:
        return out, None
    try:
        content = load(path)
    except UserError as error:
        others = [(step_of(file), file) for file in path.parent.glob("epoch=*.ckpt") if file != path]
        raise UserError(f"{error}" + (f": ckpt_path={max(others)[1]}" if others else "")) from None
    if not isinstance(content, dict) or not {"pytorch-lightning_version", "optimizer_states"} <= content.keys():
        raise UserError(f"ckpt_path: {path} holds no state to resume from; start from its weights with pretrained=")
    before = {f"model.{key}": value for key, value in plain(content.get("hyper_parameters", {})).items()}
    before |= content.get("settings", {})
    now = settings(config)
    changed = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in now if before.get(name, now[name]) != now[name]]
    if changed and not config["allow_changes"]:
        raise UserError(
            f"{path}: the run had other values ({'; '.join(changed)}); give them again, allow_changes=true to continue "
            "with the new ones, or start a new run from its weights with pretrained= in another hydra.run.dir"
        )
    if changed:
        print(f"allow_changes: {'; '.join(changed)}")
    epochs = before.get("trainer.max_epochs", config["trainer"].get("max_epochs"))
    averages = [state.get("n_averaged") for state in content.get("callbacks", {}).values()]
    if epochs != config["trainer"].get("max_epochs") and any(int(count) for count in averages if count is not None):
        raise UserError(
            f"trainer.max_epochs: the weights of {path} are being averaged, in the last epochs of {epochs}; keep that "
            "number, or start a new run from its weights with pretrained="
        )
    return out, path


def step_of(file: Path) -> int:
    """The step in the name of one of the best checkpoints, `epoch=3-step=800-….ckpt`."""
    digits = file.name.partition("step=")[2].partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers that are trained, by its name on the command line, as plain values."""
    model = {key: value for key, value in config["model"].items() if not key.startswith(("_", *START))}
    found = {f"model.{key}": value for key, value in model.items()}
    found |= {f"data.{key}": config["data"].get(key) for key in OF_THE_DATA}
    found |= {f"trainer.{key}": config["trainer"].get(key) for key in OF_THE_TRAINER}
    return plain({**found, "seed": config["seed"], "swa": config["swa"]})


def build(config: dict[str, Any], out: Path, resumed: bool = False) -> System:
    """The system, its recogniser started from what the configuration names, unless the run is resumed."""
    options = config["model"]
    system = System(options, out)
    system.settings = {**settings(config), "trainer.max_epochs": config["trainer"].get("max_epochs")}
    if system.permutations is not None:
        system.permutations.random = np.random.default_rng(config["seed"])
    if resumed:
        return system
    if config["pretrained"]:
        weights.load_recogniser(system.model, options["charset_train"], config["pretrained"])
    for name in ("parseq", "ckpt", "encoder"):
        if not options.get(f"{name}_pretrained"):
            continue
        file = options.get(f"{name}_checkpoint")
        if not file:
            switch = f"model.{name}_pretrained is true"
            raise UserError(f"model.{name}_checkpoint: it is needed while {switch}; give the checkpoint's path")
        if name == "encoder":
            form, positions = options.get("encoder_format"), bool(options.get("encoder_pos_embed"))
            weights.load_encoder(system.model, file, form, positions)
        else:
            weights.load_matching(system.model, file)
    return system
