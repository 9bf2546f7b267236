"""What a running training prints and writes: windows of values, console lines, metrics.jsonl, scalars, text logs."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from common.files import DiskFull, cannot_write, json_lines, write_text
from common.train.distributed import Dist
from common.train.loop import Clock, Step

_on_full = {"continue": False, "told": False}


def continue_on_full_disk(wanted: bool) -> None:
    """`--disk_full continue`: a log that cannot be written any more is given up after one printed line."""
    _on_full.update({"continue": wanted, "told": False})


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Around the writing of a log: an error becomes `DiskFull` or `UserError`, one line that names the file.

    With `continue_on_full_disk` a full disk is reported once and the line is lost; the training continues.
    """
    try:
        yield
    except OSError as error:
        told = cannot_write(error, path)
        if not (_on_full["continue"] and isinstance(told, DiskFull)):
            raise told from None
        if not _on_full["told"]:
            _on_full["told"] = True
            print(f"{told}; logs are not written while the disk is full (--disk_full continue)", flush=True)


class Window:
    """The last values of one quantity, and the mean of all of them."""

    def __init__(self, size: int = 20) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.total, self.count = 0.0, 0

    def add(self, value: float, n: int = 1) -> None:
        """Take one value that stands for `n` samples."""
        self.values.append(value)
        self.total += value * n
        self.count += n

    @property
    def last(self) -> float:
        return self.values[-1] if self.values else float("nan")

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def median(self) -> float:
        # of an even number the lower one, as torch.median has it and the published meters print it
        return float(sorted(self.values)[(len(self.values) - 1) // 2]) if self.values else float("nan")

    @property
    def overall(self) -> float:
        return self.total / self.count if self.count else float("nan")


class Meters:
    """Named windows with throughput.

    Values may be tensors: they are kept as they are and turned into numbers only when somebody looks, so that adding a
    loss does not make the device wait.
    """

    def __init__(self, window: int = 20) -> None:
        self.size = window
        self.windows: dict[str, Window] = {}
        self._pending: list[tuple[str, torch.Tensor, int]] = []
        self.images, self.waited, self.started = 0, 0.0, time.perf_counter()
        self._window_images: deque[tuple[float, int, float]] = deque(maxlen=window + 1)

    def add(self, n: int = 1, **values: float | torch.Tensor) -> None:
        """Add one value to each named window."""
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                self._pending.append((name, value.detach(), n))
            else:
                self._window(name).add(float(value), n)

    def count(self, images: int, waited: float) -> None:
        """Note a step of so many images that waited so many seconds for its data."""
        self.images += images
        self.waited += waited
        self._window_images.append((time.perf_counter(), self.images, self.waited))

    def pause(self) -> None:
        """Something else than training took time (an evaluation): throughput starts a new window."""
        self._window_images.clear()

    def _window(self, name: str) -> Window:
        return self.windows.setdefault(name, Window(self.size))

    def __getitem__(self, name: str) -> Window:
        self._flush()
        return self._window(name)

    def _flush(self) -> None:
        """Turn pending tensors into numbers, with one transfer for each device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        numbers = torch.stack([value.float().reshape(()) for _, value, _ in pending]).tolist()
        for (name, _, n), number in zip(pending, numbers):
            self._window(name).add(number, n)

    @property
    def throughput(self) -> float:
        """Images a second of this process over the window."""
        return self._rate()[0]

    @property
    def data_wait(self) -> float:
        """Share of the window's time, in %, spent waiting for data."""
        return self._rate()[1]

    def _rate(self) -> tuple[float, float]:
        if len(self._window_images) < 2:
            return 0.0, 0.0
        (t0, i0, w0), (t1, i1, w1) = self._window_images[0], self._window_images[-1]
        spent = max(t1 - t0, 1e-9)
        return (i1 - i0) / spent, 100.0 * (w1 - w0) / spent

    def means(self, overall: bool = False) -> dict[str, float]:
        """Window means (or means of everything since the start) by name."""
        self._flush()
        return {name: window.overall if overall else window.mean for name, window in self.windows.items()}

    def line(self, step: int, total: int, names: list[str] | None = None) -> str:
        """One console line: place, window means, throughput, data wait, memory, remaining time."""
        means = self.means()
        chosen = [f"{name} {means[name]:.4g}" for name in (names or means) if name in means]
        rate, wait = self._rate()
        speed = f"{rate:.1f} img/s" if rate else "- img/s"
        return "  ".join(
            [
                f"[{step:>{len(str(total))}}/{total}]",
                *chosen,
                speed,
                f"data wait {wait:.0f}%",
                *memory_note(),
                f"eta {self._eta(step, total)}",
            ]
        )

    def _eta(self, step: int, total: int) -> str:
        if len(self._window_images) < 2:
            return "-"
        first, last = self._window_images[0], self._window_images[-1]
        seconds = int((last[0] - first[0]) / (len(self._window_images) - 1) * max(total - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def memory_note() -> list[str]:
    """["mem 1234 MB"]: peak of the CUDA device, or resident peak of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return [f"mem {torch.cuda.max_memory_allocated() / 2**20:.0f} MB"]
    try:
        import resource  # not on Windows
    except ImportError:
        return []
    return [f"mem {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"]


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line; a resumed run drops the lines of steps that it will do again."""

    def __init__(self, path: str | Path | None, resume_step: int | None = None) -> None:
        self.path = Path(path) if path else None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resume_step is not None:
            rows = [(line, row.get("step", 0)) for line, row in json_lines(self.path)]
            kept = [line for line, step in rows if isinstance(step, (int, float)) and step <= resume_step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        if self.path is None:
            return
        with logging_to(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({key: _number(value) for key, value in values.items()}, ensure_ascii=False) + "\n")


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) else value


class ScalarWriter:
    """tensorboardX scalars and images; on other ranks than 0 (folder None) every call does nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        self.writer = None
        if folder is not None:
            from tensorboardX import SummaryWriter

            with logging_to(Path(folder)):
                self.writer = SummaryWriter(str(folder))
                worker = self.writer.file_writer.event_writer._worker
                worker._record_writer = EventGuard(worker._record_writer, Path(folder))

    def scalar(self, name: str, value: float | torch.Tensor, step: int) -> None:
        """One point of a curve."""
        if self.writer is not None:
            self.writer.add_scalar(name, float(value), step)

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Several curves in one plot."""
        if self.writer is not None:
            self.writer.add_scalars(group, values, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture uint8 [h, w, 3]."""
        if self.writer is not None:
            self.writer.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        if self.writer is not None:
            with logging_to(Path(self.writer.logdir)):
                self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            with logging_to(Path(self.writer.logdir)):
                self.writer.close()


class EventGuard:
    """Writes TensorBoard's events from its thread. After an error that thread would end and the next `flush` wait for
    ever; here the error is reported once, and no more events are written."""

    def __init__(self, writer: Any, folder: Path) -> None:
        self.writer, self.folder, self.failed = writer, folder, False

    def _try(self, write: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            write()
        except OSError as error:
            self.failed = True
            print(f"{cannot_write(error, self.folder)}; the training continues without TensorBoard", flush=True)

    def write_event(self, event: Any) -> None:
        """Write one event, in TensorBoard's thread."""
        self._try(lambda: self.writer.write_event(event))

    def flush(self) -> None:
        """Flush the file, in TensorBoard's thread."""
        self._try(self.writer.flush)


Item = TypeVar("Item")


class EpochLog:
    """Prints `header  [ i/N]  eta: …  name: recent (global)  time: …  data: …  max mem: …` every so many items.

    Args:
        header: what is printed in front, for example "Test:"; training steps have "Epoch: [3]".
        every: items between lines; the last item always has one.
        recent: what is shown of the last 20 values, their mean or their median.
        last_value: meters of which only the last value is shown, with 6 decimals (learning rates).
        stamp: begin each line with [YYYY-mm-dd HH:MM:SS].
        processes: of the run, which read as many images in a step.
    """

    by_rank = True  # each process keeps sums of its own in a training state

    def __init__(
        self,
        header: str,
        every: int = 100,
        recent: Literal["mean", "median"] = "mean",
        last_value: Iterable[str] = ("lr", "min_lr"),
        stamp: bool = False,
        processes: int = 1,
    ) -> None:
        self.processes = processes
        self.header, self.every, self.recent, self.stamp = header, every, recent, stamp
        self.last_value = set(last_value)
        self.meters = Meters()
        self.epoch: int | None = None  # of training steps
        self.names: dict[str, None] = {}  # in order of first appearance
        self.iteration, self.waiting = Window(), Window()

    def add(self, n: int = 1, **values: float | torch.Tensor) -> None:
        """Add one value, standing for `n` samples, to each named meter."""
        self.names.update(dict.fromkeys(values))
        self.meters.add(n, **values)

    def over(self, items: Iterable[Item], total: int, start: int = 0) -> Iterator[tuple[int, Item]]:
        """(number, item) of each item; numbers begin at `start` and `total` is that of the whole epoch."""
        asked = time.perf_counter()
        for number, item in enumerate(items, start):
            self.waiting.add(time.perf_counter() - asked)
            yield number, item
            self.iteration.add(time.perf_counter() - asked)
            if number % self.every == 0 or number == total - 1:
                print(self.line(number, total), flush=True)
            asked = time.perf_counter()
        self.print_times()

    def step(self, clock: Clock, done: Step, *rows: Mapping[str, float | torch.Tensor]) -> None:
        """Add the values of a training step, one row after another; the first step of an epoch begins anew.

        Prints a line where one is due, and the times after the epoch's last step.
        """
        epoch, number = divmod(clock.step - 1, clock.per_epoch)
        if epoch != self.epoch:
            self.__init__("", self.every, self.recent, self.last_value, self.stamp, self.processes)
        self.epoch, self.header = epoch, f"Epoch: [{epoch}]"
        for values in rows:
            self.add(**values)
        self.meters.count(done.images * self.processes, done.waited)
        self.waiting.add(done.waited)
        self.iteration.add(done.seconds)
        last = number == clock.per_epoch - 1
        if number % self.every == 0 or last:
            print(self.line(number, clock.per_epoch), flush=True)
        if last:
            self.print_times()

    def print_times(self) -> None:
        """Time of all items, and of one."""
        spent, count = self.iteration.total, max(self.iteration.count, 1)
        print(f"{self.header} Total time: {hours(spent)} ({spent / count:.4f} s / it)", flush=True)

    def line(self, number: int, total: int) -> str:
        """The line of item `number` of `total`."""
        width = len(str(total))
        parts = [f"[{datetime.datetime.now():%Y-%m-%d %H:%M:%S}]"] if self.stamp else []
        parts += [self.header, f"[{number:>{width}}/{total}]"]
        parts.append(f"eta: {hours(self.iteration.overall * (total - number - 1))}")
        parts += [*self.fields(), f"time: {self.iteration.mean:.4f}", f"data: {self.waiting.mean:.4f}"]
        if torch.cuda.is_available():
            parts.append(f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        return "  ".join(parts)

    def fields(self) -> list[str]:
        """`name: value` of every meter."""
        return [f"{name}: {self._shown(name)}" for name in self.names]

    def _shown(self, name: str) -> str:
        window = self.meters[name]
        if name in self.last_value:
            return f"{window.last:.6f}"
        recent = window.mean if self.recent == "mean" else window.median
        return f"{recent:.4f} ({window.overall:.4f})"

    def averages(self, dist: Dist | None = None) -> dict[str, float]:
        """Mean of every meter over its samples on all ranks (a collective); prints `Averaged stats: …`."""
        sums = {name: (self.meters[name].total, self.meters[name].count) for name in self.names}
        everywhere = dist.gather(sums) if dist is not None else [sums]
        print("Averaged stats: " + "  ".join(self.fields()), flush=True)
        result = {}
        for name in self.names:
            parts = [part[name] for part in everywhere if name in part]
            result[name] = sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Sums so far, so that a resumed epoch averages over all of it."""
        sums = {name: [self.meters[name].total, self.meters[name].count] for name in self.names}
        return {"epoch": self.epoch, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, sums = state["epoch"], state["sums"]
        self.names.update(dict.fromkeys(sums))
        for name, (total, count) in sums.items():
            window = self.meters[name]
            window.total, window.count = float(total), int(count)


def hours(seconds: float) -> str:
    """Seconds as H:MM:SS ("0:00:00" for a time that is not known yet)."""
    return str(datetime.timedelta(seconds=int(seconds) if seconds == seconds else 0))


DASHES = "-" * 80
TABLE_HEAD = f"{'Ground Truth':25s} | {'Prediction':25s} | Confidence Score & T/F"


def append(path: Path, text: str) -> None:
    """Append text; the folder is made."""
    with logging_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def truncate_log(path: Path, epoch: int) -> None:
    """Drop the lines of log.txt, one JSON object an epoch, that belong to `epoch` or later and are written again."""
    if not path.is_file():
        return
    rows = [(line, row.get("epoch")) for line, row in json_lines(path)]
    kept = [line + "\n" for line, number in rows if isinstance(number, (int, float)) and number < epoch]
    write_text(path, "".join(kept))


def options_block(options: Mapping[str, Any]) -> str:
    """`------------ Options -------------`, a `key: value` line each, a dashed line, a line feed."""
    lines = [f"{key}: {value}" for key, value in options.items()]
    return "\n".join(["------------ Options -------------", *lines, "---------------------------------------", ""])


def sources_block(
    root: str, sources: Sequence[tuple[str, Mapping[str, int]]], ratios: Sequence[object], prefix: str = ""
) -> list[list[str]]:
    """Lines about the training data: one list for what was asked for, then one for each source.

    `sources`: (name, samples of each LMDB by its path below `root`). `prefix` stands before two of the names in
    MGP-STR's and SIGA-T's form. The caller puts dashed lines between the lists.
    """
    names = [name for name, _ in sources]
    blocks = [[f"dataset_root: {root}", f"{prefix}select_data: {names}", f"{prefix}batch_ratio: {list(ratios)}"]]
    for name, folders in sources:
        lines = [f"sub-directory:\t/{path}\t num samples: {count}" for path, count in folders.items()]
        blocks.append([f"dataset_root:    {root}\t dataset: {name}", *lines])
    return blocks


def usage_lines(name: str, samples: int, usage: str, batch_size: int, ratio: float, share: int) -> list[str]:
    """What one source gives to a run and to each batch, in MGP-STR's and SIGA-T's form."""
    used = int(samples * float(usage))
    return [
        f"num total samples of {name}: {samples} x {usage} (total_data_usage_ratio) = {used}",
        f"num samples of {name} per batch: {batch_size} x {float(ratio)} (batch_ratio) = {share}",
    ]


def sample_table(samples: Sequence[tuple[str, str, float]]) -> str:
    """Truth, prediction, confidence and whether both are equal, framed by dashes, without a line feed at the end."""
    rows = [f"{truth:25s} | {read:25s} | {sure:0.4f}\t{truth == read}" for truth, read, sure in samples]
    return "\n".join([DASHES, TABLE_HEAD, DASHES, *rows, DASHES])
