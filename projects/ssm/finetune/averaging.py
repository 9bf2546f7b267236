"""Averaging the weights of the last epochs (SWA), in a form that goes on exactly after an interruption."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging


class WeightAveraging(StochasticWeightAveraging):
    """Lightning's callback, mended for runs that go on; it notes in the module's `averaged` that its weights are the
    average.

    Lightning builds the averaging phase's schedule at the start of an epoch, which a run that goes on inside one never
    sees: its learning rate stayed, and its next checkpoint had lost the schedule and the count of the average.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the schedule where the run goes on inside an epoch that is in the average already."""
        if trainer.current_epoch == self._latest_update_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A finished run that was started again has trained no epoch, the end of which puts the average in place."""
        if not pl_module.averaged and self._latest_update_epoch == self.swa_end < trainer.current_epoch:
            self.transfer_weights(self._average_model, pl_module)

    def transfer_weights(self, src_pl_module: LightningModule, dst_pl_module: LightningModule) -> None:
        """As Lightning's, and noted."""
        super().transfer_weights(src_pl_module, dst_pl_module)
        dst_pl_module.averaged = True
