"""Drill 8: a NaN planted in the input or in the gradient of a real training run of each project, at its third update.

Nothing may be stepped after it, the command ends with status 2 and one line, and the batch stands in a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.errors import UserError
from projects.dig import run_class_finetuning, run_mae_pretraining_moco
from projects.mgpstr import train_final_dist
from projects.siga import train
from projects.ssm.finetune.run import run as run_ssm
from projects.ssm.pretrain import sim_pretrain
from tests.dig import runs as dig_runs
from tests.mgpstr import corpus as mgpstr_corpus
from tests.siga import corpus as siga_corpus
from tests.ssm import runs as ssm_runs

HEALTHY = 2  # updates before the NaN
LAYERS = (nn.Conv2d, nn.Linear)


@contextmanager
def planted(where: str) -> Iterator[list[int]]:
    """From the third update on, every training convolution and linear layer sees, or sends back, NaN.

    Yields the list that holds the number of optimizer steps.
    """
    steps = [0]

    def due(layer: nn.Module) -> bool:
        return steps[0] >= HEALTHY and isinstance(layer, LAYERS) and layer.training and torch.is_grad_enabled()

    def before(layer: nn.Module, inputs: tuple) -> tuple | None:
        return (inputs[0] * float("nan"), *inputs[1:]) if where == "input" and due(layer) else None

    def after(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if where == "gradient" and due(layer) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def count(*_: object) -> None:
        steps[0] += 1

    handles = [
        hooks.register_module_forward_pre_hook(before),
        hooks.register_module_forward_hook(after),
        register_optimizer_step_post_hook(count),
    ]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def siga(folder: Path) -> int:
    return train.main(siga_corpus.command(siga_corpus.write_corpus(folder / "data"), folder / "out"))


def mgpstr(folder: Path) -> int:
    return train_final_dist.main(mgpstr_corpus.command(mgpstr_corpus.write_corpus(folder / "data"), folder / "out"))


def dig_pretrain(folder: Path) -> int:
    return run_mae_pretraining_moco.main(dig_runs.pretrain(dig_runs.write_corpus(folder / "data"), folder / "out"))


def dig_finetune(folder: Path) -> int:
    return run_class_finetuning.main(dig_runs.finetune(dig_runs.write_corpus(folder / "data"), folder / "out"))


def ssm_pretrain(folder: Path) -> int:
    return sim_pretrain.main(ssm_runs.pretrain(ssm_runs.write_corpus(folder / "data"), folder / "out"))


def ssm_finetune(folder: Path) -> int:
    try:
        run_ssm(ssm_runs.configuration(ssm_runs.write_corpus(folder / "data")), folder / "out")
    except UserError as error:
        print(error)
        return 2
    return 0


@pytest.mark.parametrize("where", ["input", "gradient"])
@pytest.mark.parametrize("project", [siga, mgpstr, dig_pretrain, dig_finetune, ssm_pretrain, ssm_finetune])
def test_stops_before_the_step(project: Callable[[Path], int], where: str, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(
        "logging.raiseExceptions", False
    )  # lightning's handler may hold an earlier test's closed stream
    with planted(where) as steps:
        status = project(tmp_path)
    text = "".join(capfd.readouterr())
    assert status == 2 and steps[0] == HEALTHY, text
    assert "nothing was stepped" in text and "Traceback" not in text, text
    (note,) = tmp_path.rglob("non_finite_*.json")
    content = json.loads(note.read_text("utf-8"))
    assert content["batch"] and content["what"] == ("loss" if where == "input" else "gradient norm"), content
