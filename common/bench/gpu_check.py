"""`strlab gpu-check`: what a machine with a GPU should be asked first, within a few minutes, as one JSON file.

(a) checks: bf16 and fp16 steps agree with fp32, a compiled model agrees with the eager one, training resumes exactly,
one process over NCCL trains as without it, the loader feeds the device; (b) throughput: training and reading of ViTs
of the published sizes, with the share of the processor's peak that they reach (MFU), and reading of every registered
recogniser; (c) with the time that is left, the default reader is trained further on words that all cores render, in
bf16; its weights are written next to the JSON. Without a GPU, or with `--small`, the same code runs with tiny sizes,
which shows that it works and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from common import registry
from common.data.synth.options import SynthOptions
from common.errors import UserError
from common.files import write_text
from common.infer import environment, shipped
from common.models.compact import CompactReader
from common.reader import train as reader
from common.reader.data import RenderedWords, collate, validation_words

# Dense bf16 operations a second: as the makers state them; for the H200 what matrix products reach in practice.
PEAKS = {"H200": 790e12, "H100": 990e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
VITS = {"ViT-Ti/4": "vit_tiny_patch16_224", "ViT-S/4": "vit_small_patch16_224", "ViT-B/4": "vit_base_patch16_224"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("gpu-check", help="checks and throughput of a GPU, as JSON", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check"), metavar="FOLDER",
                        help="where the JSON file is written (default: outputs/gpu-check)")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default 9)")
    parser.add_argument("--small", action="store_true", help="tiny sizes (always without a GPU)")
    parser.add_argument("--validation", type=Path, nargs="*", default=[], metavar="FOLDER",
                        help="real word sets whose validation tenth part (c) reads after training")  # fmt: skip
    parser.add_argument("--train-share", type=float, default=0.4, help="share of the time that is kept for part (c)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.minutes <= 0 or not 0 <= args.train_share < 1:
        raise UserError("--minutes must be above 0 and --train-share in [0, 1)")
    began, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = args.small or device.type == "cpu"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "small": small,
        "environment": environment.describe(),
        "checks": {},
        "throughput": {},
        "skipped": [],
    }
    until = began + 60 * args.minutes * (1 - args.train_share)
    for name, part in (*checks(device, small).items(), *throughputs(device, small).items()):
        group = "throughput" if ":" in name else "checks"
        if time.monotonic() > until:
            result["skipped"].append(name)
            continue
        result[group][name] = _attempt(part)
        print(f"{name}: {json.dumps(result[group][name])}", flush=True)
        write_text(args.out / "gpu-check.json", json.dumps(result, indent=1))  # a run that is cut off leaves its part
    left = 60 * args.minutes - (time.monotonic() - began)
    if args.train_share:
        result["training"] = _attempt(lambda: train_further(args.out, device, small, left, tuple(args.validation)))
        print(f"training: {json.dumps(result['training'])}", flush=True)
    else:
        result["skipped"].append("training")
    result["seconds"] = round(time.monotonic() - began, 1)
    print(f"written: {write_text(args.out / 'gpu-check.json', json.dumps(result, indent=1))}")
    rows = [*result["checks"].items(), *result["throughput"].items(), ("training", result.get("training", {}))]
    failed = [name for name, row in rows if "error" in row]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The part's figures, or its error: one failure must not cost the others."""
    try:
        return part()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error}"[:300], "at": f"{Path(place.filename).name}:{place.lineno}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def checks(device: torch.device, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Part (a), by name."""
    kinds = {"bf16 step": torch.bfloat16, **({"fp16 step": torch.float16} if device.type == "cuda" else {})}
    return {
        **{name: lambda kind=kind: half_step(device, kind) for name, kind in kinds.items()},
        "compile": lambda: compiled(device, small),
        "exact resume": lambda: exact_resume(device),
        "one process over NCCL": lambda: one_process(device),
        "loader": lambda: loader_rate(device, small),
    }


def half_step(device: torch.device, kind: torch.dtype) -> dict[str, Any]:
    """Loss and gradient of a reader in half precision against fp32: the loss within 2 %, the gradient's cosine > 0.98.

    Raises `RuntimeError` where they are not.
    """
    model, images = _reader(device), _images(device, 8)
    found = {}
    for name, enabled in (("full", False), ("half", True)):
        with torch.autocast(device.type, kind, enabled=enabled):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), _targets(device, 8).flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found[name] = loss.item(), torch.cat([g.float().flatten() for g in gradients])
    relative = abs(found["half"][0] / found["full"][0] - 1)
    cosine = nn.functional.cosine_similarity(found["half"][1], found["full"][1], dim=0).item()
    if relative > 0.02 or cosine < 0.98:
        raise RuntimeError(f"loss differs by {relative:.2%}, cosine of the gradients {cosine:.4f}")
    return {"loss_difference": relative, "gradient_cosine": cosine}


def compiled(device: torch.device, small: bool) -> dict[str, Any]:
    """`torch.compile` against eager: the same logits, and how much faster. Compiling needs a C++ compiler on a CPU."""
    model = _reader(device).eval()
    images = _images(device, 4 if small else 256)
    fast = torch.compile(model, backend="eager" if small else "inductor")
    with torch.inference_mode():
        difference = (fast(images) - model(images)).abs().max().item()
        times = [_seconds(lambda module=module: module(images), device, 3 if small else 20) for module in (model, fast)]
    if difference > 1e-2:
        raise RuntimeError(f"logits differ by {difference:.1e}")
    return {"difference": difference, "times_as_fast": times[0] / times[1]}


def exact_resume(device: torch.device) -> dict[str, Any]:
    """Four steps, against two, a stored state and two: the parameters must be equal bit for bit."""

    def run(steps: range, state: dict | None) -> dict:
        model = _reader(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        if state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for step in steps:
            logits = model(_images(device, 8, seed=step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.flatten(0, 1), _targets(device, 8).flatten()).backward()
            optimizer.step()
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, resumed = run(range(4), None), run(range(2, 4), run(range(2), None))
    finally:
        torch.use_deterministic_algorithms(before)
    unequal = [name for name, value in whole["model"].items() if not torch.equal(value, resumed["model"][name])]
    if unequal:
        raise RuntimeError(f"{len(unequal)} tensors differ after resuming, {unequal[0]} first")
    return {"equal_tensors": len(whole["model"])}


def one_process(device: torch.device) -> dict[str, Any]:
    """A step under DistributedDataParallel with one process gives the gradient of a step without it."""
    if dist.is_initialized():
        raise RuntimeError("a process group is already there")
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            plain = _reader(device)
            wrapped = nn.parallel.DistributedDataParallel(_reader(device))
            norms = []
            for model in (plain, wrapped):
                loss = nn.functional.cross_entropy(
                    model(_images(device, 8)).flatten(0, 1), _targets(device, 8).flatten()
                )
                loss.backward()
                norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        finally:
            dist.destroy_process_group()
    if abs(norms[0] - norms[1]) > 1e-4 * norms[0]:
        raise RuntimeError(f"gradient norms {norms[0]:.6f} and {norms[1]:.6f}")
    return {"backend": backend, "gradient_norm": norms[0]}


def loader_rate(device: torch.device, small: bool) -> dict[str, Any]:
    """Rendered words a second that worker processes bring to the device."""
    count, workers = (48, 0) if small else (8192, max(1, (os.cpu_count() or 2) - 1))
    options = SynthOptions(fonts=("roboto", "arvo")) if small else SynthOptions(min_length=1, max_length=25)
    words = RenderedWords(options, seed=1, length=count, repeat=1)
    began, seen = time.perf_counter(), 0
    for images, _ in DataLoader(words, 16 if small else 256, num_workers=workers, collate_fn=collate):
        seen += len(images.to(device, non_blocking=True))
    return {"crops_per_second": seen / (time.perf_counter() - began), "workers": workers}


def throughputs(device: torch.device, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Part (b), by name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, timm_name in VITS.items() if not small else (("ViT-Ti/4", VITS["ViT-Ti/4"]),):
        found[f"train: {name}"] = lambda n=timm_name: vit(n, device, small, training=True)
        found[f"read: {name}"] = lambda n=timm_name: vit(n, device, small, training=False)
    for row in registry.rows():
        if row.kind == "recogniser" and (not small or row.name == "strlab/compact"):
            found[f"read: {row.name}"] = lambda row=row: reading(row, device, small)
    return found


def vit(name: str, device: torch.device, small: bool, training: bool) -> dict[str, Any]:
    """Images a second and MFU of a ViT with 4x4 patches on 32x128 crops in bf16."""
    batch = 2 if small else 512
    depth = {"depth": 1} if small else {}
    model = timm.create_model(name, img_size=(32, 128), patch_size=4, num_classes=97, **depth).to(device)
    images = _images(device, batch)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images[:1])
    operations = counter.get_total_flops() * (3 if training else 1)  # backward costs twice the forward pass
    if not small:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), torch.zeros(batch, dtype=torch.long, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def read() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            model(images)

    rate = batch / _seconds(step if training else read, device, 2 if small else 30)
    return {"images_per_second": rate, "batch": batch, **mfu(operations * rate)}


def reading(row: registry.ModelRow, device: torch.device, small: bool) -> dict[str, Any]:
    """Images a second of a registered recogniser with random weights, fp32 (`--amp no`) and bf16, forward only."""
    batch = 2 if small else 256
    model = row.make(**(row.test_options if small else {})).to(device).eval()
    images = torch.randn(batch, 3, *row.image_size, device=device)
    found: dict[str, Any] = {"batch": batch}
    for name, enabled in (("fp32", False), ("bf16", True)):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            found[name] = batch / _seconds(lambda: model(images), device, 2 if small else 10)
    return found


def train_further(
    out: Path, device: torch.device, small: bool, seconds: float, validation: tuple[Path, ...]
) -> dict[str, Any]:
    """Part (c): the shipped default reader learns from newly rendered words for `seconds`; how many it can see is
    measured first. Its weights are in `reader.pth`, with their metadata.

    Returns images seen and a second, and the accuracy in % before and after on rendered words of another seed (and on
    the validation tenth of `validation`). Raises `RuntimeError` where the time is too short.
    """
    if seconds < 30:
        raise RuntimeError(f"only {seconds:.0f} s are left: give more --minutes")
    cores, batch = os.cpu_count() or 1, 4 if small else 256
    folder = out / f"training-{time.strftime('%Y%m%d-%H%M%S')}"
    options = reader.Options(
        out=folder, images=10**9, decay_images=1, batch=batch, lr=1e-3, warmup=2 if small else 200, seed=3,
        repeat=3, store=folder / "crops", real=(), real_share=0.0, validation=(), init=shipped.default().path,
        fonts=("roboto", "arvo") if small else (), amp="no" if small else "bf16", device=str(device),
        workers=1 if small else max(1, cores - 1), save_every=10**9, eval_every=10**9, max_steps=2 if small else 100,
    )  # fmt: skip
    began = time.monotonic()
    reader.train(options)  # leaves its state, from which the second call resumes
    rate = options.max_steps * batch / (time.monotonic() - began)  # with the start of the workers: rather too low
    left = seconds - (time.monotonic() - began) - 20
    images = 4 * batch if small else max(200 * batch, int(0.9 * rate * left))
    reader.train(replace(options, images=images, decay_images=images // 2, max_steps=0))
    took = time.monotonic() - began
    for suffix in ("", ".json"):
        shutil.copy(folder / f"best.pth{suffix}", out / f"reader.pth{suffix}")
    words = RenderedWords(replace(reader.WORDS, fonts=options.fonts), seed=9, length=16 if small else 2000, repeat=1)
    crops = [words.crop(1_000_000 + i) for i in range(len(words))]  # beyond the easy first ones
    sets = {"rendered": (torch.from_numpy(np.stack([p for p, _ in crops])), [text for _, text in crops])}
    sets |= validation_words(validation)
    found: dict[str, Any] = {"images": images, "images_per_second": images / took, "workers": options.workers}
    for name, file in (("before", shipped.default().path), ("after", out / "reader.pth")):
        model = reader.build().to(device)
        reader.load_weights(model, file, "")
        found[name] = reader.measure(model, sets, device)["sets"]
    return found


def mfu(operations: float) -> dict[str, float]:
    """Share of the GPU's stated dense bf16 peak; nothing for a processor whose peak is not in the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for key, peak in PEAKS.items() if key in name), 0.0)
    return {"tflops": operations / 1e12, **({"mfu": operations / peak} if peak else {})}


def _seconds(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """Median seconds of a call, after three to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    wait()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _reader(device: torch.device) -> CompactReader:
    torch.manual_seed(0)
    return CompactReader(95, widths=(16, 16, 32, 32), depth=1, heads=2).to(device)


def _images(device: torch.device, batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 128, generator=torch.Generator().manual_seed(seed)).to(device)


def _targets(device: torch.device, batch: int) -> torch.Tensor:
    return torch.randint(0, 95, (batch, 32), generator=torch.Generator().manual_seed(1)).to(device)
