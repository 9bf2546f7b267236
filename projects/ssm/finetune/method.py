"""A recogniser under Lightning's Trainer: loss, validation figures, optimizer. Checkpoints keep the published names."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.loader import Batch
from common.errors import UserError
from common.metrics.papers import ssm_metrics
from common.models.images import to_float_nchw
from common.train.distributed import Dist
from common.train.log import MetricsLog
from common.train.optim import check_finite, parameter_groups
from common.train.state import share_bad
from projects.ssm.model.build import build_recogniser, codec_for

HALF = (0.5, 0.5, 0.5)


def peak_rate(lr: float, batch_size: int, devices: int, accumulate: int = 1) -> float:
    """Largest learning rate: accumulation times sqrt(devices) times batch / 256 times the configured one."""
    return accumulate * math.sqrt(devices) * batch_size / 256 * lr


def swa_factor(warmup_pct: float, start: float, div: float = 25.0, final_div: float = 1e4) -> float:
    """Share of the peak that the one-cycle schedule has at `start` of the run, counted in 1000 steps as published."""
    step, begin = int(1000 * start) - 1, int(1000 * warmup_pct) - 1
    last = 1 / (div * final_div)
    return last + (1 - last) / 2 * (math.cos(math.pi * (step - begin) / (999 - begin)) + 1)


class OneCycle(torch.optim.lr_scheduler.OneCycleLR):
    """Two cosine arcs per step: peak/25 up to the peak at `warmup` of the steps, down to peak/25/1e4.

    A run that is resumed with more epochs, another rate or another weight decay continues at its step of the new curve.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peaks: list[float], steps: int, warmup: float) -> None:
        super().__init__(optimizer, peaks, total_steps=steps, pct_start=warmup, cycle_momentum=False)
        names = ("initial_lr", "max_lr", "min_lr", "weight_decay")
        self.plan = [{name: group[name] for name in names} for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "plan"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises `UserError` where the new curve ends before the step of the state."""
        steps, phases, groups = self.total_steps, self._schedule_phases, self.optimizer.param_groups
        super().load_state_dict(state_dict)  # the optimizer's groups are those of the checkpoint already
        # initial_lr is not compared: weight averaging changes it
        same = all(
            group[name] == own[name] for group, own in zip(groups, self.plan) for name in ("max_lr", "weight_decay")
        )
        if "total_steps" not in state_dict:  # the schedule of weight averaging, which the callback puts back
            return
        if same and self.total_steps == steps:
            return
        if steps < self.last_epoch:
            raise UserError(f"trainer.max_epochs: the run has done {self.last_epoch} steps, and {steps} are configured")
        print(f"the learning rate follows the schedule of {steps} steps from here on")
        self.total_steps, self._schedule_phases = steps, phases
        for group, own in zip(groups, self.plan):
            group.update(own)
        for group, rate in zip(groups, self.get_lr()):
            group["lr"] = rate


def processes(trainer: pl.Trainer) -> Dist:
    """Lightning's process group as the library's functions take it."""
    backend = torch.distributed.get_backend() if trainer.world_size > 1 else None
    return Dist(trainer.global_rank, trainer.world_size, device=trainer.strategy.root_device, backend=backend)


class System(pl.LightningModule):
    """What all recognisers have in common: the steps of Lightning's Trainer, their figures, the optimizer, checkpoints.

    A subclass computes the losses.

    Args:
        options: the configuration's `model` section with `class`, the recogniser's name.
        out: folder of `metrics.jsonl`; None writes none.
        settings: what a resumed run must have in common with this one, for its checkpoints.
    """

    def __init__(
        self, options: Mapping[str, Any], out: Path | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.options, self.out, self.settings = options, out, settings or {}
        self.charset, self.charset_test = options["charset_train"], options["charset_test"]
        self.model = build_recogniser(options["class"], self.charset, options)
        self.codec = codec_for(self.model, self.charset)
        self.permutations = getattr(self.model, "permutations", None)  # PARSeq draws its orders from its own generator
        self.log_file, self.since = MetricsLog(None), (0, 0.0)
        self.total_steps, self.trained = 0, False
        self.averaged = False  # the weights are the average of the last epochs
        self.read: list[tuple[str, str, float]] = []  # (prediction, label, confidence) of this validation
        self.loss_sum = [0.0, 0]  # over its characters, and their number

    def batch_loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        raise NotImplementedError

    def validation(self, batch: Batch, labels: list[str]) -> tuple[Tensor, Tensor, int]:
        """Logits `[B, T, C]` of a batch, their mean loss for these labels, and over how many characters it is."""
        raise NotImplementedError

    def encode(self, labels: list[str]) -> tuple[Tensor, Tensor]:
        """Ids `[B, L]` and lengths `[B]`, on this device."""
        ids, lengths = self.codec.encode(labels)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(lengths).to(self.device)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """uint8 `[B, H, W, 3]` -> logits `[B, T, C]`."""
        return self.model(to_float_nchw(images, HALF, HALF), max_length)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        batch.images = batch.images.to(device, non_blocking=True)
        return batch

    # --- optimizer ---

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups by weight decay with the peak of their learning rate."""
        decay, named = self.options["weight_decay"], list(self.model.named_parameters())
        if not decay:
            return [{"params": [p for _, p in named if p.requires_grad], "lr": rate}]
        return [{**group, "lr": rate} for group in parameter_groups(named, decay, skip=self.undecayed())]

    def undecayed(self) -> set[str]:
        """Names of parameters without weight decay, in addition to vectors and biases."""
        return self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()

    def configure_optimizers(self) -> dict[str, Any]:
        o, trainer = self.options, self.trainer
        # as published, the devices of one node count, not those of all nodes
        groups = self.parameter_groups(
            peak_rate(o["lr"], o["batch_size"], trainer.num_devices, trainer.accumulate_grad_batches)
        )
        fused = self.device.type == "cpu"  # on CUDA the gradient scaler does not go with it
        optimizer = torch.optim.AdamW(groups, weight_decay=o["weight_decay"], fused=fused)
        # asked for here: weight averaging adds a pass for batch statistics later, which makes no step
        self.total_steps = int(trainer.estimated_stepping_batches)
        schedule = OneCycle(optimizer, [group["lr"] for group in groups], self.total_steps, o["warmup_pct"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- a training step, in the order of its hooks ---

    def on_train_start(self) -> None:
        if self.out is not None and self.trainer.is_global_zero:
            self.log_file = MetricsLog(self.out / "metrics.jsonl", self.global_step or None)
        self.since = (self.global_step, time.perf_counter())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss, self.trained, self.samples = self.batch_loss(batch), True, batch.indices
        if self.trainer.world_size > 1:
            # a rank whose batch holds no readable picture stays in step with a stand-in of weight 0
            weight = torch.tensor(float(batch.weight), device=self.device)
            usable = float(self.trainer.strategy.reduce(weight.clone(), reduce_op="sum"))
            loss = loss * (weight * self.trainer.world_size / max(usable, 1.0))
        elif not batch.weight:
            return None  # Lightning takes no step
        check_finite(loss, step=self.global_step, batch_ids=self.samples, folder=self.out)
        self.log("loss", loss)
        if self.global_step % 20 == 0 and self.trainer.is_global_zero:
            self.note(loss.detach())
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        gradients = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in gradients])
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(gradients, gradient_clip_val, norm)
        if self.trainer.precision != "16-mixed":  # whose scaler skips such a step by itself
            check_finite(norm, step=self.global_step, what="gradient norm", batch_ids=self.samples, folder=self.out)

    def note(self, loss: Tensor) -> None:
        """A line of metrics.jsonl, which counts the step that is just being done, and each 100 steps of the console."""
        (step, since), now = self.since, time.perf_counter()
        images = (self.global_step - step) * self.options["batch_size"] * self.trainer.world_size
        speed, rate = images / max(now - since, 1e-9), self.trainer.optimizers[0].param_groups[0]["lr"]
        self.since = (self.global_step, now)
        self.log_file.write(
            step=self.global_step + 1, epoch=self.current_epoch, loss=loss, lr=rate, images_per_second=speed
        )
        if self.global_step % 100 == 0:
            shown = f"loss {float(loss):.4f}  lr {rate:.3g}  {speed:.0f} img/s"
            print(f"[{self.global_step}/{self.total_steps}] {shown}", flush=True)

    # --- validation ---

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # a word that the model cannot spell is read like the others, and its loss is that of an empty one
        known = [label if set(label) <= set(self.charset) else "" for label in batch.labels]
        logits, loss, count = self.validation(batch, known)
        if not batch.weight:  # a stand-in that keeps the ranks in step is in no figure
            return
        self.loss_sum = [self.loss_sum[0] + float(loss) * count, self.loss_sum[1] + count]
        probabilities, ids = logits.float().softmax(-1).max(-1)
        decoded = self.codec.decode(ids.cpu().numpy(), probabilities.cpu().numpy())
        self.read += [(word.text, label, word.confidence) for word, label in zip(decoded, batch.labels)]

    def on_validation_epoch_end(self) -> None:
        """Figures over the words of all ranks: accuracy and 1-NED by word, the loss by character."""
        self.share_bad()
        texts, labels, confidences = zip(*self.read) if self.read else ((), (), ())
        sums = torch.zeros(5, dtype=torch.float64)
        if labels:
            figures = ssm_metrics(texts, labels, confidences, self.charset_test)
            n = figures.samples
            sums = torch.tensor([n, figures.accuracy * n, figures.one_minus_ned * n, *self.loss_sum]).double()
        if self.trainer.world_size > 1:
            sums = self.all_gather(sums.to(self.device)).sum(0).cpu()
        self.read, self.loss_sum = [], [0.0, 0]
        n = max(float(sums[0]), 1.0)
        found = {"val_accuracy": sums[1] / n, "val_NED": sums[2] / n, "val_loss": sums[3] / max(float(sums[4]), 1.0)}
        found = {name: value.float() for name, value in found.items()}
        self.log_dict({**found, "hp_metric": found["val_accuracy"] / 100}, sync_dist=False)
        if not self.trainer.is_global_zero or self.trainer.sanity_checking:
            return
        if skipped := self.trainer.val_dataloaders.loader.bad.rows():
            first = skipped[0]
            print(f"validation: {len(skipped)} samples skipped, first {first.path} {first.number}: {first.reason}")
        self.log_file.write(step=self.global_step, epoch=self.current_epoch, **found)
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in found.items())
        print(f"[{self.global_step}/{self.total_steps}] {shown}", flush=True)

    def share_bad(self) -> None:
        """One list of the training words, and one of the validation words, that any rank could not read. Collective."""
        for batches in (self.trainer.train_dataloader, self.trainer.val_dataloaders):
            if self.trainer.world_size > 1 and batches is not None:
                share_bad(batches.loader.bad, processes(self.trainer))

    # --- checkpoints: names as published, the recogniser's own without this wrapper ---

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        try:
            return self.model.load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"ckpt_path: another model's run: {reason} …; give its configuration, or pretrained="
            ) from None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.share_bad()
        checkpoint["hyper_parameters"], checkpoint["settings"] = {**self.options}, {**self.settings}
        if self.permutations is not None:
            checkpoint["permutations"] = self.permutations.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.permutations is not None and "permutations" in checkpoint:
            self.permutations.load_state_dict(checkpoint["permutations"])


