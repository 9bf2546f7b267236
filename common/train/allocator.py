"""Old place of what is in `common.train.distributed` now."""

from common.train.distributed import keep_freed_memory as keep_freed_memory
