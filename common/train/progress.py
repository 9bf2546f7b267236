"""Old place of what is in `common.train.log` now."""

from common.train.log import EpochLog as EpochLog
