"""What an optimisation step needs beside its model, and the question that all ranks answer before they step."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.train.distributed import Dist
from common.train.optim import Precision, check_finite
from common.train.schedule import Schedule
from common.train.signals import StopRequest


@dataclass
class StepperBase:
    """Base of a project's step.

    Attributes:
        optimizer, schedule, precision, options, dist: of the run.
        folder: where the sample numbers of a batch with a non-finite loss are written.
        stop: asked together with the finiteness of the loss, in one collective; `stopping` is the answer.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    options: argparse.Namespace
    dist: Dist
    folder: Path
    stop: StopRequest
    stopping: bool = field(default=False, init=False)

    def guard(self, loss: torch.Tensor, step: int, samples: torch.Tensor) -> None:
        """Before the backward pass all ranks learn whether a loss is not finite, and whether one was asked to stop.

        Raises `NonFinite` on a rank whose loss it is (its samples are written down), SystemExit on the others.
        """
        bad, self.stopping = self.dist.any_of(not bool(torch.isfinite(loss.detach())), self.stop.requested)
        if not bad:
            return
        check_finite(loss, step=step, batch_ids=samples, folder=self.folder)
        raise SystemExit(2)  # another rank's loss: that rank says which

    def guard_gradient(self, norm: torch.Tensor | None, step: int, samples: torch.Tensor) -> None:
        """After clipping: a gradient norm that is not finite stops the run (fp16's scaler skips such steps itself)."""
        if norm is not None and self.precision.amp != "fp16":
            check_finite(norm, step=step, what="gradient norm", batch_ids=samples, folder=self.folder)
