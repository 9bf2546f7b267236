"""Going on; see `common.train.epoch_resume`."""

from __future__ import annotations

from common.train.epoch_resume import numbered_checkpoints, resume

__all__ = ["numbered_checkpoints", "resume"]
