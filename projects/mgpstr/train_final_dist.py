"""Train MGP-STR, char-str or ACDS-STR with the published flags.

torchrun --nproc_per_node 2 projects/mgpstr/train_final_dist.py --Transformer mgp-str …
python -m torch.distributed.launch --nproc_per_node 2 projects/mgpstr/train_final_dist.py …
python projects/mgpstr/train_final_dist.py …
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.bad import FILE_NAME
from common.data.loader import reading_loader
from common.data.words import WordDataset, discover
from common.errors import UserError, command
from common.text.coverage import empty_line
from common.train.checkpoint import git_commit, load, read_card
from common.train.distributed import Dist, process_group, wrap
from common.train.jobs import Evaluate, States, every
from common.train.log import Meters, MetricsLog, append
from common.train.loop import Clock, Engine, Job, Loop, Step
from common.train.optim import Precision
from common.train.session import check_room, check_writable, folder_lock, precision_note, state_bytes
from common.train.state import TrainingState, is_state, newest_state, refuse_changes, seed_everything
from projects.mgpstr import files
from projects.mgpstr.data import batch_shares, describe, make_dataset, training_data, training_loader
from projects.mgpstr.evaluate import Evaluation, evaluate
from projects.mgpstr.flags import TRAIN, TrainOptions, parse_training, table
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.method import LossModule, MgpMethod, make_optimizer, make_schedule
from projects.mgpstr.model.build import build_row, compile_parts, initialise, load_weights, start_model

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Run:
    """What is measured, printed and written between the steps of a run."""

    o: TrainOptions
    dist: Dist
    folder: Path
    model: nn.Module
    method: MgpMethod
    state: TrainingState
    validation: WordDataset
    metrics: MetricsLog
    meters: Meters = field(default_factory=Meters)
    started: float = field(default_factory=time.time)

    def note(self, clock: Clock, done: Step) -> None:
        """Meters and, each `--print_interval` steps, console and metrics.jsonl."""
        means, extra = done.means(), self.state.extra
        self.meters.add(**means)
        self.meters.count(done.images, done.waited)
        extra["loss_sum"] += float(means["loss"])
        extra["loss_count"] += 1
        if clock.step % self.o.print_interval and not clock.done:
            return
        print(self.meters.line(clock.step, clock.total))
        rate = self.meters.throughput * self.dist.world_size
        self.metrics.write(
            step=clock.step, lr=done.lr, images_per_second=rate, data_wait=self.meters.data_wait, **self.meters.means()
        )

    def measure(self) -> Evaluation | None:
        """Rank 0 reads the validation set, with the bare module: through DistributedDataParallel, as published, rank 0
        alone would broadcast ACDS-STR's batch-norm buffers.
        """
        with self.dist.failing_together():
            if self.dist.is_main:
                batches = reading_loader(self.validation, self.o.batch_size, self.o.workers, pin_memory=False)
                return evaluate(self.model, self.method.codes, batches, self.dist.device, self.o.amp)
        return None

    def record(self, clock: Clock, result: Evaluation) -> None:
        """The published lines of a validation. The rate shown is the one of the step just done."""
        if result.bad:
            first = result.bad[0]
            print(f"validation: {len(result.bad)} samples skipped, first {first.path} {first.number}: {first.reason}")
        extra, lr = self.state.extra, self.method.schedule(clock.step - 1)
        mean, spent = extra["loss_sum"] / max(extra["loss_count"], 1), time.time() - self.started
        best, sensitive = extra["best_accuracy"], self.o.network.sensitive
        print(f"LR {lr}")
        block = files.validation_block(clock.step, clock.total, lr, mean, spent, best, result, sensitive)
        print(block)
        append(self.folder / "log_train.txt", block + "\n")
        heads = {f"accuracy/{name}": value for name, value in result.accuracies.items()}
        self.metrics.write(step=clock.step, event="evaluation", accuracy=result.accuracy("fused"), **heads)
        extra["loss_sum"], extra["loss_count"] = 0.0, 0
        self.meters.pause()

    def card(self, step: int) -> dict[str, Any]:
        """Entries of a checkpoint's metadata file."""
        extra = self.state.extra
        return {"step": step, "commit": git_commit(), "start": extra["start"], "warnings": extra["warnings"]}

    def keep_best(self, clock: Clock, result: Evaluation) -> None:
        """best_accuracy.pth, on rank 0."""
        card = {"accuracy": result.accuracies, "accuracy_on": self.o.valid_data, **self.card(clock.step)}
        files.save_weights(self.folder / "best_accuracy.pth", self.model, self.o.network, card)

    def checkpoint(self, clock: Clock) -> None:
        """iter_N.pth. Collective."""
        with self.dist.failing_together():
            if self.dist.is_main:
                path = self.folder / f"iter_{clock.step}.pth"
                files.save_weights(path, self.model, self.o.network, self.card(clock.step))


