"""Figures of the pixel tasks over a set of pairs, pictures of them, and what counts as best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.loader import reading_loader
from common.errors import UserError
from common.models.images import to_float_nchw
from projects.ssm.model.pixel import UniPixelViT, iou, psnr, ssim
from projects.ssm.pixel.data import Pairs

SHOWN = 8  # pictures of --vis


def views(images: torch.Tensor, model: UniPixelViT) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `[B, 2 * H, W, 3]` -> input `[B, 3, H, W]` and target `[B, channels, H, W]`, both in [0, 1]."""
    given, wanted = to_float_nchw(images).chunk(2, dim=2)
    return given, wanted[:, : model.channels]


@torch.no_grad()
def measure(
    model: UniPixelViT,
    pairs: Pairs,
    kind: str,
    batch_size: int,
    workers: int,
    device: torch.device,
    shown: Path | None = None,
) -> dict[str, float]:
    """MSE, and PSNR and SSIM ("SR") or IoU by image and by column ("Seg"), over all pairs that can be read; the others
    are counted in a line. Puts the model into evaluation mode. With `shown`, the first pictures are written into that
    folder.
    """
    model.eval()
    sums: dict[str, float] = {}
    count = 0
    batches = reading_loader(pairs, batch_size, workers)
    for batch in batches:
        given, wanted = views(batch.images.to(device), model)
        predicted = model(given)
        pictures = model.pictures(predicted)
        figures = {"mse": model.loss(predicted, wanted)}
        if kind == "SR":
            figures |= {"psnr": psnr(pictures, wanted), "ssim": ssim(pictures, wanted)}
        else:
            figures |= {"iou": iou(pictures, wanted), "iou_columns": iou(pictures, wanted, columns=True)}
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
        if shown and not count:
            show(shown, given, pictures, wanted)
        count += len(batch)
    if not count:
        raise UserError("--eval_data_path: none of its pairs can be read")
    if skipped := batches.bad.rows():
        first = skipped[0]
        print(f"evaluation: {len(skipped)} pairs skipped, first {first.path} {first.number}: {first.reason}")
    return {name: value / count for name, value in sums.items()}


def show(folder: Path, *columns: torch.Tensor) -> None:
    """`<index>.jpg`: input, prediction, truth, one above the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(min(SHOWN, len(columns[0]))):
        parts = [column[index].clamp(0, 1).expand(3, -1, -1) for column in columns]
        pixels = (torch.cat(parts, dim=1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.jpg")


def best_name(kind: str, figures: dict[str, float], best: dict[str, float], epoch: int) -> str | None:
    """The name of the best checkpoint if any figure improves, by which `best` is brought up to date."""
    names = ("psnr", "ssim") if kind == "SR" else ("iou",)
    better = [name for name in names if figures[name] > best.get(name, -1.0)]
    best.update({name: figures[name] for name in better})
    if not better:
        return None
    shown = {"psnr": "psnr", "ssim": "ssim", "iou": "IoU"}
    return "".join(f"{shown[name]}-{figures[name]:.4f}-" for name in names) + f"checkpoint-{epoch}.pth"
