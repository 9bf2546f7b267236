"""Old place of what is in `common.train.state` now."""

from common.train.state import rng_state as rng_state
from common.train.state import seed_everything as seed_everything
from common.train.state import set_rng_state as set_rng_state
