"""Old place of what is in `common.train.state` now."""

from common.train.state import share_bad as share_bad
