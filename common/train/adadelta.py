"""Old place of what is in `common.train.optim` now."""

from common.train.optim import PIECE as PIECE
from common.train.optim import Adadelta as Adadelta
