"""Train MGP-STR, char-str or ACDS-STR with the published flags.

torchrun --nproc_per_node 2 projects/mgpstr/train_final_dist.py --Transformer mgp-str --TransformerModel …
--train_data … python -m torch.distributed.launch --nproc_per_node 2 projects/mgpstr/train_final_dist.py … python
projects/mgpstr/train_final_dist.py …
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.data.bad import BadSamples
from common.data.loader import Batch, WordLoader
from common.data.words import WordDataset, discover
from common.errors import command
from common.models.pretrained import start_from
from common.train import states, text_log
from common.train.bad import share_bad
from common.train.checkpoint import git_commit, load, save_atomic, write_card
from common.train.distributed import Dist, process_group, wrap
from common.train.engine import numbered
from common.train.meters import Meters, MetricsLog
from common.train.optim import Precision
from common.train.run import check_room, check_writable, command_line, precision_note, state_bytes
from common.train.seed import seed_everything
from common.train.signals import StopRequest
from common.train.state import TrainingState
from projects.mgpstr import files
from projects.mgpstr.data import Source, describe, evaluation_loader, make_dataset, training_data, training_loader
from projects.mgpstr.evaluate import Evaluation, evaluate
from projects.mgpstr.flags import get_args
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.method import LossModule, Stepper, make_optimizer, make_schedule
from projects.mgpstr.model.build import START_WEIGHTS, load_start_weights
from projects.mgpstr.reader import build_row, load_weights

FIXED = ("Transformer", "TransformerModel", "character", "batch_max_length", "granularities", "batch_size", "adam")


def model_name(options: argparse.Namespace) -> str:
    """The registry's name of the model without its project: ACDS-STR is named by its method."""
    return options.TransformerModel if options.Transformer in ("mgp-str", "char-str") else options.Transformer


def run_folder(options: argparse.Namespace) -> Path:
    """`{saved_path}/{exp_name or model}-Seed{manualSeed}`, as published."""
    return Path(options.saved_path) / f"{options.exp_name or model_name(options)}-Seed{options.manualSeed}"


def build_options(options: argparse.Namespace) -> dict[str, Any]:
    """What beside the row's name fixes the network and its reader; stands in a checkpoint's card."""
    extra = {"granularities": options.granularities} if options.Transformer == "mgp-str" else {}
    return {
        "character": options.character, "batch_max_length": options.batch_max_length, "pad": options.PAD,
        "sensitive": options.sensitive, **extra,
    }  # fmt: skip


