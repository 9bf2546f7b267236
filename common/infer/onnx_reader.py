"""A shipped reader run by ONNX Runtime, which is faster than PyTorch for small models on a CPU.

`NAME.onnx` is written by `compress(export(recognizer))`: its matrices are stored in fp16 and cast back to fp32 when
the graph is loaded, so that the file is as small as the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from common.infer.recognizer import Prediction, Reader


class OnnxReader:
    """A `Reader` whose network runs in ONNX Runtime; preparation and decoding are those of the wrapped reader.

    Attention maps are not part of an exported graph; when they are asked for, the wrapped reader reads with PyTorch.
    """

    def __init__(self, reader: Reader, source: bytes | Path, threads: int | None = None) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or torch.get_num_threads()
        settings.log_severity_level = 3
        graph = source if isinstance(source, bytes) else str(source)
        self.session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self.reader = reader
        _, self._decode = reader.export_module()
        self.image_size, self.charset, self.device = reader.image_size, reader.charset, torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        """What else the wrapped reader offers: `prepare`, `codec`, `export_module`, `extras`."""
        if name == "reader":
            raise AttributeError(name)
        return getattr(self.reader, name)

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """Read uint8 [B, H, W, 3]."""
        if attention:
            return self.reader.read(images, attention=True)
        settle = getattr(self.reader, "settle", None)
        return settle(images, self._read_once) if settle else self._read_once(images)

    def _read_once(self, images: torch.Tensor) -> list[Prediction]:
        return self._decode(self.session.run(None, {"images": images.cpu().numpy()}))


def faster_reader(reader: Reader, path: Path) -> Reader:
    """Wrap a reader on a CPU by its ONNX file `path`, where both it and ONNX Runtime are there."""
    if reader.device.type != "cpu" or not path.is_file() or not hasattr(reader, "export_module"):
        return reader
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError:
        return reader
    return OnnxReader(reader, path)


def compress(graph: bytes, least: int = 4096) -> bytes:
    """Store the fp32 matrices of an ONNX graph in fp16 with a cast back to fp32 after each.

    Args:
        graph: a serialised model.
        least: matrices with fewer values stay as they are.

    What overflows fp16 stays in fp32. Weights that come from an fp16 file keep their values exactly.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    casts: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or int(np.prod(tensor.dims)) < least:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return model.SerializeToString()
