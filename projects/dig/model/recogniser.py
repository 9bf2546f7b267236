"""DiG's recognisers: encoder and decoder, training by teacher forcing, greedy reading (section 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.decoders import greedy_decode
from projects.dig.model import decoder as transformer
from projects.dig.model.encoder import SIZES, Encoder
from projects.dig.model.gru_decoder import AttentionDecoder, RecurrentDecoding


class Reading(NamedTuple):
    """`scores` `[B, L, C]` (logits in training, probabilities when reading), `ids` int64 `[B, L]` or None, maps `[B,
    L, K]` or None."""

    scores: Tensor
    ids: Tensor | None = None
    maps: Tensor | None = None


class Recogniser(nn.Module):
    """What both recognisers share. `forward(images, targets, lengths)` trains; `read(images)` decodes."""

    def __init__(self, encoder: Encoder, classes: int, max_len: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes, self.max_len = classes, max_len

    @property
    def end(self) -> int:
        """Id of the end token: the three special classes come last, EOS first of them."""
        return self.classes - 3

    def share_patch_embed(self) -> None:
        """Register the encoder's patch embedding under its second published name, `patch_embed.*` (same tensors)."""
        self.patch_embed = self.encoder.patch_embed

    def inputs(self, targets: Tensor) -> Tensor:
        """`[begin, t_0, …, t_{L-2}]` from targets `[B, L]`."""
        return F.pad(targets[:, :-1], (1, 0), value=self.classes)

    def memory(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def teach(self, memory: Tensor, targets: Tensor, lengths: Tensor, attention: bool = False) -> Reading:
        raise NotImplementedError

    def decoding(self, memory: Tensor, attention: bool = False, growing: bool = False):
        """A decoding in progress over `memory`, with `step` and `maps`; `growing` for export, see `KeyValueCache`."""
        raise NotImplementedError

    @torch.no_grad()
    def read(self, images: Tensor, *, early_stop: bool = True, attention: bool = False) -> Reading:
        """Greedy reading of images `[B, 3, H, W]`: probabilities `[B, max_len, C]`, ids `[B, max_len]`, maps if asked
        for.

        With `early_stop` decoding ends when every row has made its end token; the steps not taken have the end token
        as id and zero probabilities. Without it all `max_len` steps are made, as published.
        """
        return self.read_memory(self.memory(images), early_stop=early_stop, attention=attention)

    @torch.no_grad()
    def read_memory(self, memory: Tensor, *, early_stop: bool = True, attention: bool = False) -> Reading:
        """As `read`, from what `memory` made of the images."""
        decoding = self.decoding(memory, attention)
        begin = torch.full((len(memory),), self.classes, device=memory.device)
        ids, logits = greedy_decode(decoding.step, begin, self.max_len, self.end if early_stop else None)
        missing = self.max_len - ids.shape[1]  # steps that the early stop saved
        probabilities = F.pad(logits.float().softmax(-1), (0, 0, 0, missing))
        maps = decoding.maps() if attention else None
        return Reading(probabilities, F.pad(ids, (0, missing), value=self.end), maps)


class RecModel(Recogniser):
    """Encoder, Linear + LayerNorm, autoregressive Transformer decoder.

    Args:
        encoder: with its final norm.
        decoder_size: see `projects.dig.model.decoder.SIZES`.
        classes: characters + EOS, PADDING, UNKNOWN.
        max_len: steps of the decoder (word length + 1 at most).
        conditioned: FiLM-conditioned cross attention (`--text_cond_vis`).
        one_row: average the rows of the token grid first (`--use_1d_attdec`).
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder_size: transformer.DecoderSize,
        classes: int,
        max_len: int = 25,
        *,
        conditioned: bool = False,
        one_row: bool = False,
    ) -> None:
        super().__init__(encoder, classes, max_len)
        self.one_row = one_row
        self.decoder = transformer.TransformerDecoder(decoder_size, classes, conditioned)
        self.linear_norm = nn.Sequential(nn.Linear(encoder.dim, decoder_size.dim), nn.LayerNorm(decoder_size.dim))
        self.share_patch_embed()

    def memory(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` -> `[B, K, d]`, K = tokens, or columns with `one_row`."""
        tokens = self.encoder(images)
        if self.one_row:  # the mean over the rows leaves one token for each column of patches
            tokens = tokens.unflatten(1, self.encoder.grid).mean(1)
        return self.linear_norm(tokens)

    def forward(self, images: Tensor, targets: Tensor, lengths: Tensor, attention: bool = False) -> Reading:
        """Teacher forcing: `targets` `[B, L]` (ids + EOS, padded), `lengths` `[B]` = word length + 1; logits `[B, L,
        C]`."""
        return self.teach(self.memory(images), targets, lengths, attention)

    def teach(self, memory: Tensor, targets: Tensor, lengths: Tensor, attention: bool = False) -> Reading:
        """As `forward`, from what `memory` made of the images."""
        logits, maps = self.decoder(memory, self.inputs(targets), lengths, attention)
        return Reading(logits, maps=maps)

    def decoding(self, memory: Tensor, attention: bool = False, growing: bool = False) -> transformer.Decoding:
        return transformer.Decoding(self.decoder, memory, self.max_len, attention, growing)


class AttnRecModel(Recogniser):
    """Encoder and GRU decoder with additive attention over the raw encoder tokens."""

    def __init__(self, encoder: Encoder, classes: int, max_len: int = 25) -> None:
        super().__init__(encoder, classes, max_len)
        self.decoder = AttentionDecoder(encoder.dim, classes)
        self.share_patch_embed()

    def memory(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` -> encoder tokens `[B, N, D]`."""
        return self.encoder(images)

    def forward(self, images: Tensor, targets: Tensor, lengths: Tensor, attention: bool = False) -> Reading:
        """As `RecModel.forward`; rows of `logits` after the longest word are zeros."""
        return self.teach(self.memory(images), targets, lengths, attention)

    def teach(self, memory: Tensor, targets: Tensor, lengths: Tensor, attention: bool = False) -> Reading:
        """As `forward`, from what `memory` made of the images."""
        logits, maps = self.decoder(memory, self.inputs(targets), lengths)
        return Reading(logits, maps=maps if attention else None)

    def decoding(self, memory: Tensor, attention: bool = False, growing: bool = False) -> RecurrentDecoding:
        return self.decoder.start(memory)


ENCODERS = {f"simmim_vit_{size}_patch{SIZES[size].patch}_32x128": size for size in SIZES}
"""Names that `--model` takes -> size; "micro" is additional, the others are published."""


def build_recogniser(
    model: str,
    *,
    decoder_type: str = "tf_decoder",
    decoder_name: str = "tf_decoder",
    classes: int = 97,
    max_len: int = 25,
    conditioned: bool = False,
    one_row: bool = False,
    image_size: tuple[int, int] = (32, 128),
    drop: float = 0.0,
    attention_drop: float = 0.0,
    drop_path: float = 0.0,
) -> Recogniser:
    """The recogniser of these names, randomly initialised.

    Raises KeyError for an unknown `model` or `decoder_name`, ValueError for an unknown `decoder_type`.
    """
    encoder = Encoder(
        SIZES[ENCODERS[model]], tuple(image_size), drop=drop, attention_drop=attention_drop, drop_path=drop_path
    )
    if decoder_type == "attention":
        return AttnRecModel(encoder, classes, max_len)
    if decoder_type != "tf_decoder":
        raise ValueError(f"decoder_type {decoder_type!r} is neither tf_decoder nor attention")
    size = transformer.SIZES[decoder_name]
    return RecModel(encoder, size, classes, max_len, conditioned=conditioned, one_row=one_row)
