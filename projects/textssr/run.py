"""What the three TextSSR runs share: the shared loop on accelerate, folders of the published form, exact resuming."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm.auto import tqdm

from common.data.bad import FILE_NAME, BadSamples
from common.data.loader import SeededSampler
from common.errors import UserError
from common.files import write_bytes
from common.train.checkpoint import git_commit, save_atomic
from common.train.distributed import Dist
from common.train.jobs import every
from common.train.log import MetricsLog
from common.train.loop import Clock, Job, Loop
from common.train.session import check_room, check_writable, folder_lock, state_bytes
from projects.textssr import checkpoints, conditions
from projects.textssr import config as configuration
from projects.textssr.checkpoints import STATE
from projects.textssr.data import everyones, reasons

logger = get_logger(__name__)


class _Requests:
    """Index lists for a DataLoader from the sampler's place to the end of its epoch; moves nothing."""

    def __init__(self, sampler: SeededSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for request in self.sampler.requests(endless=False):
            yield request.indices.tolist()


class _Collate:
    """(batch, samples skipped and why): a loader's worker lists them in its own copy of the data."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], dict | None]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, samples: list) -> tuple[dict | None, dict[int, str]]:
        worker = get_worker_info()
        listed = (worker.dataset if worker else self.dataset).rejected
        left_out = dict(listed)
        listed.clear()
        return self.collate(samples), left_out


@dataclass
class Words:
    """A micro-batch of the loop: tensors by name, and the numbers of its samples. `weight` is 0 for the blank that
    keeps the processes in step where no word of a batch can be used."""

    tensors: dict[str, Tensor]
    indices: np.ndarray
    weight: float

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


class WordBatches:
    """The loader of the loop: batches of one epoch from the sampler's place on; notes which samples cannot be used."""

    def __init__(self, dataset: Dataset, sampler: SeededSampler, collate: Callable[[list], dict | None], workers: int):
        self.dataset, self.sampler, self.collate = dataset, sampler, collate
        self.rejected, dataset.rejected = dict(dataset.rejected), {}
        self.loader = DataLoader(
            dataset, batch_sampler=_Requests(sampler), collate_fn=_Collate(dataset, collate), num_workers=workers,
            worker_init_fn=_one_thread, generator=torch.Generator(),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Words]:
        self.dataset.epoch = self.sampler.epoch
        requests = self.sampler.requests(endless=False)
        for request, (batch, left_out) in zip(requests, self.loader):
            self.rejected.update(left_out)
            yield Words(batch or self.collate([self.dataset.blank()]), request.indices, float(bool(batch)))


class AccelerateEngine:
    """Gradients through accelerate, with the methods of `common.train.loop.Engine`."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.dist = Dist(
            accelerator.process_index, accelerator.num_processes, accelerator.local_process_index, accelerator.device,
            torch.distributed.get_backend() if accelerator.num_processes > 1 else None,
        )  # fmt: skip

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients of all processes are summed only in a step's last micro-batch."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, micro_batches: int) -> None:
        """Add a gradient. As published the divisor is `gradient_accumulation_steps`, also in an epoch's shorter end."""
        self.accelerator.backward(loss)

    def sums(self, *values: float) -> list[float]:
        """Sum of each value over the processes. Collective."""
        parts = torch.tensor([float(value) for value in values], device=self.accelerator.device)
        return self.accelerator.reduce(parts, "sum").tolist()

    def clip(self, max_norm: float | None, scale: float = 1.0) -> Tensor:
        """Unscale and clip; returns the norm before. Batches without a word weigh nothing and are not made up for."""
        return self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm or math.inf)

    @property
    def rescales(self) -> bool:
        """True under fp16, where an overflow lowers the loss scale and skips the step."""
        return self.accelerator.scaler is not None

    def step(self) -> None:
        self.optimizer.step()

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def start(config: SimpleNamespace) -> Accelerator:
    """The process group, log format and tracker of a run; refuses an output folder that cannot be written."""
    check_writable(config.output_dir, "output_dir")
    if config.compile_backend and config.compile_backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"compile_backend: {config.compile_backend!r} is not known; use inductor, or None")
    if config.push_to_hub:
        raise UserError("push_to_hub: uploading is not done here; set it to False and upload the folder yourself")
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
            ),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:  # a precision that the device lacks, a tracker that is not known
        reason = str(error).splitlines()[0]
        raise UserError(f"mixed_precision, report_to: {reason}: set another value") from None
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", level=logging.INFO
    )
    set_seed(config.seed)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        # plain attention: for these heads PyTorch's fused backward pass in bfloat16 is several times slower on a CPU
        torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = bool(config.allow_tf32)
    for line in configuration.notices(config):
        logger.warning(line)
    return accelerator


