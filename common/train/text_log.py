"""Old place of what is in `common.train.log` now."""

from common.train.log import DASHES as DASHES
from common.train.log import TABLE_HEAD as TABLE_HEAD
from common.train.log import append as append
from common.train.log import options_block as options_block
from common.train.log import sample_table as sample_table
