"""Old place of what is in `common.train.session` now."""

from common.train.session import check_room as check_room
from common.train.session import check_writable as check_writable
from common.train.session import command_line as command_line
from common.train.session import precision_note as precision_note
from common.train.session import settle_amp as settle_amp
from common.train.session import state_bytes as state_bytes
