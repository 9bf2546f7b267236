"""Old place of what is in `common.train.loop` now."""

from common.train.loop import StopRequest as StopRequest
