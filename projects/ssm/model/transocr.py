"""TransOCR and ClusterSeq: a ViT encoder and a post-norm Transformer decoder (SSM, IJCAI 2024, section 3.4).

Class indices are PARSeq's: 0 ends a word, then the charset; the embedding also knows BOS = C + 1 and PAD = C + 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.decoders import KeyValueCache, greedy_decode
from projects.ssm.model.attention import MultiheadAttention
from projects.ssm.model.encoders import SplitEncoder, ViTEncoder
from projects.ssm.model.layers import ScaledEmbedding, decoding_steps

EOS = 0


class DecoderLayer(nn.Module):
    """Post-norm self-attention, cross-attention and feed-forward with exact GELU."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.cross_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        past: tuple[Tensor, Tensor],
        memory: Tensor | tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """`tokens` `[B, L, d]` attend to the keys and values `past` (their own included) and to the `memory`, an
        image's tokens or their keys and values."""
        tokens = self.norm1(tokens + self.drop(self.self_attn.attend(tokens, *past, mask)))
        tokens = self.norm2(tokens + self.drop(self.cross_attn(tokens, memory)))
        hidden = self.drop(F.gelu(self.linear1(tokens)))
        return self.norm3(tokens + self.drop(self.linear2(hidden)))


class Decoder(nn.Module):
    """Stack of `DecoderLayer` with one more LayerNorm after the last."""

    def __init__(self, dim: int, heads: int, hidden: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, layer.self_attn.keys_values(tokens), memory, mask)
        return self.norm(tokens)


class TokenReader(nn.Module):
    """What TransOCR and PARSeq share: token ids, position queries, the head, and the token embedding."""

    def __init__(self, charset_size: int, max_label_length: int, dim: int) -> None:
        super().__init__()
        self.max_label_length = max_label_length
        self.bos_id, self.pad_id = charset_size + 1, charset_size + 2
        self.pos_queries = nn.Parameter(torch.empty(1, max_label_length + 1, dim))

    def finish(self, charset_size: int, dim: int, dropout: float) -> None:
        """Head and embedding, which come behind encoder and decoder in the published order, and all first weights."""
        self.head = nn.Linear(dim, charset_size + 1)
        self.text_embed = ScaledEmbedding(charset_size + 3, dim)
        self.drop = nn.Dropout(dropout)
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Parameter names that weight decay leaves alone."""
        names = {"text_embed.embedding.weight", "pos_queries"}
        return names | {f"encoder.{name}" for name in ("pos_embed", "cls_token", "dist_token")}


class TransOCR(TokenReader):
    """Reads `[B, 3, H, W]` crops, normalised to [-1, 1].

    Args:
        charset_size: characters C; the head has C + 1 classes, the embedding C + 3 rows.
        standard: the ViT with learnable positions, else the MAE-style encoder.
    """

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        patch_size: tuple[int, int] = (4, 8),
        *,
        enc_embed_dim: int = 384,
        enc_num_heads: int = 6,
        enc_mlp_ratio: float = 4,
        enc_depth: int = 12,
        dec_embed_dim: int = 384,
        dec_num_heads: int = 12,
        dec_mlp_ratio: float = 4,
        dec_depth: int = 4,
        dropout: float = 0.1,
        standard: bool = True,
    ) -> None:
        super().__init__(charset_size, max_label_length, dec_embed_dim)
        encoder = ViTEncoder if standard else SplitEncoder
        self.encoder = encoder(img_size, patch_size, enc_embed_dim, enc_depth, enc_num_heads, enc_mlp_ratio)
        if enc_embed_dim != dec_embed_dim:
            self.dec_embd = nn.Linear(enc_embed_dim, dec_embed_dim)
        hidden = int(dec_embed_dim * dec_mlp_ratio)
        self.decoder = Decoder(dec_embed_dim, dec_num_heads, hidden, dec_depth, dropout)
        self.finish(charset_size, dec_embed_dim, dropout)

    def encode(self, images: Tensor) -> Tensor:
        memory = self.encoder(images)
        return self.dec_embd(memory) if hasattr(self, "dec_embd") else memory

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Token embeddings: token j carries `pos_queries[j - 1]`, BOS (j = 0) none. Dropout twice, as published."""
        return self.drop(self.drop(place(self.text_embed(ids), self.pos_queries, start)))

    def decode(self, ids: Tensor, memory: Tensor, padding: Tensor | None = None) -> Tensor:
        """Features `[B, L, d]` of the given tokens; `padding` `[B, L]` is True where a key must not be seen."""
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        if padding is not None:
            mask = mask & ~padding[:, None, None]
        return self.decoder(self.embed(ids), memory, mask)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of `targets` `[B, L]` (BOS, characters, EOS, PAD...), padding ignored."""
        given, wanted = targets[:, :-1], targets[:, 1:]
        padding = (given == self.pad_id) | (given == EOS)  # [B, L - 1], never keys
        logits = self.head(self.decode(given, self.encode(images), padding))
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=self.pad_id)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Greedy logits `[B, steps, C + 1]`.

        Without `max_length` decoding stops once every row holds an EOS; with it, `max_length + 1` steps are made.
        Each step computes one token: keys and values of the earlier ones are kept.
        """
        steps = decoding_steps(self.max_label_length, max_length)
        memory = self.encode(images)
        layers = self.decoder.layers
        context = [layer.cross_attn.keys_values(memory) for layer in layers]
        caches = [KeyValueCache(steps) for _ in layers]

        def step(tokens: Tensor, position: int) -> Tensor:
            x = self.embed(tokens[:, None], start=position)  # [B, 1, d]
            for layer, cache, seen in zip(layers, caches, context):
                x = layer(x, cache.append(*layer.self_attn.keys_values(x)), seen, None)
            return self.head(self.decoder.norm(x))[:, 0]

        first = torch.full(images.shape[:1], self.bos_id, dtype=torch.long, device=images.device)
        return greedy_decode(step, first, steps, end=EOS if max_length is None else None).logits


class ClusterSeq(TransOCR):
    """TransOCR whose encoder and decoder widths must agree, always with the standard encoder."""

    def __init__(self, charset_size: int, *args, enc_embed_dim: int = 384, dec_embed_dim: int = 384, **options) -> None:
        if enc_embed_dim != dec_embed_dim:
            raise ValueError(f"ClusterSeq: enc_embed_dim {enc_embed_dim} must equal dec_embed_dim {dec_embed_dim}")
        super().__init__(charset_size, *args, enc_embed_dim=enc_embed_dim, dec_embed_dim=dec_embed_dim, **options)


def place(embedded: Tensor, positions: Tensor, start: int) -> Tensor:
    """Add `positions[j - 1]` to token j >= 1; `embedded` `[B, L, d]` begins at token `start`."""
    length = embedded.shape[1]
    if start:  # a decoding in progress: BOS is in the cache
        return embedded + positions[:, start - 1 : start - 1 + length]
    return torch.cat([embedded[:, :1], embedded[:, 1:] + positions[:, : length - 1]], dim=1)


def initialise(model: nn.Module) -> None:
    """Everything but the encoder: trunc-normal(0.02) Linear and Embedding weights and `pos_queries`, zero biases."""
    for name, module in model.named_modules():
        if name == "encoder" or name.startswith("encoder."):
            continue
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.pos_queries, std=0.02)
