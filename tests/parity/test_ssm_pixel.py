"""SSM's pixel tasks against the published code: predictions, loss, gradients, PSNR, SSIM, IoU."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from projects.ssm.model.pixel import VARIANTS, UniPixelViT, iou, psnr, ssim
from tests.parity import harness
from tests.parity.noise import Outcome, gradient_norms, measure, without_dropout
from tests.parity.recipes import images
from tests.parity.test_ssm_models import check_names, compare, filler  # noqa: F401


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = harness.case_files(metafunc.config.getoption("--goldens"), "ssm")
    chosen = [path for path in paths if "pixel_type" in harness.load(path).meta]
    metafunc.parametrize("path", chosen, ids=lambda path: path.stem)


def test_pixel_model(path, filler) -> None:  # noqa: F811
    case = harness.load(path)
    meta = case.meta
    model = UniPixelViT(meta["pixel_type"], **VARIANTS[meta["model"]])
    tables = model.pos_embed.clone()
    check_names(model, case)
    filler.fill_module(model)
    with torch.no_grad():
        model.pos_embed.copy_(tables)
        model.decoder_pos_embed.copy_(tables)
    first, second = meta["inputs"].split(";")
    x, truth = images(filler, first), images(filler, second)
    if threshold := re.search(r"> ([\d.]+)", second):
        truth = (truth > float(threshold.group(1))).float()

    def compute(model: UniPixelViT, x: torch.Tensor) -> Outcome:
        predicted = model(x)
        loss = model.loss(predicted, truth.to(x.dtype), meta["norm_pix_loss"])
        return Outcome({"pred": predicted}, {"loss": loss}, {"loss": gradient_norms(model, loss)})

    measured = measure(compute, without_dropout(model), {"x": x})
    compare(case, measured, "pred")
    for name in ("loss", "mse"):  # the loss is the mean squared error, unless its targets are standardised
        if name in meta and (name == "loss" or not meta["norm_pix_loss"]):
            measured.check_scalar("loss", meta[name])
    if "grad_norm" in meta:
        measured.check_gradients("loss", meta["grad_norm"])
    check_figures(model.pictures(torch.from_numpy(measured.exact.tensors["pred"]).float()), truth, meta)


def check_figures(pictures: torch.Tensor, truth: torch.Tensor, meta: dict) -> None:
    if "psnr" in meta:
        assert float(psnr(pictures, truth)) == pytest.approx(meta["psnr"], abs=1e-4)
        assert float(ssim(pictures, truth)) == pytest.approx(meta["ssim"], abs=1e-5)
        assert float(ssim(truth, truth)) == pytest.approx(meta["ssim_self"], abs=1e-5)
        assert float(psnr(truth, truth)) == pytest.approx(meta["psnr_self"], abs=1e-4)
    if "ssim_blur" in meta:  # the truth against its mean over 3x3 pixels, zeros outside
        blurred = F.avg_pool2d(truth, 3, stride=1, padding=1)
        assert float(ssim(blurred, truth)) == pytest.approx(meta["ssim_blur"], abs=1e-5)
    for threshold, value in meta.get("iou", {}).items():
        assert float(iou(pictures, truth, float(threshold))) == pytest.approx(value, abs=1e-4)
    if "iou_4d_as_called" in meta:
        assert float(iou(pictures, truth, columns=True)) == pytest.approx(meta["iou_4d_as_called"], abs=1e-4)
        empty = torch.zeros_like(truth)
        assert float(iou(empty, empty)) == meta["iou_empty"]
