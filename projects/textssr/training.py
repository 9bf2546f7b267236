"""What the three TextSSR runs share: accelerate, folders of the published form, exact resuming, the step's rhythm."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm.auto import tqdm

from common.data.loader import SeededSampler
from common.errors import UserError
from common.train.checkpoint import load, save_atomic
from common.train.meters import MetricsLog
from common.train.optim import check_finite
from common.train.run import check_writable
from common.train.signals import StopRequest
from projects.textssr import config as configuration
from projects.textssr.unet import read_weights

logger = get_logger(__name__)
STATE = "strlab_state.pth"
UNFINISHED = ".unfinished-"


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
    """(batch, reasons of samples left out with their counts): a loader's worker counts in its own copy of the data."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], dict | None]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, samples: list) -> tuple[dict | None, dict[str, int]]:
        worker = get_worker_info()
        counts = (worker.dataset if worker else self.dataset).rejected
        left_out = dict(counts)
        counts.clear()
        return self.collate(samples), left_out


def start(config: SimpleNamespace) -> Accelerator:
    """The process group, log format and tracker of a run; refuses an output folder that cannot be written."""
    check_writable(config.output_dir, "output_dir")
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_config=ProjectConfiguration(
            project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", level=logging.INFO
    )
    set_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = bool(config.allow_tf32)
    for line in configuration.notices(config):
        logger.warning(line)
    if config.compile_backend and config.compile_backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"compile_backend: {config.compile_backend!r} is not known; use inductor, or None")
    if config.push_to_hub:
        raise UserError("push_to_hub: uploading is not done here; set it to False and upload the folder yourself")
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
        collate: a list of samples (None where one cannot be used) -> a batch, or None if none is left.
        tracker: name of the run in the logs.
        ema: an averaged copy of the model, saved beside it as `<folder>_ema`.
        before_save: called by the main process before it writes a checkpoint.
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
    ) -> None:
        self.config, self.accelerator, self.folder, self.dataset = config, accelerator, folder, dataset
        self.out, self.ema, self.before_save = Path(config.output_dir), ema, before_save
        self.accumulate = config.gradient_accumulation_steps
        self.sampler = SeededSampler(
            len(dataset), config.train_batch_size, config.seed, accelerator.process_index, accelerator.num_processes,
            drop_last=drop_last,
        )  # fmt: skip
        self.rejected, dataset.rejected = Counter(dataset.rejected), Counter()
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
        self.update, self.epoch, self.micro = 0, 0, 0
        self.metrics = MetricsLog(None)
        accelerator.init_trackers(tracker, config={key: _flat(value) for key, value in vars(config).items()})

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write `checkpoint-<update>`: the published files and our exact state. Built aside, then renamed."""
        self.accelerator.wait_for_everyone()
        final = self.out / f"checkpoint-{self.update}"
        if self.accelerator.is_main_process:
            building = self.out / f"{UNFINISHED}{final.name}"
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            self._write(building)
            shutil.rmtree(final, ignore_errors=True)
            building.rename(final)
            logger.info("Saved state to %s", final)
            self._prune()
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        if self.before_save is not None:
            self.before_save()
        self.bare_model.save_pretrained(folder / self.folder)
        if self.ema is not None:
            self.ema.save_pretrained(folder / f"{self.folder}_ema")
        save_atomic(folder / "optimizer.bin", self.optimizer.state_dict())
        save_atomic(folder / "scheduler.bin", self.schedule.state_dict())
        save_atomic(
            folder / STATE,
            {
                "update": self.update,
                "epoch": self.epoch,
                "micro": self.micro,
                "processes": self.accelerator.num_processes,
                "batch": self.config.train_batch_size,
                "ema": self.ema.state_dict() if self.ema is not None else None,
            },
        )

    def _prune(self) -> None:
        limit = self.config.checkpoints_total_limit
        for path in self.checkpoints()[:-limit] if limit else []:
            shutil.rmtree(path, ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [path for path in self.out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.split("-")[1]))

    @property
    def bare_model(self) -> ModelMixin:
        return self.accelerator.unwrap_model(self.model)

    def resume(self) -> None:
        """Go on from `resume_from_checkpoint`: "latest", or the name of a folder in the output folder."""
        wanted = self.config.resume_from_checkpoint
        if not wanted:
            return
        found = self.checkpoints()
        path = (found[-1] if found else None) if wanted == "latest" else self.out / Path(wanted).name
        if path is None or not path.is_dir():
            print(f"Checkpoint '{wanted}' does not exist. Starting a new training run.")
            return
        print(f"Resuming from checkpoint {path.name}")
        self.bare_model.load_state_dict(read_weights(path / self.folder))
        self.optimizer.load_state_dict(load(path / "optimizer.bin"))
        self.schedule.load_state_dict(load(path / "scheduler.bin"))
        self.update = int(path.name.split("-")[1])
        state = load(path / STATE) if (path / STATE).is_file() else None
        same = state and (state["processes"], state["batch"]) == (
            self.accelerator.num_processes, self.config.train_batch_size,
        )  # fmt: skip
        if same:
            self.epoch, self.micro = state["epoch"], state["micro"]
        else:  # the place in the epoch follows from the number of updates, as in the published code
            self.epoch, inside = divmod(self.update, self.updates_per_epoch)
            self.micro = inside * self.accumulate
        if self.ema is not None and state and state["ema"]:
            self.ema.load_state_dict(state["ema"])

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
        main = self.accelerator.is_main_process
        self.metrics = MetricsLog(self.out / "metrics.jsonl" if main else None, self.update or None)
        quiet = not self.accelerator.is_local_main_process
        bar = tqdm(total=self.total, initial=self.update, desc="Steps", disable=quiet)
        self.model.train()
        with StopRequest() as stop:
            while self.update < self.total:
                self._epoch(loss_of, bar, stop)
                self.epoch, self.micro = self.epoch + 1, 0
        bar.close()
        if self.update and not (self.out / f"checkpoint-{self.update}").is_dir():
            self.save()

    def _epoch(self, loss_of: Callable, bar: tqdm, stop: StopRequest) -> None:
        self.dataset.epoch = self.epoch
        self.sampler.epoch, self.sampler.position = self.epoch, self.micro
        window = Window(self.accelerator)
        last = len(self.sampler) - 1
        for micro, (batch, left_out) in enumerate(self.loader, start=self.micro):
            self.rejected.update(left_out)
            closing = (micro + 1) % self.accumulate == 0 or micro == last
            if self.accelerator.reduce(torch.tensor(float(batch is None), device=self.accelerator.device)) > 0:
                batch = batch if batch is not None else window.spare
            window.spare = batch
            if batch is None:
                raise UserError(f"{self.config.lmdb_path}: no usable word in the first batch: {self.rejections()}")
            with self._syncing(closing):
                batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                with self.accelerator.autocast():
                    loss = loss_of(batch, self.generator(micro))
                check_finite(float(loss.detach()), step=self.update, folder=self.out)
                self.accelerator.backward(loss)  # divides by the number of micro-steps
            window.add(loss)
            if closing:
                self.micro = micro + 1
                self._close(window, bar)
                if self._leave(stop):
                    raise Stopped
            if self.update >= self.total:
                return

    @contextmanager
    def _syncing(self, closing: bool) -> Iterator[None]:
        """Gradients of all processes are summed only in an update's last micro-step."""
        if closing:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _close(self, window: Window, bar: tqdm) -> None:
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        check_finite(float(norm), step=self.update, what="gradient norm", folder=self.out)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.update += 1
        if self.ema is not None:
            self.ema.step(self.bare_model.parameters())
        loss, rate = window.mean(), self.schedule.get_last_lr()[0]
        self.accelerator.log({"train_loss": loss}, step=self.update)
        if self.update % self.config.log_every == 0:
            self.metrics.write(step=self.update, epoch=self.epoch, loss=loss, lr=rate)
        bar.update(1)
        bar.set_postfix(step_loss=f"{loss:.4f}", lr=rate)
        if self.update % self.config.checkpointing_steps == 0:
            self.save()

    def _leave(self, stop: StopRequest) -> bool:
        """True on all processes once a signal asked to leave; the state is saved first."""
        asked = torch.tensor(float(stop.requested), device=self.accelerator.device)
        if self.accelerator.reduce(asked) == 0:
            return False
        if not (self.out / f"checkpoint-{self.update}").is_dir():
            self.save()
        return True

    def rejections(self) -> str:
        """Reasons of samples left out and how often each came, for the end of a run."""
        return "; ".join(f"{reason} ({count})" for reason, count in self.rejected.items()) or "none"

    def finish(self) -> None:
        """Close the trackers and say what was left out by all processes."""
        parts = gather_object([dict(self.rejected)])
        self.rejected = sum((Counter(part) for part in parts), Counter())
        self.accelerator.end_training()
        logger.info("Samples left out: %s", self.rejections())


class Window:
    """Mean loss of an update's micro-steps over all processes; `spare` stands in for a batch without usable words."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.losses, self.spare = accelerator, [], None

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def mean(self) -> float:
        value = self.accelerator.gather(torch.stack(self.losses).mean()).mean()
        self.losses = []
        return float(value)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _flat(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
