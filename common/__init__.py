"""Shared library for scene text recognition research.

Before torch is loaded, OpenMP's threads are set to spin for a moment only when they wait for each other. By default
they spin for about a millisecond: where another process runs on one of two cores, training then falls to a fifth of
what one thread alone reaches (12 to 17 images a second in place of 71; 50 to 56 with this setting, on two cores
under load). A value that is already in the environment is kept.
"""

import os
import sys

SPIN = "2000"  # rounds of a waiting loop, some microseconds
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)

__version__ = "0.1.0"
