"""MGP-STR and its character-only form char-str.

Wang, Da, Yao, "Multi-Granularity Prediction for Scene Text Recognition", ECCV 2022: a plain ViT on a 32x128 picture,
one A3 module for each granularity on its 257 tokens, one linear head each. State-dict names are those of the published
files behind their `module.` prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from common.models.vit import PlainViT
from projects.mgpstr.model.a3 import A3, aggregate
from projects.mgpstr.model.losses import sequence_loss

CLASSES = {"bpe": 50257, "wp": 30522}  # GPT-2's byte pairs and BERT's word pieces, whole
# ids that end a text, and how many positions to decode before looking whether all texts have ended
ENDS = {"char": 1, "bpe": 2, "wp": 102}
STRIDES = (3, 5, 100)  # short runs first: most words are a few sub-words and an end


class Decoded(NamedTuple):
    """Arg-max `ids` int64 [B, T-1] of positions 1 to T-1 and their softmax probabilities `probs` float32 [B, T-1].

    Where decoding stopped at the end tokens of a granularity, what follows an end is id 0 with probability 0.
    """

    ids: torch.Tensor
    probs: torch.Tensor


class Reading(NamedTuple):
    """What a network read.

    Attributes:
        decoded: ids and probabilities by granularity.
        maps: attentions m [B, T, N + 1] by granularity; ACDS-STR: the map F [B, 32, 128] as "map".
        characters: tokens [B, T, D] of the character head (ACDS-STR: its logits), for `character_loss`.
    """

    decoded: dict[str, Decoded]
    maps: dict[str, torch.Tensor]
    characters: torch.Tensor


class MgpViT(PlainViT):
    """The network inside the wrapper. `norm` and one of the heads are in the published files and never applied."""

    def __init__(self, granularities: Sequence[str], num_classes: int, length: int, **vit) -> None:
        super().__init__(num_classes=num_classes, **vit)
        self.granularities = tuple(granularities)
        for name in self.granularities:
            setattr(self, f"{name}_tokenLearner", A3(self.embed_dim, length))
        self.char_head = nn.Linear(self.embed_dim, num_classes)
        for name in self.granularities[1:]:
            setattr(self, f"{name}_head", nn.Linear(self.embed_dim, CLASSES[name]))
        # char-str was published with timm's own head as the classifier, MGP-STR with `char_head`
        unused = self.char_head if self.granularities == ("char",) else self.head
        unused.requires_grad_(False)
        self.norm.requires_grad_(False)

    def classifier(self, granularity: str) -> nn.Linear:
        """The linear layer that a granularity's tokens go through."""
        return self.head if self.granularities == ("char",) else getattr(self, f"{granularity}_head")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, 32, 128] in [0, 1] -> tokens [B, N + 1, D] of the last block, class token first.

        The published code never applies the final norm.
        """
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def a3(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Attention m [B, T, N + 1] and tokens y [B, T, D] of each granularity."""
        modules = [getattr(self, f"{name}_tokenLearner") for name in self.granularities]
        attention, tokens = aggregate(modules, self.encode(images))  # lists, one entry a granularity
        return dict(zip(self.granularities, attention)), dict(zip(self.granularities, tokens))


class MgpStr(nn.Module):
    """`Model` of the published code: everything stands under `mgp_str.`.

    Args:
        granularities: ("char", "bpe", "wp"), or ("char",) for char-str.
        num_classes: characters + 2.
        length: T, positions of the output (longest label + 2).
        vit: dim, depth, heads, patch, image_size of the encoder.
    """

    def __init__(
        self, granularities: Sequence[str] = ("char", "bpe", "wp"), num_classes: int = 38, length: int = 27, **vit
    ) -> None:
        super().__init__()
        self.mgp_str = MgpViT(granularities, num_classes, length, **vit)

    @property
    def granularities(self) -> tuple[str, ...]:
        return self.mgp_str.granularities

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches: the shape of an attention map without the class token."""
        return self.mgp_str.patch_embed.grid_size

    def forward(self, images: torch.Tensor, is_eval: bool = False) -> list:
        """Images [B, 3, 32, 128] in [0, 1] -> logits [B, T, C] of each granularity.

        With `is_eval` a list of the attentions comes first, as published.
        """
        attention, tokens = self.mgp_str.a3(images)
        logits = [self.mgp_str.classifier(name)(tokens[name]) for name in self.granularities]
        return [list(attention.values()), *logits] if is_eval else logits

    def losses(self, images: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cross-entropy of each granularity (spec section 6), to be summed; targets int64 [B, T], 0 = ignore."""
        _, tokens = self.mgp_str.a3(images)
        return {
            name: sequence_loss(tokens[name], self.mgp_str.classifier(name), targets[name])
            for name in self.granularities
        }

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> Reading:
        """Arg-max ids and probabilities of each granularity.

        Sub-word heads are evaluated a few positions at a time for the texts that have not ended, so that no
        [B, T, 50257] tensor ever exists; what follows an end token changes neither the strings nor the scores.
        """
        attention, tokens = self.mgp_str.a3(images)
        decoded = {}
        for name in self.granularities:
            steps = (tokens[name].shape[1],) if name == "char" else STRIDES
            # position 0 belongs to the start symbol, which is never read
            decoded[name] = decode_top1(tokens[name][:, 1:], self.mgp_str.classifier(name), ENDS[name], steps)
        return Reading(decoded, attention, tokens["char"])

    @torch.no_grad()
    def character_loss(self, reading: Reading, targets: torch.Tensor) -> torch.Tensor:
        """The characters' cross-entropy of what was read; targets int64 [B, T], 0 = ignore."""
        return sequence_loss(reading.characters, self.mgp_str.classifier("char"), targets)


def decode_top1(tokens: torch.Tensor, head: nn.Linear, end: int, strides: Sequence[int]) -> Decoded:
    """Most probable class of each token [B, P, D] and its probability, stopping at `end`.

    Positions are worked in runs of `strides`; a run is done only for the rows that have not met `end` in earlier runs.
    The probability is 1 / sum(exp(logit - max)), so no softmax is stored.
    """
    batch, positions, _ = tokens.shape
    ids = torch.zeros(batch, positions, dtype=torch.int64, device=tokens.device)
    probs = torch.zeros(batch, positions, dtype=torch.float32, device=tokens.device)
    rows, start = torch.arange(batch, device=tokens.device), 0
    for stride in strides:
        stop = min(start + stride, positions)
        if start == stop or not len(rows):
            break
        logits = head(tokens[rows, start:stop]).float()  # [rows, stride, C]
        best, index = logits.max(-1)
        ids[rows, start:stop] = index
        probs[rows, start:stop] = logits.sub_(best.unsqueeze(-1)).exp_().sum(-1).reciprocal()
        rows, start = rows[~(index == end).any(-1)], stop  # texts that have not ended go to the next run
    return Decoded(ids, probs)
