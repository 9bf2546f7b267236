"""Options and fixtures that every test folder shares."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    goldens = ROOT / "tests" / "goldens"
    parser.addoption("--goldens", type=Path, default=goldens, help="folder of measured numbers")
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run `make test-all`")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test and its fixtures draw the same numbers, whatever ran before in this process."""
    import torch  # not before `common`, which sets OpenMP for it

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drill 12: nothing here may need the network; only this machine's own addresses can be reached."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
            raise OSError(f"the network is switched off in tests: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real crops (`STRLAB_REAL_DATA`); the test is skipped where it is not given."""
    folder = os.environ.get("STRLAB_REAL_DATA")
    if not folder:
        pytest.skip("STRLAB_REAL_DATA is not set")
    return Path(folder)
