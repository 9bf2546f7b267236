"""`strlab export`: a checkpoint as ONNX, and a check that it reads what PyTorch reads.

The graph takes uint8 RGB images [B, H, W, 3] (B is free) and gives what the reader's `export_module` gives; decoding
stays outside. What it needs (model, characters, tokens by id, input size, names of the outputs) stands in the graph's
metadata and in a JSON file next to it. `--check` runs 32 images through both at batch sizes 1 and 7: the texts must be
equal and the outputs that are no ids within the tolerance; nothing is written where they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common.errors import UserError
from common.files import write_bytes, write_text
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Recognizer, find_images

CHECKED = 32
BATCHES = (1, 7)
OPSET = 18
PLAIN_FIT = "bicubic resize with antialiasing, aspect ratio ignored"
INSTALL = "is not installed; run `pip install -e '.[export]'` in the repository"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("export", help="write a checkpoint as ONNX", description=__doc__)
    add_checkpoint_arguments(parser, batches=False)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: the checkpoint's name with .onnx; FILE.json is next to it"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that this command did not write")
    parser.add_argument("--opset", type=int, default=OPSET, help=f"ONNX operator set (default {OPSET})")
    parser.add_argument("--check", action="store_true", help="compare with PyTorch on 32 images at batch 1 and 7")
    parser.add_argument(
        "--images", nargs="*", default=[], metavar="IMAGE", help="images for the check (default: drawn words)"
    )
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of outputs (default 1e-3)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    recognizer = open_from(args, engine="torch")
    out = (args.out or Path((recognizer.source or Path("reader")).name).with_suffix(".onnx")).expanduser()
    if args.out is None and args.checkpoint is not None:
        out = args.checkpoint.with_suffix(".onnx")
    check_out(out, args.force)
    about = describe(recognizer, recognizer.name)
    data = with_metadata(export(recognizer, args.opset), about)
    if args.check:
        images = (
            [recognizer.prepare(path) for path in find_images(args.images)] if args.images else drawn_words(recognizer)
        )
        worst = check(recognizer, data, images, args.tolerance)
        print(f"checked on {CHECKED} images at batch 1 and 7: equal texts, outputs differ by at most {worst:.1e}")
    write_bytes(out, data)
    write_text(out.with_name(f"{out.name}.json"), json.dumps(about, indent=1, ensure_ascii=False))
    height, width = recognizer.image_size
    print(
        f"{out}: {len(data) / 2**20:.1f} MiB, input uint8 [batch, {height}, {width}, 3]; the rest is in {out.name}.json"
    )
    return 0


def check_out(out: Path, force: bool) -> None:
    """Refuse to overwrite a file that `strlab export` did not write, which its metadata next to it shows."""
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; give the name of the file")
    about = out.with_name(f"{out.name}.json")
    try:
        ours = "outputs" in json.loads(about.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not force and not ours and (out.exists() or about.exists()):
        raise UserError(f"--out: {out} exists and was not written by `strlab export`; give another name or --force")


def export_module(recognizer: Recognizer) -> tuple[torch.nn.Module, Callable]:
    """The reader's (module, decode). Raises `UserError` where it offers none."""
    offer = getattr(recognizer.reader, "export_module", None)
    if offer is None:
        raise UserError(
            f"{type(recognizer.reader).__name__} offers no form without loops over data; it cannot be exported"
        )
    module, decode = offer()
    return module.eval(), decode


