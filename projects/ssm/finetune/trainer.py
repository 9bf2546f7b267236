"""Lightning's Trainer as fine-tuning uses it, and what its runs need to resume exactly and to lose nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from common.errors import UserError
from common.train.checkpoint import load, save_atomic, write_card
from common.train.state import rng_state, set_rng_state
from projects.ssm.finetune.method import System, swa_factor


class SafeFiles(CheckpointIO):
    """Writes whole files or none, with metadata next to them; reads weights and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_atomic(path, checkpoint)
        name = checkpoint.get("hyper_parameters", {}).get("class", "TransOCR")
        write_card(path, f"ssm/{name}", {}, step=checkpoint.get("global_step", 0))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        for file in (Path(path), Path(f"{path}.json")):
            file.unlink(missing_ok=True)


class Checkpoints(ModelCheckpoint):
    """The three best by validation accuracy as published, and `last.ckpt` after every validation and epoch and on
    SIGTERM, with the random generators of all ranks. No run resumes from an average, so none becomes `last.ckpt`."""

    def __init__(self, folder: Path) -> None:
        name = "{epoch}-{step}-{val_accuracy:.4f}-{val_NED:.4f}"
        super().__init__(folder, name, monitor="val_accuracy", mode="max", save_top_k=3, enable_version_counter=False)
        self.last_step, self.generators = -1, None

    def save_newest(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt` unless this step already has. Collective."""
        if not trainer.sanity_checking and trainer.global_step != self.last_step:
            self.last_step = trainer.global_step
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: System) -> None:
        if not pl_module.averaged:
            super().on_validation_end(trainer, pl_module)
            self.save_newest(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: System) -> None:
        if not pl_module.averaged:
            super().on_train_epoch_end(trainer, pl_module)
            self.save_newest(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: System, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, SIGTERMException):  # raised between two steps
            self.save_newest(trainer)
            print(
                f"stopped after step {trainer.global_step}; resume with ckpt_path={self.dirpath}/last.ckpt", flush=True
            )

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: System, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [rng_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, rng_state())
        checkpoint["generators"] = states

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: System, checkpoint: dict[str, Any]) -> None:
        self.generators, self.last_step = checkpoint.get("generators"), checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: System) -> None:
        if self.generators and len(self.generators) == trainer.world_size:
            set_rng_state(self.generators[trainer.global_rank])


class WeightAveraging(StochasticWeightAveraging):
    """Lightning's callback for runs that resume. It sets the module's `averaged` once the weights are the average."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: System) -> None:
        # Lightning builds the phase's schedule at the start of an epoch, which a run resumed inside one never sees
        if trainer.current_epoch == self._latest_update_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: System) -> None:
        # a finished run that is started again trains no epoch, at whose end the average would be put in place
        if not pl_module.averaged and self._latest_update_epoch == self.swa_end < trainer.current_epoch:
            self.transfer_weights(self._average_model, pl_module)

    def transfer_weights(self, src_pl_module: System, dst_pl_module: System) -> None:
        super().transfer_weights(src_pl_module, dst_pl_module)
        dst_pl_module.averaged = True


def build_trainer(config: dict[str, Any], out: Path) -> pl.Trainer:
    """The published Trainer with `config["trainer"]` as its parameters. `+trainer.logger`, `.callbacks` and `.plugins`
    come in addition to the published ones, but `logger=false` turns TensorBoard off. Raises `UserError` for parameters
    that Lightning refuses."""
    model = config["model"]
    own = [Checkpoints(out / "checkpoints")]
    if config["trainer"].get("enable_model_summary", True):
        own.append(ModelSummary(max_depth=1 if str(model["name"]).startswith("parseq") else 2))
    if config["swa"]:
        own.append(WeightAveraging(swa_lrs=swa_factor(model["warmup_pct"], 0.75) * model["lr"], swa_epoch_start=0.75))
    defaults = {"enable_progress_bar": sys.stderr.isatty(), "log_every_n_steps": 20, "num_sanity_val_steps": 0}
    try:
        given = instantiate({"_target_": "builtins.dict", "_convert_": "all", **defaults, **config["trainer"]})
        if given.get("strategy") == "ddp_find_unused_parameters_false":
            given["strategy"] = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
        more = {name: given.pop(name, None) for name in ("logger", "callbacks", "plugins")}
        more = {name: value if isinstance(value, list) else [value] for name, value in more.items()}
        board = [] if more["logger"] == [False] else [TensorBoardLogger(str(out), "", ".")]
        additional = {name: [one for one in found if one not in (None, True, False)] for name, found in more.items()}
        return pl.Trainer(
            **given, logger=board + additional["logger"], callbacks=own + additional["callbacks"],
            plugins=[SafeFiles(), *additional["plugins"]], use_distributed_sampler=False,
        )  # fmt: skip
    except (TypeError, ValueError, MisconfigurationException, InstantiationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())[:300]}") from None
