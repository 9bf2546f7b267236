"""The two units of all our timings, measured on the machine and in the run that they are used in.

u: PIL decode + bicubic resize to 32x128 + float tensor of one 100x34 JPEG crop, on one thread: the data path's unit.
v: one image of a fp32 forward + backward of timm's ViT-S (patch 4, 32x128, 97 classes) at batch 8: the models' unit.
Both in seconds an image.
"""

from __future__ import annotations

import functools
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the spread between the quartiles as a share of it."""

    median: float
    spread: float
    calls: int


def measure(call: Callable[[], object], seconds: float = 2.0, least: int = 5, most: int = 400) -> Timing:
    """Time calls until `seconds` have gone by (at least `least` of them), after one call to warm up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < most):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Timing(statistics.median(times), (quartiles[2] - quartiles[0]) / statistics.median(times), len(times))


@functools.cache
def jpeg_crop(text: str = "Reading", size: tuple[int, int] = (100, 34)) -> bytes:
    """One word crop of (width, height) pixels as JPEG: dark text on a noisy gradient, the same bytes every time."""
    width, height = size
    rng = np.random.default_rng(0)
    slope = np.linspace(150, 220, width)[None, :, None] + rng.normal(0, 8, (height, width, 3))
    image = Image.fromarray(slope.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.text((width / 2, height / 2), text, (40, 30, 60), font=ImageFont.load_default(size=height * 0.7), anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode_plainly() -> torch.Tensor:
    """What u times: float [3, 32, 128] in [0, 1]."""
    image = Image.open(io.BytesIO(jpeg_crop())).convert("RGB").resize((128, 32), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def measure_u() -> float:
    """Seconds of one u, on one thread."""

    def twenty() -> None:
        for _ in range(20):
            decode_plainly()

    with threads(1):
        return measure(twenty, seconds=0.4).median / 20


@functools.cache
def reference_step() -> Callable[[], None]:
    """One forward + backward of the reference ViT-S on 8 images (about 140 GFLOP)."""
    import timm

    model = timm.create_model("vit_small_patch16_224", img_size=(32, 128), patch_size=4, num_classes=97).train()
    images = torch.randn(8, 3, 32, 128, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), torch.arange(8)).backward()

    return step


def measure_v(count: int) -> float:
    """Seconds of one v on `count` threads."""
    with threads(count):
        return measure(reference_step(), seconds=2.0, least=3, most=10).median / 8


class threads:
    """Context manager: PyTorch and OpenCV on so many threads."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads(), cv2.getNumThreads()
        torch.set_num_threads(self.count)
        cv2.setNumThreads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before[0])
        cv2.setNumThreads(self.before[1])
