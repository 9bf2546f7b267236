"""What the three TextSSR runs share: accelerate, folders of the published form, exact resuming, the step's rhythm."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm.auto import tqdm

from common.data.bad import FILE_NAME, BadSamples
from common.data.loader import SeededSampler
from common.errors import UserError
from common.train.checkpoint import git_commit, load, save_atomic
from common.train.meters import MetricsLog
from common.train.optim import check_finite
from common.train.run import check_room, check_writable, state_bytes
from common.train.signals import StopRequest
from projects.textssr import checkpoints
from projects.textssr import config as configuration
from projects.textssr.checkpoints import STATE
from projects.textssr.data import everyones, reasons

logger = get_logger(__name__)


def load_vae(folder: str | Path, key: str) -> AutoencoderKL:
    """A VAE of a diffusers folder. Raises UserError that names the configuration key."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: {key}: no config.json; give a diffusers VAE folder")
    try:
        return AutoencoderKL.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: {key}: the weights cannot be read ({reason}): copy them again") from None


def place(model: ModelMixin, device: torch.device, kind: torch.dtype) -> ModelMixin:
    """`model` on a device, in half precision where asked for, frozen and in evaluation mode."""
    model = model.to(device) if kind == torch.float32 else model.to(device, kind)
    return model.eval().requires_grad_(False)


def load_scheduler(folder: str | Path) -> DDPMScheduler:
    """A DDPM scheduler from any scheduler folder. Raises UserError."""
    if not (Path(folder) / "scheduler_config.json").is_file():
        raise UserError(f"{folder}: scheduler_path: no scheduler_config.json; give a diffusers scheduler folder")
    return DDPMScheduler.from_pretrained(folder, local_files_only=True)


