"""The lists of bad samples of several processes, put together."""

from __future__ import annotations

from common.data.bad import BadSamples
from common.train.distributed import Dist


def share_bad(register: BadSamples, dist: Dist) -> None:
    """Every rank learns what any rank has met; rank 0, whose register has the file, writes it. Collective.

    Between two calls a rank judges what it knows. Raises `UserError` on all ranks where the lists together are above
    the limit.
    """
    if not dist.distributed:
        return
    found = dist.gather(register.rows())
    with dist.failing_together():
        register.add(row for rows in found for row in rows)