def begin(o: TrainOptions, values: dict[str, Any], state: TrainingState, folder: Path, dist: Dist) -> str:
    """Put the run where `--resume`, `--saved_model` or `--pretrained` say; returns a line for the log.

    `--saved_model iter_N.pth` takes weights, and N as the step at which schedule and numbering continue, as published.
    """
    found = newest_state(folder, dist) if o.resume == "auto" else None
    if o.resume not in ("", "auto"):
        found = (Path(o.resume), load(o.resume))
    if found is not None:
        path, content = found
        if is_state(content):
            variant = "A" if o.network.transformer.startswith("ACDS") else "M"
            changed = table(TRAIN).changed(content["options"], values, variant)
            # the moments of another optimizer cannot be used
            refuse_changes(path, changed, o.allow_changes and content["options"].get("adam") == o.adam)
        state.resume(content, dist)
        for group in state.optimizer.param_groups:  # a state brings its own settings with it
            group.update({"betas": (o.beta1, o.beta2)} if o.adam else {"rho": o.rho, "eps": o.eps})
        return f"resumed from {path} at step {state.step}"
    if o.init:
        before = (read_card(Path(o.init)).get("options") or {}).get("character")
        report = initialise(state.model, o.init, before, o.network.character)
        state.extra["start"] = f"start: {len(report.kept)} tensors of {o.init}, at step 0"
        return state.extra["start"]
    if not o.saved_model:
        line, warnings = start_model(state.model, o.network.name, o.pretrained, o.download)
        state.extra |= {"start": line, "warnings": warnings}
        return line
    load_weights(state.model, o.saved_model)
    state.step = files.step_of(o.saved_model)
    state.extra["start"] = f"start: {o.saved_model}"
    return f"weights from {o.saved_model}; the optimizer starts fresh, at step {state.step}"


def check_start(step: int, o: TrainOptions) -> None:
    """Refuse a start after the end, and new training from a checkpoint of the last step."""
    if step > o.num_iter or (step == o.num_iter and not o.resume):
        start = o.saved_model or "the training state"
        raise UserError(
            f"--num_iter: {o.num_iter}: {start} is at step {step}; raise --num_iter, or start from weights of another "
            "name than iter_N at step 0"
        )
    if step == o.num_iter:
        print(f"this run has done its {step} steps; raise --num_iter to train on")


