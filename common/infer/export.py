"""`strlab export`: a checkpoint as ONNX, and a check that it reads what PyTorch reads.

The graph takes uint8 images [B, H, W, 3] (B is free) and gives what the reader's `export_module` gives; decoding stays
outside.
`--check` runs 32 images through both at batch sizes 1 and 7: the texts must be equal and the outputs within the
tolerance.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from common.files import write_bytes
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Recognizer, find_images

CHECKED = 32
BATCHES = (1, 7)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab export`."""
    parser = subparsers.add_parser("export", help="write a checkpoint as ONNX", description=__doc__)
    add_checkpoint_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: the checkpoint's name with .onnx")
    parser.add_argument("--opset", type=int, default=18, help="ONNX operator set (default 18)")
    parser.add_argument("--check", action="store_true", help="compare with PyTorch on 32 images at batch 1 and 7")
    parser.add_argument(
        "--images", nargs="*", default=[], metavar="IMAGE", help="images for the check (default: drawn words)"
    )
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of outputs (default 1e-3)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    recognizer = open_from(args)
    out = args.out or args.checkpoint.with_suffix(".onnx")
    data = export(recognizer, args.opset)
    write_bytes(out, data)
    height, width = recognizer.image_size
    print(f"{out}: {len(data) / 2**20:.1f} MiB, input uint8 [batch, {height}, {width}, 3]")
    if args.check:
        images = (
            [recognizer.prepare(path) for path in find_images(args.images)] if args.images else drawn_words(recognizer)
        )
        worst = check(recognizer, data, images, args.tolerance)
        print(f"checked on {CHECKED} images at batch 1 and 7: equal texts, outputs differ by at most {worst:.1e}")
    return 0


def export_module(recognizer: Recognizer) -> tuple[torch.nn.Module, Callable]:
    """The reader's (module, decode). Raises `UserError` where it offers none."""
    offer = getattr(recognizer.reader, "export_module", None)
    if offer is None:
        raise UserError(
            f"{type(recognizer.reader).__name__} offers no form without loops over data; it cannot be exported"
        )
    module, decode = offer()
    return module.eval(), decode


def export(recognizer: Recognizer, opset: int = 18) -> bytes:
    """The reader as ONNX bytes with a free batch axis. Raises `UserError` where the packages or the form are
    missing."""
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "strlab export: the package onnx is not installed; run `pip install 'strlab[export]'`"
        ) from None
    module, _ = export_module(recognizer)
    height, width = recognizer.image_size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8, device=recognizer.reader.device)
    buffer = io.BytesIO()
    with torch.no_grad():
        outputs = module(example)
    names = [f"output_{i}" for i in range(len(outputs) if isinstance(outputs, (tuple, list)) else 1)]
    axes = {name: {0: "batch"} for name in ["images", *names]}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing notes about shapes that are fixed on purpose
        torch.onnx.export(
            module,
            (example,),
            buffer,
            input_names=["images"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    return buffer.getvalue()


def check(recognizer: Recognizer, data: bytes, images: Sequence[np.ndarray], tolerance: float = 1e-3) -> float:
    """Compare ONNX Runtime with PyTorch on fitted images uint8 [H, W, 3]; returns the largest difference of the
    outputs.

    Raises `UserError` where a text differs or the difference is above the tolerance, naming the batch size and the
    image.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(
            "strlab export --check: the package onnxruntime is not installed; run `pip install 'strlab[export]'`"
        ) from None
    module, decode = export_module(recognizer)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    stacked, worst = np.stack([images[i % len(images)] for i in range(CHECKED)]), 0.0
    for size in BATCHES:
        for start in range(0, CHECKED, size):
            batch = stacked[start : start + size]
            theirs = session.run(None, {"images": batch})
            with torch.inference_mode():
                ours = module(torch.from_numpy(batch).to(recognizer.reader.device))
            ours = [tensor.float().cpu().numpy() for tensor in (ours if isinstance(ours, (tuple, list)) else [ours])]
            worst = max([worst, *(float(np.abs(a - b).max()) for a, b in zip(ours, theirs))])
            for offset, (a, b) in enumerate(zip(decode(ours), decode(theirs))):
                if a.text != b.text:
                    raise UserError(f"batch {size}, image {start + offset}: PyTorch reads {a.text!r}, ONNX {b.text!r}")
    if worst > tolerance:
        raise UserError(f"outputs differ by {worst:.2e}, more than --tolerance {tolerance:g}")
    return worst


def drawn_words(recognizer: Recognizer) -> list[np.ndarray]:
    """Some plain words drawn with Pillow's font and fitted into the model's input."""
    from PIL import Image, ImageDraw, ImageFont

    crops = []
    for i in range(CHECKED):
        image = Image.new("RGB", (120, 36), (200 - 3 * i, 210, 180 + 2 * i))
        word = f"{('coffee', 'street', 'market', 'north')[i % 4]}{i}"
        ImageDraw.Draw(image).text((60, 18), word, (20, 3 * i, 60), font=ImageFont.load_default(size=20), anchor="mm")
        crops.append(recognizer.fit(np.asarray(image)))
    return crops
