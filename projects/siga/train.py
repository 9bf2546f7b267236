"""Train SIGA: R (TRBA, RBA), S (TSBA) or T (char_str_base_patch4_3_32_128), with the published flags.

torchrun --nproc_per_node 2 projects/siga/train.py --model_name TRBA --train_data … --eval_data … --mask_path …
python -m torch.distributed.launch --nproc_per_node 2 projects/siga/train.py …
python projects/siga/train.py …
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.data.bad import BadSamples
from common.data.loader import WordLoader
from common.data.words import WordDataset
from common.errors import command
from common.train.bad import share_bad
from common.train.checkpoint import git_commit
from common.train.distributed import Dist, process_group, wrap
from common.train.engine import numbered
from common.train.log import Meters, MetricsLog, ScalarWriter, Window
from common.train.optim import Precision
from common.train.seed import seed_everything
from common.train.session import check_room, check_writable, precision_note, state_bytes
from common.train.signals import StopRequest
from common.train.state import TrainingState
from projects.siga import files as states
from projects.siga import logs
from projects.siga.building import build_model, starting_weights
from projects.siga.data import check_samples, evaluation_sets, training_data, training_loader, wanted_sets
from projects.siga.evaluate import Evaluation, as_row, evaluate
from projects.siga.method import Stepper, make_optimizer, make_schedule, total_steps
from projects.siga.model.build import make_codec
from projects.siga.options import check, note_dead, parse
from projects.siga.panels import glyph_panels

CONSOLE = ["loss", "share", "predmask", "correct", "low", "middle"]
PUBLISHED_T = {  # the terms of which T's curves show the sum; the event file has _ for blanks
    "loss_our": ("ours",),
    "loss_TRBA": ("trba",),
    "loss_glyph": ("glyph1", "glyph2"),
    "loss_Iter": ("iter1", "iter2"),
    "loss_final": ("share",),
    "Pred_mask_loss": ("predmask",),
    "Correct Location": ("correct",),
    "Segmention_loss": ("low", "middle"),
}


@dataclass
class Run:
    """A training run once everything is built: the step, the state to save, where it writes, what it measures."""

    options: argparse.Namespace
    dist: Dist
    folder: Path
    stepper: Stepper
    state: TrainingState
    sets: dict[str, WordDataset]
    scalars: ScalarWriter
    metrics: MetricsLog
    bad: BadSamples
    meters: Meters = field(default_factory=Meters)
    since_evaluation: Window = field(default_factory=Window)
    started: float = field(default_factory=time.time)
    masks_missing: int = 0

    def go(self, batches: WordLoader) -> int:
        """Train to the last step or to a request to stop. Returns the exit status."""
        options, state = self.options, self.state
        with self.stepper.stop, contextlib.closing(self.scalars):
            for step, group in numbered(batches, state.step, options.total_steps, self.meters, options.accumulate):
                parts = self.stepper(group, step)
                state.step = step + 1
                self.note(step, parts, group)
                self.tell_missing(batches.masks_missing, step)
                if self.evaluation_due(step):
                    self.evaluate(step)
                self.keep(step)
                if self.stepper.stopping:
                    self.save_state()
                    print(f"asked to stop: state saved after step {state.step}; go on with --resume auto")
                    return 0
        best = f"best accuracy {state.extra['best_accuracy']:.3f}" if self.sets else "nothing evaluated (--eval_data)"
        print(f"done: {options.total_steps} steps; {best}; files in {self.folder}")
        return 0

    def note(self, step: int, parts: dict[str, torch.Tensor], group: Sequence) -> None:
        """Meters, console, metrics.jsonl and tensorboard after a step."""
        options = self.options
        self.meters.add(**parts)
        self.state.extra["loss_sum"] += float(parts["loss"])
        self.state.extra["loss_count"] += 1
        last = step + 1 == options.total_steps
        if (step + 1) % options.print_interval == 0 or last:
            print(self.meters.line(step + 1, options.total_steps, CONSOLE))
            lr = self.stepper.optimizer.param_groups[0]["lr"]
            self.metrics.write(
                step=step + 1,
                lr=lr,
                images_per_second=round(self.meters.throughput * self.dist.world_size, 2),
                data_wait=round(self.meters.data_wait, 2),
                **{k: round(v, 6) for k, v in self.meters.means().items()},
            )
        if step % options.log_interval == 0 and self.dist.is_main:
            self.log_scalars(step, parts, group)

    def tell_missing(self, count: int, step: int) -> None:
        """A line when the number of stored masks that were not there has doubled; zeros stood in for them."""
        if count >= max(2 * self.masks_missing, 1):
            self.masks_missing = count
            print(
                f"masks: {count} missing or unreadable by step {step + 1}, all-zero ones used; make them again with "
                "mask_create"
            )
            self.metrics.write(step=step + 1, event="masks", missing=count)

    def log_scalars(self, step: int, parts: dict[str, torch.Tensor], group: Sequence) -> None:
        """Tensorboard: `lr` (R, S) or T's list of losses and its pictures; our loss terms below `loss/`."""
        self.scalars.scalar("lr", self.stepper.optimizer.param_groups[0]["lr"], step)
        for name, value in parts.items():
            self.scalars.scalar(f"loss/{name}", value, step)
        if self.options.family != "T":
            return
        for name, terms in PUBLISHED_T.items():
            self.scalars.scalar(name, sum(parts[term] for term in terms), step)
        if self.scalars.writer is not None:
            for name, picture in glyph_panels(self.stepper, group[0]).items():
                self.scalars.image(name, picture, step)

    def evaluation_due(self, step: int) -> bool:
        """R, S: after each `--val_interval` steps (of data_ratio); T: after steps 1, N + 1, 2 N + 1 and so on, as
        published; all: at the end, too."""
        every = self.options.val_interval * self.options.data_ratio
        done = step if self.options.family == "T" else step + 1
        return bool(self.sets) and (done % every == 0 or step + 1 == self.options.total_steps)

    def evaluate(self, step: int) -> None:
        """Evaluate all sets, log in the published form, keep the best checkpoint."""
        share_bad(self.bad, self.dist)
        options, extra = self.options, self.state.extra
        evaluation = evaluate(
            self.stepper.bare,
            self.stepper.codec,
            self.sets,
            batch_size=options.test_batch_size or options.batch_size,
            workers=options.workers,
            dist=self.dist,
        )
        better = evaluation.best_accuracy > extra["best_accuracy"]
        extra["best_accuracy"] = max(extra["best_accuracy"], evaluation.best_accuracy)
        if self.dist.is_main:
            self.log_evaluation(step, evaluation)
            if better:
                self.save_weights("best_accuracy.pth", step, accuracy=evaluation.accuracy)
        if options.family != "T":
            print(f"accuracy-->{evaluation.accuracy:.3f}")
            print(f"Iteration:{step // options.data_ratio}->time:{time.time() - self.started}")
        extra["loss_sum"], extra["loss_count"] = 0.0, 0
        self.meters.pause()

    def log_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """The evaluation in text files, tensorboard and metrics.jsonl (rank 0)."""
        options, extra = self.options, self.state.extra
        if options.family == "T":
            text = logs.evaluation_t(
                step + 1,
                options.total_steps,
                self.stepper.optimizer.param_groups[0]["lr"],
                extra["loss_sum"] / max(extra["loss_count"], 1),
                time.time() - self.started,
                extra["best_accuracy"],
                evaluation,
            )
            logs.append(self.folder / "log_train.txt", text)
            self.scalars.scalar("accuracy", evaluation.best_accuracy, step)
            print(text, end="")
        else:
            ratio_iteration = step // options.data_ratio
            text = logs.evaluation_rs(ratio_iteration, evaluation)
            logs.append(self.folder / "result" / "log_all_evaluation.txt", text)
            if options.benchmark_all_eval:
                heads = {"Share_pred": evaluation.accuracy, "language": 0.0, "final": 0.0}
                self.scalars.scalars("total_accuracy", heads, ratio_iteration)
            else:
                self.scalars.scalar("total_accuracy", evaluation.accuracy, ratio_iteration)
        self.scalars.flush()
        self.metrics.write(step=step + 1, event="evaluation", **as_row(evaluation))

    def save_weights(self, name: str, step: int, **card) -> None:
        """A checkpoint in the published form, with its card."""
        optimizer, extra = self.stepper.optimizer, self.state.extra
        card |= {"commit": git_commit(), "start": extra["start"], "warnings": extra["warnings"]}
        states.save_published(self.folder / name, self.stepper.model, optimizer, step, self.options, **card)

    def keep(self, step: int) -> None:
        """Numbered checkpoint and training state, where they are due after this step."""
        name = states.published_name(self.options, step + 1)
        with self.dist.failing_together():
            if name and self.dist.is_main:
                self.save_weights(name, step)
        every = self.options.save_interval or self.options.val_interval * self.options.data_ratio
        if (step + 1) % every == 0 or step + 1 == self.options.total_steps:
            self.save_state()

    def save_state(self) -> None:
        """Write the list of bad samples and the training state. Collective."""
        share_bad(self.bad, self.dist)
        states.save_state(self.state, self.folder, self.options, self.dist)


