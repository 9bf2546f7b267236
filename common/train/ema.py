"""Old place of what is in `common.train.optim` now."""

from common.train.optim import Ema as Ema
from common.train.optim import ema_update as ema_update