def run_module(module: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What the module gives, one tensor or several, as a list; without gradients."""
    with torch.no_grad():
        outputs = module(images)
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def example(recognizer: Recognizer) -> torch.Tensor:
    """Two black images of the model's size on its device: uint8 [2, H, W, 3]."""
    height, width = recognizer.image_size
    return torch.zeros(2, height, width, 3, dtype=torch.uint8, device=recognizer.reader.device)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """torch as its exporter needs it: encoder layers not fused (no ONNX form), no graph printed on a failure."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    getattr(torch._C, "_jit_set_onnx_log_enabled", bool)(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing notes about shapes that are fixed on purpose
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def export(recognizer: Recognizer, opset: int = OPSET) -> bytes:
    """The reader as ONNX bytes with a free batch axis. Raises `UserError` where the packages or the form are missing,
    or the exporter cannot do it."""
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"strlab export: the package onnx {INSTALL}") from None
    module, _ = export_module(recognizer)
    images, buffer = example(recognizer), io.BytesIO()
    names = [f"output_{i}" for i in range(len(run_module(module, images)))]
    try:
        with exporting():
            torch.onnx.export(
                module,
                (images,),
                buffer,
                input_names=["images"],
                output_names=names,
                dynamic_axes={name: {0: "batch"} for name in ["images", *names]},
                opset_version=opset,
                dynamo=False,
                # Norms stay apart from convolutions: ONNX Runtime merges them, and the weights keep their values.
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as error:  # the exporter has many types of its own
        fix = f"; try --opset {OPSET}" if opset != OPSET else ""
        raise UserError(f"--opset {opset}: the model cannot be exported so ({_first_line(error)}){fix}") from None
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def describe(recognizer: Recognizer, model: str) -> dict[str, Any]:
    """What others need to prepare images for an exported graph and to decode its outputs."""
    module, _ = export_module(recognizer)
    outputs = run_module(module, example(recognizer))
    own = getattr(recognizer.reader, "prepare", None) is not None
    return {
        "model": model,
        "input": {
            "name": "images",
            "type": "uint8",
            "shape": ["batch", *recognizer.image_size, 3],
            "channels": "RGB, 0 to 255; the graph normalises them",
            "fit": getattr(recognizer.reader, "fit_rule", "the reader's own way") if own else PLAIN_FIT,
        },
        "outputs": [
            {"name": f"output_{i}", "type": str(output.dtype)[len("torch.") :], "shape": ["batch", *output.shape[1:]]}
            for i, output in enumerate(outputs)
        ],
        "charset": recognizer.charset,
        "tokens": tokens_of(getattr(recognizer.reader, "codec", None)),
    }


def tokens_of(codec: Any) -> list[str]:
    """The text of every class id of a codec, special ones as `[end]`, `[pad]`, …; empty where there is no codec."""
    if codec is None or hasattr(codec, "tokens"):
        return list(getattr(codec, "tokens", ()))
    tokens = ["[unused]"] * codec.num_classes
    for name in ("start", "pad", "blank", "unknown", "end"):
        if 0 <= getattr(codec, name, -1) < len(tokens):
            tokens[getattr(codec, name)] = f"[{name}]"
    first = codec.table.first
    tokens[first : first + len(codec.charset)] = codec.charset
    return tokens


def with_metadata(data: bytes, about: dict[str, Any]) -> bytes:
    """ONNX bytes with these facts in `metadata_props`: texts as they are, all else as JSON."""
    import onnx

    model = onnx.load_from_string(data)
    for name, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


def check(recognizer: Recognizer, data: bytes, images: Sequence[np.ndarray], tolerance: float = 1e-3) -> float:
    """Compare ONNX Runtime with PyTorch on fitted images uint8 [H, W, 3]; returns the largest difference of the
    outputs that are floats. Ids are judged by the text that they spell.

    Raises `UserError` where a text differs or the difference is above the tolerance, naming the batch size and the
    image.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"strlab export --check: the package onnxruntime {INSTALL}") from None
    module, decode = export_module(recognizer)
    stacked, worst = np.stack([images[i % len(images)] for i in range(CHECKED)]), 0.0
    batches = [(size, start, stacked[start : start + size]) for size in BATCHES for start in range(0, CHECKED, size)]
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"images": batch}) for _, _, batch in batches]
    except Exception as error:  # the package has many types of its own
        raise UserError(f"--check: ONNX Runtime cannot run the graph ({_first_line(error)})") from None
    for (size, start, batch), theirs in zip(batches, found):
        outputs = run_module(module, torch.from_numpy(batch).to(recognizer.reader.device))
        ours = [output.cpu().numpy() for output in outputs]
        floats = [(a, b) for a, b in zip(ours, theirs) if np.issubdtype(a.dtype, np.floating)]
        worst = float(np.max([worst, *(np.abs(a - b).max() for a, b in floats)]))  # unlike max, it keeps a NaN
        for offset, (a, b) in enumerate(zip(decode(ours), decode(theirs))):
            if a.text != b.text:
                raise UserError(f"batch {size}, image {start + offset}: PyTorch reads {a.text!r}, ONNX {b.text!r}")
    if not worst <= tolerance:
        raise UserError(f"outputs differ by {worst:.2e}, more than --tolerance {tolerance:g}")
    return worst


def drawn_words(recognizer: Recognizer) -> list[np.ndarray]:
    """Some plain words drawn with Pillow's font and fitted into the model's input."""
    crops = []
    for i in range(CHECKED):
        image = Image.new("RGB", (120, 36), (200 - 3 * i, 210, 180 + 2 * i))
        word = f"{('coffee', 'street', 'market', 'north')[i % 4]}{i}"
        ImageDraw.Draw(image).text((60, 18), word, (20, 3 * i, 60), font=ImageFont.load_default(size=20), anchor="mm")
        crops.append(recognizer.fit(np.asarray(image)))
    return crops
