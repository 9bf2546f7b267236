"""The thread that runs the models: pictures of requests that wait together are read in one batch."""

from __future__ import annotations

import queue
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from common.infer.recognizer import Prediction, Recognizer


class ModelFailed(RuntimeError):
    """The model raised an error while it read a batch."""


@dataclass
class Job:
    """Fitted pictures uint8 [H, W, 3] of one request, for one reader, and the promise of their predictions."""

    recognizer: Recognizer
    images: list[np.ndarray]
    attention: bool = False
    done: Future = field(default_factory=Future)

    def joins(self, other: Job) -> bool:
        """Whether both can be read in one batch."""
        return self.recognizer is other.recognizer and self.attention == other.attention


class Batcher(threading.Thread):
    """Takes what waits, up to a batch, reads it and hands the answers back, in the order of arrival."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="batcher")
        self.jobs: queue.Queue[Job | None] = queue.Queue()

    def submit(self, job: Job) -> Future:
        """Queue a job; its future gives a list of predictions or raises `ModelFailed`."""
        self.jobs.put(job)
        return job.done

    def stop(self) -> None:
        """Read the jobs that wait already, then end the thread."""
        self.jobs.put(None)
        self.join(timeout=60)

    def run(self) -> None:
        job = self.jobs.get()
        while job is not None:
            batch, job = self._gather(job)
            self._read(batch)
            job = job or self.jobs.get()

    def _gather(self, first: Job) -> tuple[list[Job], Job | None]:
        """Jobs that fit into one batch with the first, and the next one where it was taken from the queue already."""
        batch, count = [first], len(first.images)
        while count < first.recognizer.batch_size:
            try:
                following = self.jobs.get_nowait()
            except queue.Empty:
                return batch, None
            if following is None:
                self.jobs.put(None)
                return batch, None
            if not following.joins(first):
                return batch, following
            batch.append(following)
            count += len(following.images)
        return batch, None

    def _read(self, batch: list[Job]) -> None:
        """Read some jobs together. An error of the model fails these requests and not the server."""
        batch = [job for job in batch if job.done.set_running_or_notify_cancel()]  # not of clients that have gone
        images = [image for job in batch for image in job.images]
        if not images:
            return
        try:
            recognizer, size = batch[0].recognizer, batch[0].recognizer.batch_size
            found: list[Prediction] = []
            for start in range(0, len(images), size):
                stacked = torch.from_numpy(np.stack(images[start : start + size]))
                found += recognizer.read_batch(stacked, batch[0].attention)
        except Exception as error:
            print(f"a batch failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            for job in batch:
                job.done.set_exception(ModelFailed("the model failed; see the server's log"))
            return
        for job in batch:
            job.done.set_result(found[: len(job.images)])
            found = found[len(job.images) :]
