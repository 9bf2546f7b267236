"""The rhythm of training scripts that count in epochs (DiG, SSM): steps, checkpoints, logs, exact resuming, leaving on
request."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.bad import FILE_NAME, BadSamples
from common.data.loader import Batch, SeededSampler, word_loader
from common.data.words import WordDataset
from common.errors import UserError
from common.train.bad import share_bad
from common.train.checkpoint import save_atomic, write_card
from common.train.distributed import Dist, unwrap, wrap
from common.train.ema import Ema
from common.train.meters import MetricsLog, ScalarWriter
from common.train.optim import NonFinite, Precision, check_finite
from common.train.progress import EpochLog
from common.train.run import check_room, settle_amp, state_bytes
from common.train.schedule import set_learning_rate
from common.train.signals import StopRequest
from common.train.state import TrainingState, plain


class Stopped(Exception):
    """The run was asked to leave and has saved its state."""


class EpochTrainer:
    """One training run. A project derives its own and says `schedules` and `build_optimizer`.

    Args:
        options: the parsed flags.
        dist: the process group.
        model: on no device yet.
        dataset: what to train on.
        groups: optimizer groups.
        accumulate: micro-batches of a step.
        loop: prints and logs as the published script, see `EpochLog`.
        card: registry name and build options, written beside every checkpoint.
        wrapping: further arguments of `common.train.distributed.wrap`.

    Of the options it reads: output_dir, log_dir, batch_size, epochs, seed, num_workers, pin_mem, amp, compile,
    max_steps, state_steps, clip_grad.
    """

    accumulate_flag = "--update_freq"
    state_name = "training_state.pth"

    def __init__(
        self,
        options: argparse.Namespace,
        dist: Dist,
        model: nn.Module,
        dataset: WordDataset,
        groups: list[dict[str, Any]],
        *,
        accumulate: int = 1,
        ema: Ema | None = None,
        card: tuple[str, dict[str, Any]],
        **wrapping: Any,
    ) -> None:
        self.options, self.dist, self.accumulate, self.card, self.ema = options, dist, accumulate, card, ema
        self.out = Path(options.output_dir)
        self.sampler = SeededSampler(
            len(dataset), options.batch_size, options.seed, dist.rank, dist.world_size, drop_last=True
        )
        listed = self.out / FILE_NAME if dist.is_main else None
        bad = BadSamples(len(dataset) + len(dataset.index_bad), file=listed)
        pin = options.pin_mem and dist.device.type == "cuda"
        self.loader = word_loader(dataset, self.sampler, options.num_workers, bad=bad, pin_memory=pin)
        self.per_epoch = len(self.sampler) // accumulate
        if not self.per_epoch:
            raise UserError(
                f"{self.accumulate_flag}: {accumulate} micro-batches of {options.batch_size} on {dist.world_size} "
                f"processes are more than the {len(dataset)} samples of an epoch"
            )
        self.schedules()
        self.amp = Precision(settle_amp(options.amp, dist.device), dist.device)
        self.optimizer = self.build_optimizer(groups)
        compiled = torch.compile(model) if options.compile else model
        self.model = wrap(compiled, dist, **wrapping)
        self.step, self.extra = 0, {"max_accuracy": 0.0, "sums": {}}
        self.stop, self.metrics = StopRequest(), MetricsLog(None)
        self.board = ScalarWriter(options.log_dir if dist.is_main else None)
        if dist.is_main:
            check_room(self.out, 2 * state_bytes(model))

    def schedules(self) -> None:
        """Set `lr` and `weight_decay`: a table indexed by the step; weight_decay may be None (it stays)."""
        raise NotImplementedError

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of these groups."""
        raise NotImplementedError

    def weights_of(self, content: dict[str, Any], what: str) -> dict[str, Tensor]:
        """The model's tensors in a checkpoint of the published form."""
        return content["model"]

    @property
    def clip_norm(self) -> float | None:
        """Largest 2-norm of the gradient; none or 0: it is not clipped."""
        return self.options.clip_grad

    @property
    def bare(self) -> nn.Module:
        """The model without wrappers."""
        return unwrap(self.model)

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.step // self.per_epoch

    def epochs(self) -> Iterator[int]:
        """Epochs still to do; the caller runs all steps of each."""
        start = self.step if self.step else None
        self.metrics = MetricsLog(self.out / "metrics.jsonl" if self.dist.is_main else None, start)
        with self.stop:
            while self.step < self.options.epochs * self.per_epoch:
                yield self.epoch

    def steps(self, log: EpochLog) -> Iterator[list[Batch]]:
        """The micro-batches of each step left in the epoch; schedules are set before, the stop request is seen
        after."""
        first = self.step % self.per_epoch
        if first:
            log.load_state_dict({"epoch": None, "sums": self.extra["sums"]})
        self.sampler.epoch, self.sampler.position = self.epoch, first * self.accumulate
        batches = iter(self.loader)
        steps = iter(lambda: list(itertools.islice(batches, self.accumulate)), [])
        steps = itertools.islice(steps, self.per_epoch - first)
        for _, micro_batches in log.over(steps, self.per_epoch, first):
            decay = None if self.weight_decay is None else float(self.weight_decay[self.step])
            set_learning_rate(self.optimizer, float(self.lr[self.step]), decay)
            yield micro_batches  # the caller ends them with `optimise`
            self._pause(log)
        # an epoch ends after its steps even where unreadable samples have swallowed a whole batch
        self.step = math.ceil(self.step / self.per_epoch) * self.per_epoch

    def _pause(self, log: EpochLog) -> None:
        """Save the state where it is due inside an epoch; leave where that is asked for."""
        if self.step % self.per_epoch == 0:
            return  # `end_epoch` sees to it, after the epoch's own files are written
        leaving, every = self.leaving(), self.options.state_steps
        if leaving or (every and self.step % every == 0):
            self.save_state(log)
        if leaving:
            raise Stopped

    def leaving(self) -> bool:
        """True on all ranks when a signal or `--max_steps` asks the run to leave. Collective."""
        asked = self.stop.agreed(self.dist, self.step)
        return asked or bool(self.options.max_steps and self.step >= self.options.max_steps)

    def end_epoch(self, save: bool = True) -> None:
        """After an epoch's files: write the state, with `save` or where the run is asked to leave, which it does."""
        leaving = self.leaving() and self.step < self.options.epochs * self.per_epoch
        if save or leaving:
            self.save_state()
        else:
            share_bad(self.loader.bad, self.dist)
        if leaving:
            raise Stopped

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """Add the gradient of one micro-batch's loss, after checking on every rank that it is a number."""
        self._check(loss, batch)
        self.samples = batch.indices
        self.amp.backward(loss / self.accumulate)

    def optimise(self) -> Tensor:
        """Clip, step, clear the gradients, move the averaged copy, count the step.

        Returns the gradient's 2-norm before clipping.
        """
        self.amp.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        if not self.amp.scaler.is_enabled():
            check_finite(norm, step=self.step, what="gradient norm", batch_ids=self.samples, folder=self.out)
        self.amp.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare)
        self.step += 1
        return norm

    def _check(self, loss: Tensor, batch: Batch) -> None:
        """Stop on every rank, before anything is stepped, when a loss is not finite on one."""
        value = float(loss.detach())
        if self.dist.any(not math.isfinite(value)):
            print(f"Loss is {value}, stopping training", flush=True)
            check_finite(value, step=self.step, batch_ids=batch.indices, folder=self.out)
            raise NonFinite(f"step {self.step}: the loss of another process is not finite, nothing was stepped")

    def common_meters(self, norm: Tensor) -> dict[str, float | Tensor]:
        """The meters of both scripts, in the published order."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        decays = [group["weight_decay"] for group in self.optimizer.param_groups if group["weight_decay"] > 0]
        return {
            "lr": max(rates),
            "min_lr": min(rates),
            "loss_scale": self.amp.scaler.get_scale(),
            "weight_decay": decays[-1] if decays else 0.0,
            "grad_norm": norm,
        }

    def record(self, log: EpochLog, losses: dict[str, float | Tensor], norm: Tensor, samples: int) -> None:
        """Meters, TensorBoard scalars and a line of metrics.jsonl for the step just done; the scalars count from 0."""
        common = self.common_meters(norm)
        rates = {name: common.pop(name) for name in ("lr", "min_lr")}
        log.add(**rates, **losses, **common)
        log.meters.count(samples * self.dist.world_size, log.waiting.last)
        groups = {"loss": "loss", "class_acc": "loss"}
        for name, value in {**losses, **rates, **common}.items():
            if name in groups or name in ("lr", "min_lr", "loss_scale", "weight_decay", "grad_norm"):
                self.board.scalar(f"{groups.get(name, 'opt')}/{name}", value, self.step - 1)
        if self.step == 1 or self.step % 10 == 0:
            self.note(log, **losses, lr=rates["lr"])

    def note(self, log: EpochLog, **figures: float | Tensor) -> None:
        """A line of metrics.jsonl for the step just done: its number from 1, epoch from 0, speed, and the figures."""
        epoch, meters = (self.step - 1) // self.per_epoch, log.meters
        speed = {"images_per_second": meters.throughput, "data_wait": meters.data_wait}
        self.metrics.write(step=self.step, epoch=epoch, **speed, **figures)

    def note_epoch(self, epoch: int, entry: dict[str, Any]) -> None:
        """One line of log.txt."""
        self.board.flush()
        if self.dist.is_main:
            with open(self.out / "log.txt", "a", encoding="utf-8") as file:
                file.write(json.dumps({**plain(entry), "epoch": epoch}) + "\n")

    def state(self, log: EpochLog | None = None) -> TrainingState:
        """Everything that an exact continuation needs; inside an epoch with the sums of its meters."""
        parts: dict[str, Any] = {"scaler": self.amp}
        if self.ema is not None:
            parts["ema"] = self.ema
        extra = {**self.extra, "per_epoch": self.per_epoch}
        if log is not None and self.step % self.per_epoch:
            extra["sums"] = log.state_dict()["sums"]
        return TrainingState(self.model, self.optimizer, parts, vars(self.options), self.step, extra)

    def save_state(self, log: EpochLog | None = None) -> None:
        """Write the training state and the list of bad samples. Collective."""
        share_bad(self.loader.bad, self.dist)
        self.state(log).save(self.out / self.state_name, self.dist)

    def save_checkpoint(self, name: str, epoch: int | str) -> None:
        """`checkpoint-<name>.pth` in the published form, with the card that lets the shared tools open it."""
        with self.dist.failing_together():
            if self.dist.is_main:
                path = self.out / f"checkpoint-{name}.pth"
                save_atomic(path, self.published_form(epoch))
                write_card(path, self.card[0], self.card[1], step=self.step)

    def published_form(self, epoch: int | str) -> dict[str, Any]:
        """What the published code stores."""
        checkpoint = {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "scaler": self.amp.state_dict(),
            "args": argparse.Namespace(**plain(self.options)),
        }
        if self.ema is not None:
            checkpoint["model_ema"] = self.ema.state_dict()["values"]
        return checkpoint
