"""A trained MGP-STR or ACDS-STR as the shared tools use it: images in, fused text with its candidates out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.infer.recognizer import Prediction
from common.models.images import to_float_nchw
from common.text.charset import CHARSET_36
from common.train.checkpoint import read_card
from projects.mgpstr.data import SIZE, fit
from projects.mgpstr.evaluate import read_batch
from projects.mgpstr.flags import Network
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.build import build_row, load_weights
from projects.mgpstr.model.fusion import Fused, decode_batch


def adopt_card(network: Network, given: Iterable[str], checkpoint: Path) -> Network:
    """Charset, case, lengths and heads that the command line leaves open, from a checkpoint's metadata file.

    What is taken from there is printed. `given`: names of the flags on the command line, of which `sensitive` stands
    for the charset too.
    """
    card, given = read_card(checkpoint).get("options") or {}, {*given}
    given |= {"pad"} if "PAD" in given else set()
    given |= {"character"} if "sensitive" in given else set()
    names = ("character", "batch_max_length", "granularities", "sensitive", "pad", "imgW")
    taken = {n: card[n] for n in names if n in card and n not in given and card[n] != getattr(network, n)}
    if taken:
        words = " ".join(f"--{'PAD' if name == 'pad' else name}={value}" for name, value in taken.items())
        print(f"from the metadata of {checkpoint}: {words}")
    return replace(network, **taken)


def open_reader(path: Path, options: Mapping[str, Any], device: torch.device) -> MgpReader:
    """The registry's `open`. Raises `UserError` for a checkpoint that does not fit these options."""
    model = build_row(**options)
    load_weights(model, path)
    charset, length = options.get("character", CHARSET_36), options.get("batch_max_length", 25)
    codes = LabelCodes(charset, length, model.granularities)
    size = (SIZE[0], options.get("imgW", SIZE[1]))
    return MgpReader(model.to(device).eval(), codes, device, bool(options.get("pad")), size)


class MgpReader:
    """Reads all granularities and fuses them; `extra` of a prediction has the candidates, their scores and the winner.

    `attention` are the character maps m_1 … m_L on the grid of patches (ACDS-STR has none). Where no granularity
    found an end the text is empty with confidence 0, for the published rule gives no answer then.
    """

    def __init__(
        self,
        model: nn.Module,
        codes: LabelCodes,
        device: torch.device,
        pad: bool = False,
        image_size: tuple[int, int] = SIZE,
    ) -> None:
        self.image_size = image_size
        self.model, self.codes, self.device, self.pad = model, codes, device, pad
        self.charset = codes.char.charset
        self.codec = codes.char

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Fit a crop uint8 [h, w, 3] into the input."""
        return fit(image, self.image_size, self.pad)

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """uint8 [B, 32, 128, 3] on the model's device -> one prediction each."""
        fused, reading = read_batch(self.model, self.codes, images)
        if not attention or "char" not in reading.maps:
            return [as_prediction(one) for one in fused]
        # m [B, T, N + 1] -> [B, T - 1, rows, columns] of positions 1 to T - 1, without the class token
        maps = {
            name: values[:, 1:, 1:].float().unflatten(2, self.model.grid).cpu().numpy()
            for name, values in reading.maps.items()
        }
        predictions = []
        for row, one in enumerate(fused):
            tokens = {name: self.tokens(name, reading.decoded[name].ids[row].tolist()) for name in maps}
            predictions.append(as_prediction(one, {name: values[row] for name, values in maps.items()}, tokens))
        return predictions

    def tokens(self, name: str, ids: list[int]) -> list[str]:
        """The text of each id of a granularity before its end."""
        code = self.codes[name]
        before = ids[: ids.index(code.end)] if code.end in ids else ids
        return [code.tokens[index] for index in before] if name == "char" else [code.decode_text([i]) for i in before]

    def extras(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Pictures for the report: ACDS-STR's character map, clamped to [0, 1]; nothing for MGP-STR."""
        _, reading = read_batch(self.model, self.codes, images)
        return {"character map": reading.maps["map"].clamp(0, 1).cpu().numpy()} if "map" in reading.maps else {}

    def export_module(self) -> tuple[nn.Module, Callable[[Sequence[np.ndarray]], list[Prediction]]]:
        """All granularities at all positions, (ids, probabilities) of each in turn, and the decoding with fusion."""

        def decode(arrays: Sequence[np.ndarray]) -> list[Prediction]:
            ids = dict(zip(self.model.granularities, arrays[0::2]))
            probs = dict(zip(self.model.granularities, arrays[1::2]))
            return [as_prediction(one) for one in decode_batch(self.codes, ids, probs)]

        return TopOne(self.model), decode


class TopOne(nn.Module):
    """uint8 [B, 32, 128, 3] -> ids int64 and probabilities [B, T-1] of each granularity, for export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(to_float_nchw(images))
        found: list[torch.Tensor] = []
        for logits in outputs[: len(self.model.granularities)]:
            probs, ids = logits[:, 1:].softmax(-1).max(-1)
            found += [ids, probs]
        return tuple(found)


def as_prediction(
    fused: Fused, maps: Mapping[str, np.ndarray] | None = None, tokens: Mapping[str, list[str]] | None = None
) -> Prediction:
    """The fused answer; confidences and maps of its characters are the character branch's where that read the same.

    `extra` has each candidate, the winner and, with `maps`, the maps [T - 1, rows, columns] and tokens of all heads.
    """
    text, chars = fused.text or "", fused.candidates["char"]
    extra: dict[str, Any] = {
        name: {"text": one.text, "confidence": one.confidence} for name, one in fused.candidates.items()
    }
    extra["winner"] = fused.winner
    if maps is not None:
        extra |= {"maps": maps, "tokens": tokens}
    confidences = chars.char_confidences if chars.text == text else ()
    attention = None if maps is None else maps["char"][: len(text)]
    return Prediction(text, fused.confidence, confidences, attention, extra)
