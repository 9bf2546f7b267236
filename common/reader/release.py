"""Write a trained reader in the form that ships: fp16 weights, their metadata, ONNX, int8 ONNX.

    python -m common.reader.release best.pth --name compact --data REAL --trained-on "rendered words" --terms none …

The metadata state what the reader reads of the given word sets, with 95 % intervals, in fp32; for the int8 file the
accuracy on the same words is stated as well. The int8 file is calibrated on rendered words.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.synth.options import SynthOptions
from common.errors import UserError, command
from common.files import write_bytes
from common.flags import Parser
from common.infer import shipped
from common.infer.evaluate import evaluate, find_sets
from common.infer.export import describe, export, with_metadata
from common.infer.onnx_reader import OnnxReader, compress
from common.infer.recognizer import Recognizer, open_recognizer, read_card
from common.reader.data import RenderedWords
from common.reader.train import MODEL, WORDS

CALIBRATION = 512  # rendered words


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="best.pth or a training state of `strlab train`")
    parser.add_argument("--name", required=True, help="name of the shipped reader")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="word sets to measure on")
    parser.add_argument("--trained-on", required=True, metavar="TEXT", help="its training data, in words")
    parser.add_argument(
        "--terms", required=True, metavar="TEXT", help="terms that the training data put on the weights"
    )
    parser.add_argument("--images", type=int, required=True, help="images seen in training")
    parser.add_argument("--hours", type=float, default=0.0, help="processor hours of the training")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default 1)")
    parser.add_argument("--default", action="store_true", help="the reader that is used when none is named")
    parser.add_argument(
        "--out", type=Path, default=Path("common/weights"), metavar="FOLDER", help="default: common/weights"
    )
    return parser.parse_args(argv)


def measured(recognizer: Recognizer, sets: dict[str, Path]) -> list[dict[str, Any]]:
    """Word accuracy in % under 36 characters of each set, as the metadata keep it."""
    rows = []
    for row in evaluate(recognizer, sets, progress=False).scores.rows():
        rows.append({"set": row.name, "protocol": "36", "words": row.counted["36"],
                     "accuracy": round(row.accuracy["36"], 2)})  # fmt: skip
    return rows


class Calibration:
    """Rendered words one by one, as onnxruntime's quantisation asks for them."""

    def __init__(self, count: int) -> None:
        words = RenderedWords(SynthOptions(**vars(WORDS)), seed=2, length=count, repeat=1)
        self.batches: Iterator[dict[str, np.ndarray]] = ({"images": words[i][0][None]} for i in range(count))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None after the last."""
        return next(self.batches, None)


def quantised(graph: bytes) -> bytes:
    """The graph with int8 weights (by channel) and activations. Raises `UserError` without onnxruntime."""
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError:
        raise UserError("int8: onnxruntime is not installed; run `pip install 'strlab[export]'`") from None
    with tempfile.TemporaryDirectory() as folder:
        source, ready, made = (Path(folder) / name for name in ("source.onnx", "ready.onnx", "made.onnx"))
        source.write_bytes(graph)
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(made), Calibration(CALIBRATION), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )  # fmt: skip
        return made.read_bytes()


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    sets = find_sets(options.data)
    recognizer = open_recognizer(options.checkpoint, MODEL, "cpu", engine="torch")
    card = read_card(options.checkpoint)
    accuracy = measured(recognizer, sets)
    print("fp32", accuracy, flush=True)
    graph = export(recognizer)
    about = describe(recognizer, MODEL)
    small = quantised(graph)
    int8 = measured(Recognizer(OnnxReader(recognizer.reader, small, 1), name=MODEL, source=options.checkpoint), sets)
    print("int8", int8, flush=True)
    facts = {
        "model": MODEL, "options": {}, "default": options.default, "charset": recognizer.charset,
        "data": options.trained_on, "terms": options.terms, "licence": "Apache-2.0", "protocol": "36 characters",
        "images_seen": options.images, "hours": options.hours, "seeds": [options.seed],
        "commit": card.get("commit", ""), "accuracy": accuracy, "accuracy_int8": int8,
    }  # fmt: skip
    path = options.out / f"{options.name}.safetensors"
    kept = {k: v for k, v in recognizer.reader.model.state_dict().items() if not k.endswith("num_batches_tracked")}
    shipped.write(path, kept, facts)
    write_bytes(path.with_suffix(".onnx"), with_metadata(compress(graph), about))
    write_bytes(path.with_suffix(".int8.onnx"), with_metadata(small, about))
    sizes = {p.name: p.stat().st_size for p in sorted(options.out.glob(f"{options.name}.*"))}
    print(f"written: {sizes}")


if __name__ == "__main__":
    sys.exit(main())
