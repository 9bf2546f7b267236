"""A fine-tuning run from its configuration: where it begins or resumes, its parts, the fit."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from common.errors import UserError
from common.models.cpu import keep_freed_memory
from common.train.checkpoint import clear_unfinished, load
from common.train.distributed import Dist
from common.train.session import LOCK, check_writable, take_lock
from common.train.state import plain, seed_everything
from projects.ssm import weights
from projects.ssm.finetune.abinet_method import ABINetSystem
from projects.ssm.finetune.data import BUNDLES
from projects.ssm.finetune.flags import Options
from projects.ssm.finetune.method import CrossEntropySystem, CTCSystem, System, swa_factor
from projects.ssm.finetune.trainer import Checkpoints, SafeFiles, WeightAveraging

SYSTEMS: dict[str, type[System]] = {"ABINet": ABINetSystem, "CRNN": CTCSystem, "TRBC": CTCSystem}
"""By the recogniser's class; all others are trained by cross-entropy."""
START = ("encoder_", "parseq_", "ckpt_", "charset_file")
"""Options of the model that say where the weights start; a resumed run does not need them."""
OF_THE_TRAINER = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "precision", "devices",
                  "num_nodes")  # fmt: skip
OF_THE_DATA = ("augment", "normalize_unicode", "remove_whitespace", "train_dir")


def run(o: Options, out: Path) -> pl.Trainer:
    """Build and fit; a run that `out` already holds is resumed. Returns the Trainer.

    Raises `UserError` for anything that the user can correct, before the first batch.
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    if o.pretrained:  # also of a resumed run: its model has the sizes of that file
        o = replace(o, model=weights.with_sizes_of(o.pretrained, o.model))
    out, checkpoint = begin(o, out)
    check_writable(out, "hydra.run.dir")
    if rank == 0:
        take_lock(out / LOCK)
        for folder in (out, out / "checkpoints"):
            clear_unfinished(folder)
    try:
        keep_freed_memory()
        seed_everything(o.seed, rank)
        return fit(o, out, checkpoint)
    finally:
        if rank == 0:
            (out / LOCK).unlink(missing_ok=True)


def begin(o: Options, out: Path) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint that it resumes from: `ckpt_path`, or the `last.ckpt` of the folder."""
    last = out / "checkpoints" / "last.ckpt"
    if o.ckpt_path:
        path = Path(o.ckpt_path)
        if not path.is_file():
            raise UserError(f"ckpt_path: {path} does not exist")
        out = path.resolve().parents[1]  # <run>/checkpoints/<file>: the run continues in its folder
    elif last.is_file():
        if not o.resume:
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
    now = settings(o)
    changed = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in now if before.get(name, now[name]) != now[name]]
    if changed and not o.allow_changes:
        raise UserError(
            f"{path}: the run had other values ({'; '.join(changed)}); give them again, allow_changes=true to continue "
            "with the new ones, or start a new run from its weights with pretrained= in another hydra.run.dir"
        )
    if changed:
        print(f"allow_changes: {'; '.join(changed)}")
    epochs, wanted = before.get("trainer.max_epochs", o.trainer.get("max_epochs")), o.trainer.get("max_epochs")
    averages = [state.get("n_averaged") for state in content.get("callbacks", {}).values()]
    if epochs != wanted and any(int(count) for count in averages if count is not None):
        raise UserError(
            f"trainer.max_epochs: the weights of {path} are being averaged, in the last epochs of {epochs}; keep that "
            "number, or start a new run from its weights with pretrained="
        )
    return out, path


def step_of(file: Path) -> int:
    """The step in the name of one of the best checkpoints, `epoch=3-step=800-….ckpt`."""
    digits = file.name.partition("step=")[2].partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def settings(o: Options) -> dict[str, Any]:
    """What decides the numbers that are trained, by its name on the command line, as plain values."""
    found = {f"model.{key}": value for key, value in o.model.items() if not key.startswith(("_", *START))}
    found |= {f"data.{key}": getattr(o.data, key) for key in OF_THE_DATA}
    found |= {f"trainer.{key}": o.trainer.get(key) for key in OF_THE_TRAINER}
    return plain({**found, "seed": o.seed, "swa": o.swa})


def fit(o: Options, out: Path, checkpoint: Path | None) -> pl.Trainer:
    """Build system, Trainer and data; train from the checkpoint, or from the start."""
    system = build(o, out, resumed=checkpoint is not None)
    trainer = build_trainer(o, out)

    def place() -> tuple[int, int]:
        """Epoch and batch at which the training words begin, also inside an epoch: where a resumed run stopped."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return trainer.current_epoch, done % len(train)

    bundle = BUNDLES[o.data.kind](o.data, o.seed)
    train, validation = bundle.loaders(place, Dist(trainer.global_rank, trainer.world_size), out)
    wanted = o.trainer.get("val_check_interval")
    if isinstance(wanted, int) and wanted > len(train) and trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = 1.0  # Lightning would refuse it
        print(f"trainer.val_check_interval: an epoch has {len(train)} batches: validating at the end of each epoch")
    trainer.fit(system, train, validation, ckpt_path=checkpoint)
    if not system.trained:
        done = trainer.global_step
        print(f"nothing was trained: the run has done its {done} steps; trainer.max_epochs gives it more")
    if system.averaged:
        average = out / "checkpoints" / "swa.ckpt"
        trainer.save_checkpoint(average, weights_only=True)
        print(f"the averaged weights of the last epochs are in {average}; last.ckpt holds those of the last step")
    return trainer


def build(o: Options, out: Path, resumed: bool = False) -> System:
    """The system, its recogniser started from what the configuration names, unless the run is resumed."""
    options = o.model
    stored = {**settings(o), "trainer.max_epochs": o.trainer.get("max_epochs")}
    system = SYSTEMS.get(options["class"], CrossEntropySystem)(options, out, stored)
    if system.permutations is not None:
        system.permutations.random = np.random.default_rng(o.seed)
    if resumed:
        return system
    if o.pretrained:
        weights.load_recogniser(system.model, options["charset_train"], o.pretrained)
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


def build_trainer(o: Options, out: Path) -> pl.Trainer:
    """The published Trainer with `o.trainer` as its parameters, which may be objects (`_target_`).

    `+trainer.logger`, `.callbacks` and `.plugins` come in addition to the published ones, but `logger=false` turns
    TensorBoard off. Raises `UserError` for parameters that Lightning refuses.
    """
    callbacks = [Checkpoints(out / "checkpoints")]
    if o.trainer.get("enable_model_summary", True):
        callbacks.append(ModelSummary(max_depth=1 if str(o.model["name"]).startswith("parseq") else 2))
    if o.swa:
        rate = swa_factor(o.model["warmup_pct"], 0.75) * o.model["lr"]
        callbacks.append(WeightAveraging(swa_lrs=rate, swa_epoch_start=0.75))
    board = [] if o.trainer.get("logger") in (False, [False]) else [TensorBoardLogger(str(out), "", ".")]
    lists = {"logger": board, "callbacks": callbacks, "plugins": [SafeFiles()]}
    usual = {"enable_progress_bar": sys.stderr.isatty(), "log_every_n_steps": 20, "num_sanity_val_steps": 0}
    try:
        given = instantiate({"_target_": "builtins.dict", "_convert_": "all", **usual, **o.trainer})
        for name, own in lists.items():
            more = given.get(name)
            own += [one for one in (more if isinstance(more, list) else [more]) if one not in (None, True, False)]
        return pl.Trainer(**{**given, **lists}, use_distributed_sampler=False)
    except (TypeError, ValueError, MisconfigurationException, InstantiationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())[:300]}") from None
