"""A recogniser under Lightning's Trainer: loss, validation figures, optimizer. Checkpoints keep the published names."""

from __future__ import annotations

import math
import time
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
from projects.ssm.model.crnn import CTCRecogniser

HALF = (0.5, 0.5, 0.5)
SEPARATE_SHARE = 8 / 18  # of ABINet's steps, in which its language model reads the truth


def peak_rate(lr: float, batch_size: int, devices: int, accumulate: int = 1) -> float:
    """Largest learning rate: accumulation times sqrt(devices) times batch / 256 times the configured one."""
    return accumulate * math.sqrt(devices) * batch_size / 256 * lr


def swa_factor(warmup_pct: float, start: float, div: float = 25.0, final_div: float = 1e4) -> float:
    """Share of the peak that the one-cycle schedule has at `start` of the run, counted in 1000 steps as published."""
    step, begin = int(1000 * start) - 1, int(1000 * warmup_pct) - 1
    last = 1 / (div * final_div)
    return last + (1 - last) / 2 * (math.cos(math.pi * (step - begin) / (999 - begin)) + 1)


def one_cycle(optimizer: torch.optim.Optimizer, peaks: list[float], steps: int, warmup: float):
    """Two cosine arcs per step: peak/25 up to the peak at `warmup` of the steps, down to peak/25/1e4."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )


class System(pl.LightningModule):
    """Lightning's side of one recogniser.

    Args:
        options: the configuration's `model` section with `class`, the recogniser's name.
        out: folder of `metrics.jsonl`; None writes none.
    """

    def __init__(self, options: dict[str, Any], out: Path | None = None) -> None:
        super().__init__()
        self.options, self.out = options, out
        self.charset, self.charset_test = options["charset_train"], options["charset_test"]
        self.model = build_recogniser(options["class"], self.charset, options)
        self.codec = codec_for(self.model, self.charset)
        self.is_ctc = isinstance(self.model, CTCRecogniser)
        self.is_abinet = options["class"] == "ABINet"
        self.permutations = getattr(self.model, "permutations", None)  # PARSeq draws its orders from its own generator
        self.log_file = MetricsLog(None)
        self.read: list[tuple[str, str, float]] = []
        self.loss_sum, self.since = [0.0, 0], (0, time.perf_counter())
        self.settings: dict[str, Any] = {}  # what a resumed run must have in common with this one
        self.total_steps, self.trained = 0, False
        self.averaged = False  # the weights are the average of the last epochs

    # names as published: the recogniser's own, without this wrapper
    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        try:
            return self.model.load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"ckpt_path: another model's run: {told} …; give its configuration, or pretrained="
            ) from None

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        batch.images = batch.images.to(device, non_blocking=True)
        return batch

    def targets(self, labels: list[str]) -> tuple[Tensor, ...]:
        """Ids `[B, L]`, for CTC with lengths `[B]`, on this device."""
        ids, lengths = self.codec.encode(labels)
        ids, lengths = torch.from_numpy(ids).to(self.device), torch.from_numpy(lengths).to(self.device)
        return (ids, lengths) if self.is_ctc else (ids,)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """uint8 `[B, H, W, 3]` -> logits `[B, T, C + 1]`."""
        return self.model(to_float_nchw(images, HALF, HALF), max_length)

    @property
    def joint_step(self) -> int:
        """ABINet's first step with its parts joined."""
        return math.ceil(SEPARATE_SHARE * self.total_steps)

    def stage(self) -> str:
        """ABINet's stage: the language model reads the truth in the first 8/18 of the steps."""
        return "separate" if self.global_step < self.joint_step else "joint"

    def batch_loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        images, targets = to_float_nchw(batch.images, HALF, HALF), self.targets(batch.labels)
        if not self.is_abinet:
            return self.model.loss(images, *targets)
        wanted = self.model.full_targets(targets[0])
        if self.model.lm_only:
            return self.model.entropy(self.model.read_truth(wanted), wanted)
        separate = self.stage() == "separate"
        heads = self.model.separate(images, wanted) if separate else self.model.iterate(images)
        parts = self.model.loss_parts(heads, wanted)
        self.log_dict({f"loss_{name}": part.detach() for name, part in parts.items()})
        return sum(self.model.weights[name] * part for name, part in parts.items())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss, self.trained = self.batch_loss(batch), True
        if self.trainer.world_size > 1:
            # a rank whose batch holds no readable picture stays in step with a stand-in of weight 0
            weight = torch.tensor(float(batch.weight), device=self.device)
            usable = float(self.trainer.strategy.reduce(weight.clone(), reduce_op="sum"))
            loss = loss * (weight * self.trainer.world_size / max(usable, 1.0))
        elif not batch.weight:
            return None  # Lightning takes no step
        check_finite(loss, step=self.global_step, batch_ids=batch.indices, folder=self.out)
        self.samples = batch.indices
        self.log("loss", loss)
        if self.global_step % 20 == 0 and self.trainer.is_global_zero:
            self.note(loss)
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
        """A line of the console and of metrics.jsonl, which counts the step that is just being done."""
        (step, since), now = self.since, time.perf_counter()
        images = (self.global_step - step) * self.options["batch_size"] * self.trainer.world_size
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        speed = images / max(now - since, 1e-9)
        self.since = (self.global_step, now)
        self.log_file.write(
            step=self.global_step + 1, epoch=self.current_epoch, loss=loss.detach(), lr=rate, images_per_second=speed
        )
        if self.global_step % 100 == 0:
            told = f"loss {float(loss.detach()):.4f}  lr {rate:.3g}  {speed:.0f} img/s"
            print(f"[{self.global_step}/{self.total_steps}] {told}", flush=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        known = [label if set(label) <= set(self.charset) else "" for label in batch.labels]
        targets = self.targets(known)
        if self.is_ctc:
            logits = self(batch.images)
            loss = self.model.loss(to_float_nchw(batch.images, HALF, HALF), *targets)
            count = int(targets[1].sum())
        else:
            wanted, pad = targets[0][:, 1:], self.model.pad_id
            if self.is_abinet and self.model.lm_only:  # the language model is measured on the truth, not on images
                wanted = self.model.full_targets(targets[0])
                logits = self.model.read_truth(wanted).logits
            else:
                logits = self(batch.images, wanted.shape[1] - 1)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=pad)
            count = int((wanted != pad).sum())
        if not batch.weight:  # a stand-in that keeps the ranks in step is in no figure
            return
        self.loss_sum = [self.loss_sum[0] + float(loss) * count, self.loss_sum[1] + count]
        probabilities, ids = logits.float().softmax(-1).max(-1)
        decoded = self.codec.decode(ids.cpu().numpy(), probabilities.cpu().numpy())
        self.read += [(word.text, label, word.confidence) for word, label in zip(decoded, batch.labels)]

    def share_bad(self) -> None:
        """One list of the training words that any rank could not read. Collective."""
        world, training = self.trainer.world_size, self.trainer.train_dataloader
        if world > 1 and training is not None:
            backend = torch.distributed.get_backend()
            share_bad(training.loader.bad, Dist(self.trainer.global_rank, world, device=self.device, backend=backend))

    def on_validation_epoch_end(self) -> None:
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
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.log_file.write(step=self.global_step, epoch=self.current_epoch, **found)
            shown = "  ".join(f"{name} {float(value):.4f}" for name, value in found.items())
            print(f"[{self.global_step}/{self.total_steps}] {shown}", flush=True)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups by weight decay, and for ABINet by part, the language model with its own learning rate."""
        decay, named = self.options["weight_decay"], list(self.model.named_parameters())
        skip = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        if not self.is_abinet:
            if not decay:
                return [{"params": [p for _, p in named if p.requires_grad], "lr": rate}]
            return [{**group, "lr": rate} for group in parameter_groups(named, decay, skip=skip)]
        language = self.options["lr"] if self.model.lm_only else float(self.options.get("l_lr", self.options["lr"]))
        groups = []
        for part in ("vision", "alignment", "language"):
            chosen = [(name, p) for name, p in named if name.startswith(f"model.{part}.") and p.requires_grad]
            # without model.weight_decay the published groups name none: AdamW's default of torch acts on all of them
            whole = [{"params": [p for _, p in chosen], "weight_decay": 0.01}] if chosen else []
            own = rate * language / self.options["lr"] if part == "language" else rate
            found = parameter_groups(chosen, decay, skip=skip) if decay else whole
            groups += [{**group, "lr": own, "part": part} for group in found]
        return groups

    def configure_optimizers(self) -> dict[str, Any]:
        o = self.options
        accumulate = self.trainer.accumulate_grad_batches
        # as published, the devices of one node count, not those of all nodes
        rate = peak_rate(o["lr"], o["batch_size"], self.trainer.num_devices, accumulate)
        groups = self.parameter_groups(rate)
        fused = self.device.type == "cpu"  # on CUDA the gradient scaler does not go with it
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=o["weight_decay"], fused=fused)
        # asked for here: weight averaging adds a pass for batch statistics later, which makes no step
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = one_cycle(optimizer, [group["lr"] for group in groups], self.total_steps, o["warmup_pct"])
        names = ("initial_lr", "max_lr", "min_lr", "weight_decay")
        self.configured = [{name: group[name] for name in names} for group in optimizer.param_groups]
        self.phases = schedule._schedule_phases
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if not self.is_abinet or self.model.lm_only:
            return
        # ABINet's joint stage begins with a new gate. The published code also sets `scheduler.base_lrs` here, which
        # OneCycleLR does not read: the language model keeps its own rate.
        first_part = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.global_step == self.joint_step < self.total_steps and first_part:
            # the step alone decides, so that a resumed run does it once too; drawn by rank 0 for all
            fresh = self.trainer.strategy.broadcast(self.model.first_alignment())
            self.model.model.alignment.load_state_dict(fresh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.share_bad()
        checkpoint["hyper_parameters"], checkpoint["settings"] = {**self.options}, self.settings
        if self.permutations is not None:
            checkpoint["permutations"] = self.permutations.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.permutations is not None and "permutations" in checkpoint:
            self.permutations.load_state_dict(checkpoint["permutations"])

    def follow_new_schedule(self) -> None:
        """A resumed run with more epochs or another rate: continue on the one-cycle of the present configuration."""
        schedule = self.lr_schedulers()
        if not isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR):  # weights are being averaged
            return
        groups = schedule.optimizer.param_groups
        same = all(
            group[name] == own[name]
            for group, own in zip(groups, self.configured)
            for name in ("max_lr", "weight_decay")
        )
        if schedule.total_steps == self.total_steps and same:  # weight averaging has changed the groups' initial_lr
            return
        if self.total_steps < self.global_step:
            raise UserError(
                f"trainer.max_epochs: the run has done {self.global_step} steps, and {self.total_steps} are configured"
            )
        print(f"the learning rate follows the schedule of {self.total_steps} steps from here on")
        schedule.total_steps, schedule._schedule_phases = self.total_steps, self.phases
        for group, own in zip(groups, self.configured):
            group.update(own)
        for group, rate in zip(groups, schedule.get_lr()):
            group["lr"] = rate

    def on_train_start(self) -> None:
        resumed = self.global_step or None
        if resumed:
            self.follow_new_schedule()
        if self.out is not None and self.trainer.is_global_zero:
            self.log_file = MetricsLog(self.out / "metrics.jsonl", resumed)
        self.since = (self.global_step, time.perf_counter())