def build(options: argparse.Namespace, dist: Dist) -> tuple[Run, WordLoader]:
    """Check the input and build the run: (run, its batches). Everything that can be refused is refused here."""
    folder = states.run_folder(options)
    with dist.failing_together():
        check(options)
        if dist.is_main:
            check_writable(folder)
        seed_everything(options.manual_seed)
        dataset, chosen, about = training_data(options)
        sets = evaluation_sets(options.eval_data, wanted_sets(options), options) if options.eval_data else {}
        about += f"\n{check_samples(dataset, options.check_data)}"
        codec = make_codec(options.family, options.character, options.batch_max_length)
        model = build_model(options, codec)
        start = states.starting_point(folder, options, dist)
        notes, warnings = starting_weights(model, options, start)
        loader, per_epoch = training_loader(dataset, chosen, options, dist, folder)
        options.total_steps = total_steps(options, per_epoch)
        if dist.is_main:
            check_room(folder, 2 * state_bytes(model), "a checkpoint")
    sync = options.family == "R" and dist.distributed
    if sync and dist.device.type != "cuda":
        notes.append("SyncBatchNorm exists on CUDA only: batch statistics are those of each process")
    wrapped = wrap(model, dist, find_unused=True, sync_batch_norm=sync)
    if options.family == "T" and dist.rank:  # published: seed + rank; R and S draw alike on all ranks
        seed_everything(options.manual_seed, dist.rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stepper = Stepper(
        make_optimizer(wrapped, options),
        make_schedule(options),
        Precision(options.amp, dist.device),
        options,
        dist,
        folder,
        StopRequest(),
        torch.compile(wrapped) if options.compile else wrapped,
        codec,
    )
    state = TrainingState(
        stepper.model,
        stepper.optimizer,
        {"sampler": loader.sampler, "scaler": stepper.precision},
        {key: value for key, value in vars(options).items() if key not in ("variant", "given")},
        extra={"best_accuracy": -1.0, "loss_sum": 0.0, "loss_count": 0, "start": " ".join(notes), "warnings": warnings},
    )
    with dist.failing_together():
        notes.append(states.resume(state, model, start, options, dist))
    notes.append(precision_note(options.amp, options.compile, options.tf32, dist.device))
    notes.append(
        f"{dist.world_size} process(es), {options.total_steps} steps, {per_epoch} batches an epoch, {trained:,} trained"
    )
    warnings = state.extra["warnings"]
    print("\n".join([about, *notes, *warnings]))
    if dist.is_main:
        logs.start(folder, options.family, about, "\n".join([repr(model), *notes]), options, trained, warnings)
    tensorboard = Path(options.output) / options.tensorboard / folder.name if options.tensorboard else None
    main = dist.is_main
    with dist.failing_together():
        if tensorboard is not None and main:
            check_writable(tensorboard, "--tensorboard")
    if state.step:
        loader.bad.recall()
    run = Run(
        options,
        dist,
        folder,
        stepper,
        state,
        sets,
        ScalarWriter(tensorboard if main else None),
        MetricsLog(folder / "metrics.jsonl" if main else None, state.step or None),
        loader.bad,
    )
    return run, loader


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    options = parse(argv, prog="train.py", description=__doc__.splitlines()[0])
    device = "auto" if options.device == "cuda" and "device" not in options.given else options.device
    with process_group(device, options.dist_url, options.local_rank) as dist:
        note_dead(options)
        run, batches = build(options, dist)
        return run.go(batches)


if __name__ == "__main__":
    raise SystemExit(main())
