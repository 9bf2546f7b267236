"""The command that measures `strlab serve` under load and abuse, with small numbers."""

from __future__ import annotations

import json

import pytest

from common.bench import serve_load
from common.data.decode import BadImage, open_picture
from common.infer import shipped

pytest.importorskip("fastapi")


def test_the_picture_bomb_announces_what_it_says() -> None:
    data = serve_load.bomb()
    assert len(data) < 40_000
    with pytest.raises(BadImage):
        open_picture(data)


def test_figures_leave_failed_requests_out_of_the_times() -> None:
    found = serve_load.figures([(200, 0.1), (200, 0.3), (503, 9.0)], 2.0)
    assert found["failed"] == 1 and found["median_ms"] == pytest.approx(200) and found["a_second"] == 1.5


@pytest.mark.slow
@pytest.mark.skipif(not shipped.all_shipped(), reason="no reader ships")
def test_it_measures(capsys: pytest.CaptureFixture) -> None:
    assert serve_load.main(["--clients", "2", "--seconds", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rounds"]["2"]["failed"] == 0 and found["at_once"]["failed"] == 0
    assert found["bombs"]["statuses"] == [413] and found["slow"]["cut"] == serve_load.SLOW
    assert "99th percentile" in serve_load.markdown(found)
