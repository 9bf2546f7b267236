"""Old place of what is in `common.train.state` now."""

from common.train.state import STATES as STATES
from common.train.state import is_state as is_state
from common.train.state import newest_state as newest_state
from common.train.state import same_options as same_options
from common.train.state import save_state as save_state
