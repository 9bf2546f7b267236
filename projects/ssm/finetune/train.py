#!/usr/bin/env python
"""Fine-tune a recogniser (SSM's copy of PARSeq's command line).

cd projects/ssm/finetune && ./train.py +experiment=mdr-dec6-union data.root_dir=DATA
./train.py +experiment=mdr-dec6-union model.encoder_pretrained=true model.encoder_checkpoint=FILE data.augment=true
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.errors import UserError, command
from common.train.allocator import keep_freed_memory
from common.train.run import check_writable
from common.train.seed import seed_everything
from projects.ssm.finetune.config import CONFIGS, quietly, settle, start


def build(config: dict[str, Any], out: Path):
    """The system, its recogniser started from what the configuration names."""
    from projects.ssm.finetune import weights
    from projects.ssm.finetune.system import System

    options = config["model"]
    if config["pretrained"]:
        weights.take_sizes(options, config["pretrained"])
    system = System(options, out)
    if hasattr(system.model, "permutations"):
        system.model.permutations.random = np.random.default_rng(config["seed"])
    if config["pretrained"]:
        print(weights.load_recogniser(system.model, options["charset_train"], config["pretrained"]))
    for prefix in ("parseq", "ckpt"):
        if options.get(f"{prefix}_pretrained"):
            print(weights.load_matching(system.model, needed(options, f"{prefix}_pretrained", f"{prefix}_checkpoint")))
    if options.get("encoder_pretrained"):
        file = needed(options, "encoder_pretrained", "encoder_checkpoint")
        form, positions = options.get("encoder_format"), bool(options.get("encoder_pos_embed"))
        print(weights.load_encoder(system.model, file, form, positions))
    return system


def needed(options: dict[str, Any], switch: str, key: str) -> str:
    """The file that goes with a switch."""
    if not options.get(key):
        raise UserError(f"model.{key}: it is needed while model.{switch} is true; give the checkpoint's path")
    return str(options[key])


def trainer_of(config: dict[str, Any], out: Path):
    """Lightning's Trainer with the published callbacks; its checkpoints are whole files with a card."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelSummary
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import DDPStrategy

    from projects.ssm.finetune.averaging import WeightAveraging
    from projects.ssm.finetune.checkpoint import Checkpoints, SafeFiles
    from projects.ssm.finetune.system import swa_factor

    options, model = dict(config["trainer"]), config["model"]
    if options.get("strategy") == "ddp_find_unused_parameters_false":
        options["strategy"] = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
    depth = 1 if str(model["name"]).startswith("parseq") else 2
    callbacks = [Checkpoints(out / "checkpoints")]
    if options.get("enable_model_summary", True):
        callbacks.append(ModelSummary(max_depth=depth))
    if config["swa"]:
        rate = swa_factor(model["warmup_pct"], 0.75) * model["lr"]
        callbacks.append(WeightAveraging(swa_lrs=rate, swa_epoch_start=0.75))
    defaults = {"enable_progress_bar": sys.stderr.isatty(), "log_every_n_steps": 20, "num_sanity_val_steps": 0}
    try:
        return pl.Trainer(
            **{**defaults, **options}, logger=TensorBoardLogger(str(out), "", "."), callbacks=callbacks,
            plugins=[SafeFiles()], use_distributed_sampler=False,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from None
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from None
        raise


def run(config: dict[str, Any], out: Path):
    """Build, fit; returns the Trainer."""
    from projects.ssm.finetune.data import BUNDLES

    ckpt = config["ckpt_path"]
    if ckpt:
        if not Path(ckpt).is_file():
            raise UserError(f"ckpt_path: {ckpt} does not exist")
        out = Path(ckpt).resolve().parents[1]  # <run>/checkpoints/<file>: the run goes on where it was
    check_writable(out, "hydra.run.dir")
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    keep_freed_memory()
    seed_everything(config["seed"], rank)
    system = build(config, out)
    trainer = trainer_of(config, out)

    def place() -> tuple[int, int]:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return trainer.current_epoch, done % len(train)

    bundle = BUNDLES[config["data"]["class"]](config["data"], config["seed"])
    train, validation = bundle.loaders(place, trainer.global_rank, trainer.world_size, out)
    interval = trainer.val_check_batch if isinstance(trainer.val_check_batch, int) else 0
    wanted = config["trainer"].get("val_check_interval")
    if isinstance(wanted, int) and wanted > len(train) and trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = 1.0  # a short epoch is validated at its end
        print(
            f"trainer.val_check_interval: an epoch has {len(train)} batches: validating once an epoch {interval or ''}"
        )
    trainer.fit(system, train, validation, ckpt_path=ckpt or None)
    if system.averaged:
        average = out / "checkpoints" / "swa.ckpt"
        trainer.save_checkpoint(average, weights_only=True)
        print(f"the averaged weights of the last epochs are in {average}; last.ckpt holds those of the last step")
    return trainer


@hydra.main(config_path=str(CONFIGS), config_name="main", version_base="1.2")
@quietly
def task(config: DictConfig) -> None:
    """What Hydra starts, once for each configuration."""
    out = Path(HydraConfig.get().runtime.output_dir)
    run(settle(config), out)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compose, build, fit."""
    start(task, argv)


if __name__ == "__main__":
    sys.exit(main())