class CrossEntropySystem(System):
    """Recognisers that read one character after another or all at once, up to the end symbol."""

    def batch_loss(self, batch: Batch) -> Tensor:
        ids, _ = self.encode(batch.labels)
        return self.model.loss(to_float_nchw(batch.images, HALF, HALF), ids)

    def validation(self, batch: Batch, labels: list[str]) -> tuple[Tensor, Tensor, int]:
        wanted = self.encode(labels)[0][:, 1:]  # without the symbol that begins a word
        return self.judged(self(batch.images, wanted.shape[1] - 1), wanted)

    def judged(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, int]:
        """Logits with their cross-entropy over the ids `[B, T]` that are not padding, and the number of these."""
        pad = self.model.pad_id
        loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=pad)
        return logits, loss, int((wanted != pad).sum())


class CTCSystem(System):
    """Recognisers by connectionist temporal classification."""

    def batch_loss(self, batch: Batch) -> Tensor:
        return self.model.loss(to_float_nchw(batch.images, HALF, HALF), *self.encode(batch.labels))

    def validation(self, batch: Batch, labels: list[str]) -> tuple[Tensor, Tensor, int]:
        ids, lengths = self.encode(labels)
        logits = self(batch.images)
        loss = self.model.loss(to_float_nchw(batch.images, HALF, HALF), ids, lengths)
        return logits, loss, int(lengths.sum())