def build_optimizer(config: SimpleNamespace, model: nn.Module, processes: int) -> torch.optim.Optimizer:
    """AdamW on all parameters in one group, as published (`use_8bit_adam`: that of bitsandbytes, if installed)."""
    factor = config.gradient_accumulation_steps * config.train_batch_size * processes if config.scale_lr else 1
    cls = torch.optim.AdamW
    if config.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as cls
        except ImportError:
            raise UserError("use_8bit_adam: bitsandbytes is not installed; install it or set False") from None
    return cls(
        model.parameters(),
        lr=config.learning_rate * factor,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )


class Run:
    """One run of `model`, saved under `folder` ("vae" or "unet") of each checkpoint; also the loop's method.

    Args:
        dataset: with `blank()`, a sample without content, and `bad_samples()`, rows for the list of unusable ones.
        collate: a list of samples (None where one cannot be used) -> a batch, or None if none is left.
        loss_of: (model, batch on the device, generator) -> the mean loss of a micro-batch, and what else is logged.
        tracker: name of the run in the logs.
        ema: an averaged copy of the model, saved next to it as `<folder>_ema`.
        before_save: called by the main process before it writes a checkpoint.
        sheet: (model) -> a picture of samples, written at each checkpoint to `samples/<update>.png`; None: none.
        say_epochs: print `Epoch: N` as each begins.
        trained_with: what is kept next to its weights (`projects/textssr/conditions.py`).
    """

    def __init__(
        self,
        config: SimpleNamespace,
        accelerator: Accelerator,
        model: ModelMixin,
        dataset: Dataset,
        collate: Callable[[list], dict | None],
        loss_of: Callable[[nn.Module, dict[str, Tensor], torch.Generator], tuple[Tensor, dict[str, Tensor]]],
        *,
        folder: str,
        tracker: str,
        drop_last: bool,
        ema: EMAModel | None = None,
        before_save: Callable[[], None] | None = None,
        sheet: Callable[[nn.Module], np.ndarray | None] | None = None,
        say_epochs: bool = False,
        trained_with: Mapping[str, object] | None = None,
    ) -> None:
        self.config, self.accelerator, self.folder, self.dataset = config, accelerator, folder, dataset
        self.out, self.ema, self.before_save, self.loss_of = Path(config.output_dir), ema, before_save, loss_of
        self.say_epochs, self.commit, self.trained_with = say_epochs, git_commit(), trained_with
        self.sheet = sheet
        self.sampler = SeededSampler(
            len(dataset), config.train_batch_size, config.seed, accelerator.process_index, accelerator.num_processes,
            drop_last=drop_last,
        )  # fmt: skip
        self.batches = WordBatches(dataset, self.sampler, collate, config.dataloader_num_workers)
        per_epoch = math.ceil(len(self.sampler) / config.gradient_accumulation_steps)
        self.clock = Clock(config.max_train_steps or config.num_train_epochs * per_epoch, per_epoch)
        optimizer = build_optimizer(config, model, accelerator.num_processes)
        self.schedule = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.clock.total,
        )  # fmt: skip
        if config.compile_backend:
            model.compile(backend=config.compile_backend)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.engine = AccelerateEngine(accelerator, self.model, self.optimizer)
        self.usable, self.pending = 0, []  # micro-batches with a word so far; losses and weights of this update
        self.saved = -1
        self.metrics, self.bar = MetricsLog(None), tqdm(disable=True)
        accelerator.init_trackers(tracker, config=self.options())

    def options(self) -> dict[str, object]:
        """The configuration as plain values, without what is secret."""
        return {key: _flat(value) for key, value in vars(self.config).items() if key != "hub_token"}

    @property
    def bare_model(self) -> ModelMixin:
        """The model without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def train(self) -> bool:
        """Train to the end; False where the run was asked to leave and has saved its state."""
        clock, accelerator = self.clock, self.accelerator
        self.banner()
        self.resume()
        if clock.done:
            print(f"nothing to do: checkpoint-{clock.step} is already there; to train anew, empty {self.out}")
            return True
        check_room(self.out, 2 * state_bytes(self.bare_model, 2 if self.ema is None else 4))  # old and new
        self.metrics = MetricsLog(
            self.out / "metrics.jsonl" if accelerator.is_main_process else None, clock.step or None
        )
        self.model.train()
        self.announce(clock)
        loop = Loop(
            self, clock, self.batches, self.engine, max_norm=self.config.max_grad_norm,
            accumulate=self.config.gradient_accumulation_steps, folder=self.out,
        )  # fmt: skip
        loop.jobs = [
            Job(every(1, last=False), self.progress),
            Job(every(self.config.checkpointing_steps), self.save),
            Job(lambda clock: clock.inside == 0, self.end_epoch),
        ]
        loop.leave = self.save
        with (
            folder_lock(self.out, self.engine.dist),
            tqdm(
                total=clock.total, initial=clock.step, desc="Steps", disable=not accelerator.is_local_main_process
            ) as self.bar,
        ):
            return loop.run()

    # ------------------------------------------------------------------ the loop's method

    def losses(self, batch: Words, clock: Clock, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward pass under accelerate's precision. The draws are a function of seed, place and rank, so that a
        resumed run draws the same; the published ranks share theirs (README, "What differs")."""
        tensors = {
            name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.tensors.items()
        }
        micro = clock.epoch * len(self.sampler) + clock.inside * self.config.gradient_accumulation_steps + number
        place = micro * self.accelerator.num_processes + self.accelerator.process_index
        with self.accelerator.autocast():
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + place)
            loss, parts = self.loss_of(self.model, tensors, generator)
        self.pending.append(({"loss": loss.detach().float(), **parts}, batch.weight))
        return loss, {"loss": loss.detach()}

    def rates(self, step: int) -> tuple[float, float | None]:
        """The schedule has set the optimizer's rate already."""
        return self.schedule.get_last_lr()[0], None

    def stepped(self, clock: Clock) -> None:
        """Schedule, averaged copy and logs follow a step; under fp16 an overflow skips the first two."""
        names = list(self.pending[0][0])
        totals = [sum(float(parts[name]) * weight for parts, weight in self.pending) for name in names]
        *totals, count = self.engine.sums(*totals, sum(weight for _, weight in self.pending))
        parts = {name: total / count for name, total in zip(names, totals)}
        self.pending, loss = [], parts["loss"]
        self.usable += int(count)
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
            if self.ema is not None:
                self.ema.step(self.bare_model.parameters())
        self.accelerator.log({"train_loss": loss}, step=clock.step)
        rate = self.schedule.get_last_lr()[0]
        if clock.step % self.config.log_every == 0:
            self.metrics.write(step=clock.step, epoch=(clock.step - 1) // clock.per_epoch, **parts, lr=rate)
        self.bar.set_postfix(step_loss=f"{loss:.4f}", lr=rate)

    # ------------------------------------------------------------------ jobs

    def progress(self, clock: Clock) -> None:
        """The bar moves, also for an update without a usable word."""
        self.pending = []
        self.bar.update(1)

    def announce(self, clock: Clock) -> None:
        """Print the epoch that begins, where the published script does."""
        if self.say_epochs and not clock.done:
            print(f"Epoch: {clock.epoch}", flush=True)

    def end_epoch(self, clock: Clock) -> None:
        """Raise UserError after an epoch in which no process had a word to learn from."""
        if not self.usable:
            raise UserError(f"{self.config.lmdb_path}: no usable word: {reasons(self.batches.rejected)}")
        self.announce(clock)

    def save(self, clock: Clock) -> None:
        """Write `checkpoint-<update>`: the published files and the exact state, renamed when whole. Collective."""
        if self.saved == clock.step:
            return
        self.saved = clock.step
        self.accelerator.wait_for_everyone()
        self.batches.rejected = everyones(self.batches.rejected)
        final = self.out / f"checkpoint-{clock.step}"
        if self.accelerator.is_main_process:
            checkpoints.write_whole(final, self._write)
            logger.info("Saved state to %s", final)
            self._write_sheet()
            checkpoints.prune(self.out, self.config.checkpoints_total_limit)
            self._list_rejected()
        self.accelerator.wait_for_everyone()

    def _write_sheet(self) -> None:
        """The sheet of samples. It draws from generators of its own, so that training is the same with and without."""
        if self.sheet is None:
            return
        self.bare_model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            picture = self.sheet(self.bare_model)
        self.bare_model.train()
        if picture is not None:
            encoded = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()
            write_bytes(self.out / "samples" / f"{self.clock.step:08d}.png", encoded)

    def _write(self, folder: Path) -> None:
        if self.before_save is not None:
            self.before_save()
        self.save_model(folder / self.folder)
        if self.ema is not None:
            self.ema.save_pretrained(folder / f"{self.folder}_ema")
            self._write_conditions(folder / f"{self.folder}_ema")
        save_atomic(folder / "optimizer.bin", self.optimizer.state_dict())
        save_atomic(folder / "scheduler.bin", self.schedule.state_dict())
        scaler = self.accelerator.scaler
        save_atomic(
            folder / STATE,
            {
                "update": self.clock.step,
                "processes": self.accelerator.num_processes,
                "batch": self.config.train_batch_size,
                "sampler": self.sampler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "usable": self.usable,
                "rejected": self.batches.rejected,
                "options": self.options(),
                "commit": self.commit,
            },
        )

    def save_model(self, folder: Path) -> None:
        """The weights as a diffusers folder, with their conditions."""
        self.bare_model.save_pretrained(folder)
        self._write_conditions(folder)

    def _write_conditions(self, folder: Path) -> None:
        if self.trained_with is not None:
            conditions.write(folder, {**self.trained_with, "update": self.clock.step})

    def _list_rejected(self) -> None:
        """Write `bad_samples.csv`. No share of bad samples is too large here: the published data is as it is."""
        register = BadSamples(len(self.dataset), 1.0, self.out / FILE_NAME)
        register.add(self.dataset.bad_samples(self.batches.rejected))

    def resume(self) -> None:
        """Resume from `resume_from_checkpoint`: "latest", or the name of a folder in the output folder."""
        saved = checkpoints.find(self.out, self.config.resume_from_checkpoint, self.folder)
        if saved is None:
            return
        path = saved.path
        print(f"Resuming from checkpoint {path.name}")
        self.clock.step = checkpoints.number(path)  # the place in the epoch follows from it, as in the published code
        if saved.state is not None:
            self._restore(saved.state, path, saved.schedule)
        else:
            place = {"last_epoch": self.clock.step, "_step_count": self.clock.step + 1}
            self.schedule.load_state_dict(self.schedule.state_dict() | place)
            self.usable = 1
            print(f"{path.name}: no {STATE}: a published checkpoint; its place in the epoch follows from its number")
        checkpoints.load_model(self.bare_model, saved.weights, path / self.folder)
        if saved.optimizer is None:
            print(f"{path.name}: weights only: the optimizer starts anew, after update {self.clock.step}")
            return
        where = path / "optimizer.bin"
        checkpoints.load_optimizer(where, saved.optimizer, self.optimizer, self.bare_model, saved.state is None)

    def _restore(self, state: dict, path: Path, schedule: dict) -> None:
        """Restore what our own state file holds. Raises UserError for that of other data or of other options."""
        here = {"world_size": self.accelerator.num_processes, "batch_size": self.config.train_batch_size}
        if "sampler" in state:  # other processes or batches: the place is that of the number of updates
            try:
                self.sampler.load_state_dict(state["sampler"] | here)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        old, now = state.get("options", {}), self.options()
        decided = checkpoints.differences(old, {name: now[name] for name in configuration.DECIDING if name in now})
        if decided and not self.config.allow_changes:
            raise UserError(
                f"{path}: written with other options: {decided}: the result would be neither that run nor a new one; "
                "give its options, another output_dir, or --set allow_changes=True"
            )
        self.schedule.load_state_dict(schedule)
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        self.batches.rejected = state.get("rejected", {}) | self.batches.rejected
        self.usable = state.get("usable", 1)
        if changed := checkpoints.differences(old, now):
            logger.info("Not as when %s was written: %s", path.name, changed)

    def banner(self) -> None:
        """What a run prints before its first step."""
        config, processes = self.config, self.accelerator.num_processes
        logger.info("***** Running training *****")
        logger.info("  Num examples = %d", len(self.dataset))
        logger.info("  Num Epochs = %d", math.ceil(self.clock.total / self.clock.per_epoch))
        logger.info("  Instantaneous batch size per device = %d", config.train_batch_size)
        total = config.train_batch_size * processes * config.gradient_accumulation_steps
        logger.info("  Total train batch size (w. parallel, distributed & accumulation) = %d", total)
        logger.info("  Gradient Accumulation steps = %d", config.gradient_accumulation_steps)
        logger.info("  Total optimization steps = %d", self.clock.total)

    def finish(self) -> None:
        """Close the trackers and report what could not be used by all processes."""
        self.batches.rejected = everyones(self.batches.rejected)
        if self.accelerator.is_main_process:
            self._list_rejected()
        self.accelerator.end_training()
        logger.info("Samples skipped: %s", reasons(self.batches.rejected) or "none")


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _flat(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
