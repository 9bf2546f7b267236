"""Training states of SIGA equal, bit for bit, those recorded before the training code was rewritten.

`states.json` holds their fingerprints; see `tests/common/digests.py`. To record after a change that is meant to change
the training: STRLAB_RECORD_STATES=1 python -m pytest tests/siga/test_states.py --slow
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.train.checkpoint import load
from projects.siga import train
from tests.common import digests
from tests.common.processes import run, torchrun
from tests.siga.corpus import command, write_corpus

STORED = Path(__file__).with_name("states.json")
# case: model, flags, step at which the run is stopped and resumed (0: never), steps
CASES = {
    "r-accumulate-aug": ("TRBA_small", ["--Aug", "--accumulate", 2], 0, 4),
    "r-resume": ("TRBA_small", ["--Aug", "--grad_clip", 0.5], 5, 8),
    "s-resume-aug": ("TSBA_small", ["--Aug"], 2, 4),
    "s-fractions": ("TSBA_small", ["--schedule", "0.5", "--lr", 0.001], 0, 8),
    "t-resume-aug-evaluation": ("char_str_small", ["--isrand_aug", "--scheduler", "--val_interval", 3], 5, 8),
    "t-adam": ("char_str_small", ["--adam", "--lr", 0.001, "--accumulate", 2, "--grad_clip", 1], 0, 4),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def state(folder: Path, step: int) -> dict:
    """What decides how a run continues, by part."""
    found = load(next((folder / "saved_models").glob(f"*/training_state-{step:09d}.pth")))
    parts = {name: found[name] for name in ("model", "optimizer", "rng", "step")}
    extra = {name: found["extra"][name] for name in ("best_accuracy", "loss_sum", "loss_count")}
    return {**parts, "sampler": found["parts"]["sampler"], "extra": extra}


def arguments(case: str, corpus: Path, out: Path) -> tuple[list[list[str]], int]:
    """The command lines of a case, in order, and its last step."""
    model, flags, stop, steps = CASES[case]
    evaluated = ["--eval_data", corpus / "evaluation"] if "evaluation" in case else []
    words = command(corpus, out, model, *flags, *evaluated, "--num_iter", steps, "--keep_states", 0)
    whole = [*words, "--save_interval", "1"]
    return [whole, [*words, "--resume", str(stop)]] if stop else [whole], steps


@pytest.mark.parametrize("case", CASES)
def test_one_process(case: str, corpus: Path, tmp_path: Path) -> None:
    first, *second = arguments(case, corpus, tmp_path / "a")[0]
    steps = CASES[case][3]
    assert train.main(first) == 0
    digests.check(STORED, case, state(tmp_path / "a", steps))
    if second:
        stop = next((tmp_path / "a").rglob(f"training_state-{CASES[case][2]:09d}.pth"))
        again, _ = arguments(case, corpus, tmp_path / "b")
        assert train.main([*again[1][:-1], str(stop)]) == 0
        digests.check(STORED, case, state(tmp_path / "b", steps))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["r-resume", "s-resume-aug", "t-resume-aug-evaluation"])
def test_two_processes(case: str, corpus: Path, tmp_path: Path) -> None:
    (first, _), steps = arguments(case, corpus, tmp_path / "a")
    done = run(*torchrun(), "projects/siga/train.py", *first)
    assert done.returncode == 0, done.stderr[-2000:]
    digests.check(STORED, f"{case}-two", state(tmp_path / "a", steps))
    stop = next((tmp_path / "a").rglob(f"training_state-{CASES[case][2]:09d}.pth"))
    again, _ = arguments(case, corpus, tmp_path / "b")
    done = run(*torchrun(), "projects/siga/train.py", *again[1][:-1], stop)
    assert done.returncode == 0, done.stderr[-2000:]
    digests.check(STORED, f"{case}-two", state(tmp_path / "b", steps))
