"""What Lightning lacks so that a run resumes exactly and loses nothing: files, `last.ckpt`, averaging that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from common.train.checkpoint import load, save_atomic, write_card
from common.train.state import rng_state, set_rng_state
from projects.ssm.finetune.method import System, processes


class SafeFiles(TorchCheckpointIO):
    """Writes whole files or none, with metadata next to them; reads weights and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_atomic(path, checkpoint)
        name = checkpoint.get("hyper_parameters", {}).get("class", "TransOCR")
        write_card(path, f"ssm/{name}", {}, step=checkpoint.get("global_step", 0))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(path)
        Path(f"{path}.json").unlink(missing_ok=True)


class Checkpoints(ModelCheckpoint):
    """The three best by validation accuracy as published, and `last.ckpt` after every validation and epoch and on
    SIGTERM, with the random generators of all ranks. No run resumes from an average, so averages are not among them."""

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
        if isinstance(exception, SIGTERMException):  # raised between two steps
            self.save_newest(trainer)
            last = f"{self.dirpath}/last.ckpt"
            print(f"stopped after step {trainer.global_step}; resume with ckpt_path={last}", flush=True)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: System, checkpoint: dict[str, Any]) -> None:
        checkpoint["generators"] = processes(trainer).gather(rng_state())

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