class Stopped(Exception):
    """The run was asked to leave and has saved its state."""


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
    """(batch, samples left out and why): a loader's worker lists them in its own copy of the data."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], dict | None]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, samples: list) -> tuple[dict | None, dict[int, str]]:
        worker = get_worker_info()
        listed = (worker.dataset if worker else self.dataset).rejected
        left_out = dict(listed)
        listed.clear()
        return self.collate(samples), left_out


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


class Trainer:
    """One run of `model`, saved under `folder` ("vae" or "unet") of each checkpoint.

    Args:
        dataset: with `blank()`, a sample without content, and `bad_samples()`, rows for the list of those left out.
        collate: a list of samples (None where one cannot be used) -> a batch, or None if none is left.
        tracker: name of the run in the logs.
        ema: an averaged copy of the model, saved beside it as `<folder>_ema`.
        before_save: called by the main process before it writes a checkpoint.
        say_epochs: print `Epoch: N` as each begins.
    """

    def __init__(
        self,
        config: SimpleNamespace,
        accelerator: Accelerator,
        model: ModelMixin,
        dataset: Dataset,
        collate: Callable[[list], dict | None],
        *,
        folder: str,
        tracker: str,
        drop_last: bool,
        ema: EMAModel | None = None,
        before_save: Callable[[], None] | None = None,
        say_epochs: bool = False,
    ) -> None:
        self.config, self.accelerator, self.folder, self.dataset = config, accelerator, folder, dataset
        self.out, self.ema, self.before_save = Path(config.output_dir), ema, before_save
        self.collate, self.say_epochs, self.commit = collate, say_epochs, git_commit()
        self.accumulate = config.gradient_accumulation_steps
        self.sampler = SeededSampler(
            len(dataset), config.train_batch_size, config.seed, accelerator.process_index, accelerator.num_processes,
            drop_last=drop_last,
        )  # fmt: skip
        self.rejected, dataset.rejected = dict(dataset.rejected), {}
        workers = config.dataloader_num_workers
        self.loader = DataLoader(
            dataset, batch_sampler=_Requests(self.sampler), collate_fn=_Collate(dataset, collate), num_workers=workers,
            worker_init_fn=_one_thread, generator=torch.Generator(),
        )  # fmt: skip
        self.updates_per_epoch = math.ceil(len(self.sampler) / self.accumulate)
        self.total = config.max_train_steps or config.num_train_epochs * self.updates_per_epoch
        optimizer = build_optimizer(config, model, accelerator.num_processes)
        schedule = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=self.total
        )
        if config.compile_backend:
            model.compile(backend=config.compile_backend)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.schedule = schedule
        self.update, self.epoch, self.micro, self.usable = 0, 0, 0, 0
        self.metrics = MetricsLog(None)
        accelerator.init_trackers(tracker, config=self.options())

    def options(self) -> dict[str, object]:
        """The configuration as plain values, without what is secret."""
        return {key: _flat(value) for key, value in vars(self.config).items() if key != "hub_token"}

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write `checkpoint-<update>`: the published files and our exact state. Built aside, then renamed."""
        self.accelerator.wait_for_everyone()
        self.rejected = everyones(self.rejected)
        if self.accelerator.is_main_process:
            final = self.out / f"checkpoint-{self.update}"
            checkpoints.write_whole(final, self._write)
            logger.info("Saved state to %s", final)
            checkpoints.prune(self.out, self.config.checkpoints_total_limit)
            self._list_rejected()
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        if self.before_save is not None:
            self.before_save()
        self.bare_model.save_pretrained(folder / self.folder)
        if self.ema is not None:
            self.ema.save_pretrained(folder / f"{self.folder}_ema")
        save_atomic(folder / "optimizer.bin", self.optimizer.state_dict())
        save_atomic(folder / "scheduler.bin", self.schedule.state_dict())
        scaler = self.accelerator.scaler
        save_atomic(
            folder / STATE,
            {
                "update": self.update,
                "epoch": self.epoch,
                "micro": self.micro,
                "processes": self.accelerator.num_processes,
                "batch": self.config.train_batch_size,
                "sampler": self.sampler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "usable": self.usable,
                "rejected": self.rejected,
                "options": self.options(),
                "commit": self.commit,
            },
        )

    def _list_rejected(self) -> None:
        """Write `bad_samples.csv`. No share of bad samples is too large here: the published data is as it is."""
        register = BadSamples(len(self.dataset), 1.0, self.out / FILE_NAME)
        register.add(self.dataset.bad_samples(self.rejected))

    @property
    def bare_model(self) -> ModelMixin:
        return self.accelerator.unwrap_model(self.model)

    def resume(self) -> None:
        """Go on from `resume_from_checkpoint`: "latest", or the name of a folder in the output folder."""
        path = checkpoints.find(self.out, self.config.resume_from_checkpoint)
        if path is None:
            return
        print(f"Resuming from checkpoint {path.name}")
        self.update = checkpoints.number(path)
        self.epoch, inside = divmod(self.update, self.updates_per_epoch)  # as in the published code
        self.micro = inside * self.accumulate
        state = load(path / STATE) if (path / STATE).is_file() else None
        if state:
            self._go_on(state, path)
        else:
            place = {"last_epoch": self.update, "_step_count": self.update + 1}
            self.schedule.load_state_dict(self.schedule.state_dict() | place)
            self.usable = 1
            print(f"{path.name}: no {STATE}: a published checkpoint; its place in the epoch follows from its number")
        checkpoints.load_model(self.bare_model, path / self.folder)
        where = path / "optimizer.bin"
        checkpoints.load_optimizer(where, self.optimizer, self.bare_model, published=state is None)

    def _go_on(self, state: dict, path: Path) -> None:
        """Restore what our own state file holds. Raises UserError for that of other data or another seed."""
        here = {"world_size": self.accelerator.num_processes, "batch_size": self.config.train_batch_size}
        if "sampler" in state:  # other processes or batches: the place is that of the number of updates
            try:
                self.sampler.load_state_dict(state["sampler"] | here)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        if [state["processes"], state["batch"]] == list(here.values()):
            self.epoch, self.micro = state["epoch"], state["micro"]
        self.schedule.load_state_dict(load(path / "scheduler.bin"))
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        self.rejected, self.usable = state.get("rejected", {}) | self.rejected, state.get("usable", 1)
        changed = checkpoints.differences(state.get("options", {}), self.options())
        if changed:
            logger.info("Not as when %s was written: %s", path.name, changed)

    # ------------------------------------------------------------------ the loop

    def banner(self) -> None:
        """What a run says before its first step."""
        config, processes = self.config, self.accelerator.num_processes
        logger.info("***** Running training *****")
        logger.info("  Num examples = %d", len(self.dataset))
        logger.info("  Num Epochs = %d", math.ceil(self.total / self.updates_per_epoch))
        logger.info("  Instantaneous batch size per device = %d", config.train_batch_size)
        total = config.train_batch_size * processes * self.accumulate
        logger.info("  Total train batch size (w. parallel, distributed & accumulation) = %d", total)
        logger.info("  Gradient Accumulation steps = %d", self.accumulate)
        logger.info("  Total optimization steps = %d", self.total)

    def generator(self, micro: int) -> torch.Generator:
        """Draws of one micro-step: a function of seed, place and rank, so that a resumed run draws the same."""
        place = (self.epoch * len(self.sampler) + micro) * self.accelerator.num_processes
        place += self.accelerator.process_index
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + place)

    def run(self, loss_of: Callable[[dict[str, Tensor], torch.Generator], Tensor]) -> None:
        """Train to the end; `loss_of(batch on the device, generator)` gives the mean loss of a micro-batch."""
        self.banner()
        self.resume()
        if self.update >= self.total:
            print(f"nothing to do: checkpoint-{self.update} is already there; to train anew, empty {self.out}")
            return
        check_room(self.out, 2 * state_bytes(self.bare_model, 2 if self.ema is None else 4))  # old and new
        main = self.accelerator.is_main_process
        self.metrics = MetricsLog(self.out / "metrics.jsonl" if main else None, self.update or None)
        quiet = not self.accelerator.is_local_main_process
        bar = tqdm(total=self.total, initial=self.update, desc="Steps", disable=quiet)
        self.model.train()
        with StopRequest() as stop:
            while self.update < self.total:
                if self._epoch(loss_of, bar, stop):
                    self._require_words()
                    self.epoch, self.micro = self.epoch + 1, 0
        bar.close()
        if not (self.out / f"checkpoint-{self.update}").is_dir():
            self.save()

    def _require_words(self) -> None:
        """Raise UserError after an epoch in which no process had a word to learn from."""
        if not self.usable:
            raise UserError(f"{self.config.lmdb_path}: no usable word: {reasons(self.rejected)}")

    def _epoch(self, loss_of: Callable, bar: tqdm, stop: StopRequest) -> bool:
        """Train from `micro` on; True where the epoch ended, False where the run did before it."""
        if self.say_epochs:
            print(f"Epoch: {self.epoch}", flush=True)
        self.dataset.epoch = self.epoch
        self.sampler.epoch, self.sampler.position = self.epoch, self.micro
        window = Window(self.accelerator)
        last = len(self.sampler) - 1
        for micro, (batch, left_out) in enumerate(self.loader, start=self.micro):
            self.rejected.update(left_out)
            closing = (micro + 1) % self.accumulate == 0 or micro == last
            with self._syncing(closing):
                loss = self._loss(loss_of, batch or self.collate([self.dataset.blank()]), micro)
                # without a usable word a blank of weight zero keeps the processes in step
                self.accelerator.backward(loss if batch else 0 * loss)  # divides by the number of micro-steps
            window.add(loss, bool(batch))
            if closing:
                self.micro = micro + 1
                self._close(window, bar)
                if self._leave(stop):
                    raise Stopped
            if self.update >= self.total:
                return micro == last
        return True

    def _loss(self, loss_of: Callable, batch: dict[str, Tensor], micro: int) -> Tensor:
        batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with self.accelerator.autocast():
            loss = loss_of(batch, self.generator(micro))
        check_finite(float(loss.detach()), step=self.update, folder=self.out)
        return loss

    @contextmanager
    def _syncing(self, closing: bool) -> Iterator[None]:
        """Gradients of all processes are summed only in an update's last micro-step."""
        if closing:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _close(self, window: Window, bar: tqdm) -> None:
        loss, usable = window.close()
        self.update += 1
        self.usable += usable
        if usable:
            self._step()
            self._record(loss)
        else:
            logger.warning("Update %d: no usable word in its batches: the weights stay as they are", self.update)
        self.optimizer.zero_grad(set_to_none=True)
        bar.update(1)
        bar.set_postfix(step_loss=f"{loss:.4f}", lr=self.schedule.get_last_lr()[0])
        if self.update % self.config.checkpointing_steps == 0:
            self.save()

    def _step(self) -> None:
        """Clip and step; under fp16 an overflow only lowers the loss scale: schedule and EMA then wait."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if self.accelerator.scaler is None:
            check_finite(float(norm), step=self.update - 1, what="gradient norm", folder=self.out)
        self.optimizer.step()
        if self.optimizer.step_was_skipped:
            return
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.bare_model.parameters())

    def _record(self, loss: float) -> None:
        self.accelerator.log({"train_loss": loss}, step=self.update)
        if self.update % self.config.log_every == 0:
            rate = self.schedule.get_last_lr()[0]
            self.metrics.write(step=self.update, epoch=self.epoch, loss=loss, lr=rate)

    def _leave(self, stop: StopRequest) -> bool:
        """True on all processes once a signal asked to leave; the state is saved first."""
        asked = torch.tensor(float(stop.requested), device=self.accelerator.device)
        if self.accelerator.reduce(asked) == 0:
            return False
        if not (self.out / f"checkpoint-{self.update}").is_dir():
            self.save()
        return True

    def finish(self) -> None:
        """Close the trackers and say what was left out by all processes."""
        self.rejected = everyones(self.rejected)
        if self.accelerator.is_main_process:
            self._list_rejected()
        self.accelerator.end_training()
        logger.info("Samples left out: %s", reasons(self.rejected) or "none")


class Window:
    """Mean loss of an update's micro-steps that had a usable word, over all processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.losses, self.weights = accelerator, [], []

    def add(self, loss: Tensor, usable: bool) -> None:
        self.losses.append(loss.detach() * usable)
        self.weights.append(float(usable))

    def close(self) -> tuple[float, int]:
        """(mean loss, how many micro-steps it is of), and start anew. Collective; NaN of none."""
        total = torch.stack(self.losses).sum().float()
        parts = torch.stack([total, torch.tensor(sum(self.weights), device=total.device)])
        total, count = self.accelerator.reduce(parts, "sum").tolist()
        self.losses, self.weights = [], []
        return (total / count if count else math.nan), int(count)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _flat(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