def build(o: TrainOptions, values: dict[str, Any], dist: Dist, folder: Path) -> tuple[Loop, Run]:
    """Check everything, build the run and put it where it starts."""
    network = o.network
    with dist.failing_together():
        seed_everything(o.manualSeed)
        model = build_row(network.transformer, network.model, **network.build_options)
        codes = LabelCodes(network.character, network.batch_max_length, network.heads)
        shares = batch_shares(o.batch_size, o.ratios)
        dataset, sources = training_data(
            o.train_data, o.sources, shares, network, codes,
            filtered=not o.data_filtering_off, boxes=o.is_mask_supervision, augment=o.augment,
            unsupported_share=o.unsupported_share, keep_empty=o.keep_empty_labels,
            exclude=o.exclude,
        )  # fmt: skip
        length = None if o.data_filtering_off else network.batch_max_length
        validation = make_dataset(discover(o.valid_data), network, length=length)
        if dist.is_main and (empty := validation.counts["empty"]):
            print(empty_line(o.valid_data, empty))
        if dist.is_main:
            check_room(folder, 2 * state_bytes(model), "a checkpoint")
    frozen = model.freeze_map_branch(o.freeze_statistics) if o.freeze else 0
    # parameters that are never used count as well, as published
    trained = sum(parameter.numel() for parameter in model.parameters()) - frozen
    module = wrap(LossModule(model, o.mask_logits), dist)
    seed_everything(o.manualSeed, dist.rank)
    precision, betas = Precision(o.amp, dist.device), (o.beta1, o.beta2)
    optimizer = make_optimizer(model, o.lr, adam=o.adam, betas=betas, rho=o.rho, eps=o.eps)
    loader = training_loader(
        dataset, sources, o.ratios, dist, batch_size=o.batch_size, usage=o.usage, seed=o.manualSeed,
        workers=o.workers, bad_share=o.bad_share, bad_list=folder / FILE_NAME,
    )  # fmt: skip
    extra = {"best_accuracy": -1.0, "loss_sum": 0.0, "loss_count": 0, "start": "", "warnings": []}
    parts = {"sampler": loader.sampler, "scaler": precision}
    state = TrainingState(model, optimizer, parts, values, extra=extra, data=dataset.fingerprint)
    with dist.failing_together():
        notes = [begin(o, values, state, folder, dist), *state.extra["warnings"]]
        check_start(state.step, o)
        if state.step:
            loader.bad.recall()
    if o.compile:
        compile_parts(model)
    notes.append(precision_note(o.amp, o.compile, o.tf32, dist.device))
    notes.append(f"{dist.world_size} process(es), batches of {loader.sampler.batch_size} each")
    notes += filter(None, [codes.collision()])
    ratios = o.batch_ratio.split("-")
    about = describe(o.train_data, ratios, o.total_data_usage_ratio, o.batch_size, sources, dataset)
    print("\n".join([about, *notes]))
    if dist.is_main:
        files.start_logs(folder, values, [about, *notes], trained, state.extra["warnings"])

    schedule = make_schedule(o.lr, cosine=o.scheduler, period=o.lr_period, warmup=o.lr_warmup)
    method = MgpMethod(module.train(), codes, schedule, precision, dist.device, o.subword_weight)
    metrics = MetricsLog(folder / "metrics.jsonl" if dist.is_main else None, state.step or None)
    run = Run(o, dist, folder, model, method, state, validation, metrics)
    best = Evaluate(
        run.measure, lambda result: result.best_accuracy, state, dist, run.keep_best, run.record, loader.bad
    )
    states = States(state, folder, dist, loader.bad, keep=o.keep_states, on_full=o.disk_full)
    jobs = [
        Job(every(o.valInterval, first=True), best),
        Job(every(o.checkpoint_interval, last=False), run.checkpoint),
        Job(every(o.save_interval or o.valInterval), states),
    ]
    clock, engine = Clock(o.num_iter, step=state.step), Engine(module, optimizer, precision, dist)
    loop = Loop(method, clock, loader, engine, o.grad_clip, note=run.note, jobs=jobs, leave=states, folder=folder)
    return loop, run


@command
def main(argv: Sequence[str] | None = None) -> int:
    o, values = parse_training(argv)
    folder = files.run_folder(o.saved_path, o.exp_name or o.network.name, o.manualSeed)
    with process_group(o.device, o.dist_url, o.local_rank, o.dist_timeout) as dist:
        with dist.failing_together():
            if dist.is_main:
                check_writable(folder, "--saved_path")
        with folder_lock(folder, dist):
            loop, run = build(o, values, dist, folder)
            if loop.run():
                best = run.state.extra["best_accuracy"]
                print(f"end the training; best accuracy {best:.3f}; files in {folder}")
            else:
                print(f"asked to stop: state saved after step {loop.clock.step}; continue with --resume auto")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
