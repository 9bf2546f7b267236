"""Old place of what is in `common.train.log` now."""

from common.train.log import Meters as Meters
from common.train.log import MetricsLog as MetricsLog
from common.train.log import ScalarWriter as ScalarWriter
from common.train.log import Window as Window
from common.train.log import memory_note as memory_note
