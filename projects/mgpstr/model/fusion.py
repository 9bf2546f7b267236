"""From ids and probabilities of each granularity to strings, scores and the fused answer.

MGP-STR section 3.4, spec section 5.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.text.codecs import Decoded
from projects.mgpstr.label_codes import LabelCodes


@dataclass(frozen=True)
class Fused:
    """One picture's answer.

    Attributes:
        candidates: string, score and probabilities of each granularity.
        text: the candidate with the highest score; None where all scores are 0 (no end token anywhere), which counts
            as wrong.
        confidence: its score, in [0, 1].
        winner: its granularity, "" if none.
    """

    candidates: Mapping[str, Decoded]
    text: str | None
    confidence: float
    winner: str


def fuse(candidates: Mapping[str, Decoded]) -> Fused:
    """Choose by score: a later granularity must be strictly better, so ties go to char, then bpe; 0 never wins."""
    text, best, winner = None, 0.0, ""
    for name, decoded in candidates.items():
        if decoded.confidence > best:  # confidence: the product of the probabilities up to and with the end
            text, best, winner = decoded.text, decoded.confidence, name
    return Fused(candidates, text, best, winner)


def decode_batch(codes: LabelCodes, ids: Mapping[str, np.ndarray], probs: Mapping[str, np.ndarray]) -> list[Fused]:
    """Decode and fuse a batch.

    Args:
        codes: of the model.
        ids: for each granularity the arg-max ids [B, T-1] of positions 1 to T-1 (position 0 is never read).
        probs: their softmax probabilities, float32 of the same shapes.
    """
    columns = {name: codes[name].decode(np.asarray(ids[name]), np.asarray(probs[name])) for name in ids}
    return [fuse(dict(zip(columns, row))) for row in zip(*columns.values())]