@dataclass
class Run:
    """A training run once everything is built; `extra` of the state holds the best accuracy and the sum of losses."""

    options: argparse.Namespace
    dist: Dist
    folder: Path
    model: torch.nn.Module
    stepper: Stepper
    state: TrainingState
    validation: WordDataset
    metrics: MetricsLog
    bad: BadSamples
    meters: Meters = field(default_factory=Meters)
    started: float = field(default_factory=time.time)

    def go(self, batches: Iterable[Batch]) -> int:
        """Train to the last step, or to a request to stop. Returns the exit status."""
        options, state = self.options, self.state
        with self.stepper.stop:
            for step, (batch,) in numbered(batches, state.step, options.num_iter, self.meters):
                self.note(step, self.stepper(batch, step))
                state.step = step + 1
                if step == 0 or state.step % options.valInterval == 0 or state.step == options.num_iter:
                    self.validate()
                self.keep()
                if self.stepper.stopping:
                    self.save_state()
                    print(f"asked to stop: state saved after step {state.step}; go on with --resume auto")
                    return 0
        print(f"end the training; best accuracy {state.extra['best_accuracy']:.3f}; files in {self.folder}")
        return 0

    def note(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Meters and, each `--print_interval` steps, console and metrics.jsonl."""
        self.meters.add(**losses)
        self.state.extra["loss_sum"] += float(losses["loss"])
        self.state.extra["loss_count"] += 1
        if (step + 1) % self.options.print_interval and step + 1 != self.options.num_iter:
            return
        print(self.meters.line(step + 1, self.options.num_iter))
        rate = self.meters.throughput * self.dist.world_size
        self.metrics.write(
            step=step + 1, lr=self.stepper.schedule(step), images_per_second=rate, data_wait=self.meters.data_wait,
            **self.meters.means(),
        )  # fmt: skip

    def validate(self) -> None:
        """Rank 0 reads the validation set with the bare module, logs as published and keeps the best weights."""
        share_bad(self.bad, self.dist)
        options, extra, step = self.options, self.state.extra, self.state.step
        lr = self.stepper.schedule(step - 1)
        print(f"LR {lr}")
        with self.dist.failing_together():
            if self.dist.is_main:
                batches = evaluation_loader(self.validation, options.batch_size, options.workers)
                result = evaluate(self.model, self.stepper.codes, batches, self.dist.device, options.amp)
                if result.bad:
                    first = result.bad[0]
                    where = f"{first.path} {first.number}: {first.reason}"
                    print(f"validation: {len(result.bad)} samples left out, the first {where}")
                if result.best > extra["best_accuracy"]:
                    extra["best_accuracy"] = result.best
                    self.save_weights("best_accuracy.pth", result)
                mean = extra["loss_sum"] / max(extra["loss_count"], 1)
                block = files.validation_block(
                    step, options.num_iter, lr, mean, time.time() - self.started, extra["best_accuracy"], result,
                    options.sensitive,
                )  # fmt: skip
                print(block)
                text_log.append(self.folder / "log_train.txt", block + "\n")
                heads = {f"accuracy/{name}": value for name, value in result.accuracies.items()}
                self.metrics.write(step=step, event="evaluation", accuracy=result.accuracy("fused"), **heads)
        extra["loss_sum"], extra["loss_count"] = 0.0, 0
        extra["best_accuracy"] = self.dist.broadcast(extra["best_accuracy"])

    def save_weights(self, name: str, result: Evaluation | None = None) -> None:
        """The bare state dict with `module.` before its names, as published, and its card."""
        path = self.folder / name
        save_atomic(path, {f"module.{key}": value for key, value in self.model.state_dict().items()})
        card = {} if result is None else {"accuracy": result.accuracies, "accuracy_on": self.options.valid_data}
        start, warnings = self.state.extra.get("start", ""), self.state.extra.get("warnings", [])
        card |= {"step": self.state.step, "commit": git_commit(), "start": start, "warnings": warnings}
        write_card(path, f"mgpstr/{model_name(self.options)}", build_options(self.options), **card)

    def keep(self) -> None:
        """`iter_N.pth` and the training state, where they are due."""
        options, step = self.options, self.state.step
        with self.dist.failing_together():
            if step % options.checkpoint_interval == 0 and self.dist.is_main:
                self.save_weights(f"iter_{step}.pth")
        if step % (options.save_interval or options.valInterval) == 0 or step == options.num_iter:
            self.save_state()

    def save_state(self) -> None:
        """Write the list of bad samples and the training state. Collective."""
        options = self.options
        share_bad(self.bad, self.dist)
        states.save_state(self.state, self.folder, self.dist, options.keep_states, options.disk_full)


def compile_parts(model: torch.nn.Module) -> None:
    """`--compile`: the encoder; the heads work on as many positions as a batch has targets, which changes each time."""
    if hasattr(model, "mgp_str"):
        model.mgp_str.encode = torch.compile(model.mgp_str.encode)
    else:
        model.maps_and_logits = torch.compile(model.maps_and_logits)


def begin(state: TrainingState, model: torch.nn.Module, folder: Path, options: argparse.Namespace, dist: Dist) -> str:
    """Put the run where `--resume` and `--saved_model` say; returns a line for the log.

    `--saved_model iter_N.pth` takes weights, and N as the step at which schedule and numbering go on, as published.
    """
    found = states.newest_state(folder, dist) if options.resume == "auto" else None
    if options.resume not in ("", "auto"):
        found = (Path(options.resume), load(options.resume))
    if found is not None:
        path, content = found
        if states.is_state(content):
            # a state brings its optimizer's settings with it, so that others would go unheard
            settings = ("beta1", "beta2") if options.adam else ("rho", "eps")
            states.same_options(content, vars(options), FIXED + settings, str(path))
        state.resume(content, dist)
        return f"resumed from {path} at step {state.step}"
    if not options.saved_model:
        start = start_from(START_WEIGHTS.get(model_name(options)), options.pretrained, options.download)
        loaded = f" ({load_start_weights(model, start.path)})" if start.path else ""
        state.extra |= {"start": start.line + loaded, "warnings": [start.warning] if start.warning else []}
        return state.extra["start"]
    load_weights(model, options.saved_model)
    state.extra["start"] = f"start: {options.saved_model}"
    number = re.search(r"_(\d+)\.[^._]*$", options.saved_model)
    state.step = int(number[1]) if number else 0
    return f"weights from {options.saved_model}; the optimizer starts fresh, at step {state.step}"


def prepare(options: argparse.Namespace, dist: Dist, folder: Path) -> tuple[LabelCodes, WordDataset, list[Source]]:
    """What is checked before a model is built: folder, codes, training data."""
    if dist.is_main:
        check_writable(folder, "--saved_path")
    heads = tuple(options.granularities.split("-")) if options.Transformer == "mgp-str" else ("char",)
    codes = LabelCodes(options.character, options.batch_max_length, heads)
    return codes, *training_data(options, codes)


def build(options: argparse.Namespace, dist: Dist) -> tuple[Run, WordLoader]:
    """Check everything and build the run: (run, its batches)."""
    folder = run_folder(options)
    with dist.failing_together():
        seed_everything(options.manualSeed)
        model = build_row(options.Transformer, options.TransformerModel, **build_options(options))
        codes, dataset, sources = prepare(options, dist, folder)
        length = None if options.data_filtering_off else options.batch_max_length
        validation = make_dataset(discover(options.valid_data), options, length=length)
        if dist.is_main:
            check_room(folder, 2 * state_bytes(model), "a checkpoint")
    trained = freeze(model, options)
    module = wrap(LossModule(model, options.mask_logits), dist)
    seed_everything(options.manualSeed, dist.rank)
    precision, optimizer = Precision(options.amp, dist.device), make_optimizer(model, options)
    loader = training_loader(dataset, sources, options, dist, folder)
    kept = {key: value for key, value in vars(options).items() if key != "given"}
    extra = {"best_accuracy": -1.0, "loss_sum": 0.0, "loss_count": 0, "start": "", "warnings": []}
    state = TrainingState(model, optimizer, {"sampler": loader.sampler, "scaler": precision}, kept, extra=extra)
    with dist.failing_together():
        notes = [begin(state, model, folder, options, dist), *state.extra.get("warnings", [])]
        if state.step:
            loader.bad.recall()
    if options.compile:
        compile_parts(model)
    notes.append(precision_note(options.amp, options.compile, options.tf32, dist.device))
    notes.append(f"{dist.world_size} process(es), batches of {loader.sampler.batch_size} each")
    notes += filter(None, [codes.collision()])
    about = describe(options, sources, dataset)
    print("\n".join([about, *notes]))
    if dist.is_main:
        start_logs(folder, kept, [about, *notes], trained, state.extra.get("warnings", []))
    stepper = Stepper(
        optimizer, make_schedule(options), precision, options, dist, folder, StopRequest(), module.train(), codes
    )
    metrics = MetricsLog(folder / "metrics.jsonl" if dist.is_main else None, state.step or None)
    return Run(options, dist, folder, model, stepper, state, validation, metrics, loader.bad), loader


def freeze(model: torch.nn.Module, options: argparse.Namespace) -> int:
    """Do what `--freeze` asks for; returns how many parameters count as trained, unused ones too, as published."""

    def learnt() -> int:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    before = learnt()
    if options.freeze:
        model.freeze_map_branch(options.freeze_statistics)
    return sum(parameter.numel() for parameter in model.parameters()) - before + learnt()


def start_logs(
    folder: Path, options: dict[str, Any], about: Sequence[str], trained: int, warnings: Sequence[str]
) -> None:
    """log_dataset.txt and opt.txt, as published; additional lines stand after the published block."""
    text_log.append(folder / "log_dataset.txt", "".join(f"{line}\n" for line in about))
    text_log.append(folder / "opt.txt", f"{text_log.options_block(options)}Trainable network params num : {trained:,}")
    text_log.append(folder / "log_train.txt", "".join(f"{line}\n" for line in (command_line(), *warnings)))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    options = get_args(argv, is_train=True)
    with process_group(options.device, options.dist_url, options.local_rank) as dist:
        run, batches = build(options, dist)
        return run.go(batches)


if __name__ == "__main__":
    raise SystemExit(main())
