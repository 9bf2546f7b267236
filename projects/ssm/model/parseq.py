"""PARSeq: permuted autoregressive sequence models (Bautista and Atienza, ECCV 2022), as fine-tuned by SSM."""

from __future__ import annotations

import json
from itertools import permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.decoders import KeyValueCache, greedy_decode
from projects.ssm.model.attention import MultiheadAttention
from projects.ssm.model.encoders import ViTEncoder
from projects.ssm.model.layers import decoding_steps
from projects.ssm.model.transocr import EOS, TokenReader, place


class TwoStreamLayer(nn.Module):
    """Pre-norm decoder layer; queries know positions only and read the content stream (XLNet's two streams)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.cross_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm_q, self.norm_c = (nn.LayerNorm(dim) for _ in range(4))
        self.drop = nn.Dropout(dropout)

    def update(
        self,
        stream: Tensor,
        normed: Tensor,
        content: tuple[Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """Move `stream` `[B, L, d]` (given also normalised) by the content's and the memory's keys and values."""
        stream = stream + self.drop(self.self_attn.attend(normed, *content, mask))
        stream = stream + self.drop(self.cross_attn.attend(self.norm1(stream), *memory))
        return stream + self.drop(self.linear2(self.drop(F.gelu(self.linear1(self.norm2(stream))))))


class TwoStreamDecoder(nn.Module):
    """Stack of `TwoStreamLayer`; the last one leaves the content stream alone."""

    def __init__(self, dim: int, heads: int, hidden: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoStreamLayer(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def memory_keys(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [layer.cross_attn.keys_values(memory) for layer in self.layers]

    def forward(
        self,
        queries: Tensor,
        content: Tensor,
        memory: list[tuple[Tensor, Tensor]],
        query_mask: Tensor | None,
        content_mask: Tensor | None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Features of `queries`; with `caches` the content is only the newest token and the earlier ones are kept."""
        last = len(self.layers) - 1
        # both streams attend to the same keys and values, those of the content: queries never see one another
        for index, (layer, seen) in enumerate(zip(self.layers, memory)):
            normed = layer.norm_c(content)
            known = layer.self_attn.keys_values(normed)
            if caches is not None:
                known = caches[index].append(*known)
            queries = layer.update(queries, layer.norm_q(queries), known, seen, query_mask)
            if index != last:
                content = layer.update(content, normed, known, seen, content_mask)
        return self.norm(queries)


class PARSeq(TokenReader):
    """Reads `[B, 3, H, W]` crops, normalised to [-1, 1]. Classes: 0 ends a word, then the charset (C + 1 in all).

    Args:
        perm_num, perm_forward, perm_mirrored: orders per training step, the identity among them, with reversals.
        decode_ar: greedy decoding token by token, else all positions at once.
        refine_iters: passes in which every position is read again given all the others.
    """

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        patch_size: tuple[int, int] = (4, 8),
        *,
        embed_dim: int = 384,
        enc_num_heads: int = 6,
        enc_mlp_ratio: float = 4,
        enc_depth: int = 12,
        dec_num_heads: int = 12,
        dec_mlp_ratio: float = 4,
        dec_depth: int = 1,
        dropout: float = 0.1,
        perm_num: int = 6,
        perm_forward: bool = True,
        perm_mirrored: bool = True,
        decode_ar: bool = True,
        refine_iters: int = 1,
    ) -> None:
        super().__init__(charset_size, max_label_length, embed_dim)
        self.decode_ar, self.refine_iters = decode_ar, refine_iters
        self.permutations = Permutations(perm_num, perm_forward, perm_mirrored)
        self.encoder = ViTEncoder(img_size, patch_size, embed_dim, enc_depth, enc_num_heads, enc_mlp_ratio)
        self.decoder = TwoStreamDecoder(embed_dim, dec_num_heads, int(embed_dim * dec_mlp_ratio), dec_depth, dropout)
        self.finish(charset_size, embed_dim, dropout)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Content of the tokens; position j of the word carries `pos_queries[j - 1]` and BOS (j = 0) none."""
        return self.drop(place(self.text_embed(ids), self.pos_queries, start))

    def queries(self, batch: int, start: int, stop: int) -> Tensor:
        return self.drop(self.pos_queries[:, start:stop].expand(batch, -1, -1))

    def loss(self, images: Tensor, targets: Tensor, orders: Tensor | None = None) -> Tensor:
        """Mean cross-entropy over permuted orders of `targets` `[B, L]` (BOS, characters, EOS, PAD; section 3.2).

        `orders` `[K, L]` are permutations of the positions; drawn where absent. Only the first two orders learn EOS.
        """
        memory = self.decoder.memory_keys(self.encoder(images))
        given, wanted = targets[:, :-1], targets[:, 1:]  # what is read, and the token that follows it
        padding = (given == self.pad_id) | (given == EOS)  # [B, L - 1], never keys
        if orders is None:
            orders = self.permutations.draw(targets.shape[1] - 2, targets.device)
        total, count = 0.0, 0
        for index, order in enumerate(orders):
            content_mask, query_mask = attention_masks(order)
            visible = ~padding[:, None, None]
            features = self.decoder(
                self.queries(len(images), 0, given.shape[1]),
                self.embed(given),
                memory,
                query_mask.to(given.device) & visible,
                content_mask.to(given.device) & visible,
            )
            loss = F.cross_entropy(self.head(features).flatten(0, 1), wanted.flatten(), ignore_index=self.pad_id)
            tokens = int((wanted != self.pad_id).sum())
            total, count = total + loss * tokens, count + tokens  # a mean over all tokens of all orders
            if index == 1:  # forward and backward have learnt the end; the others have nothing to add
                wanted = wanted.masked_fill(wanted == EOS, self.pad_id)
        return total / count

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Logits `[B, steps, C + 1]`: greedy (`decode_ar`) or all at once, then refined `refine_iters` times.

        Without `max_length` the greedy pass stops once every row holds an EOS.
        """
        steps = decoding_steps(self.max_label_length, max_length)
        memory = self.decoder.memory_keys(self.encoder(images))
        first = torch.full(images.shape[:1], self.bos_id, dtype=torch.long, device=images.device)
        if self.decode_ar:
            logits = self._read_greedily(memory, first, steps, early_stop=max_length is None)
        else:
            # NAR: every position sees BOS alone
            queries = self.queries(images.shape[0], 0, steps)
            logits = self.head(self.decoder(queries, self.embed(first[:, None]), memory, None, None))
        for _ in range(self.refine_iters):
            logits = self._refine(memory, first, logits, steps)
        return logits

    def _read_greedily(self, memory: list, first: Tensor, steps: int, early_stop: bool) -> Tensor:
        caches = [KeyValueCache(steps) for _ in self.decoder.layers]

        def step(tokens: Tensor, position: int) -> Tensor:
            queries = self.queries(tokens.shape[0], position, position + 1)
            content = self.embed(tokens[:, None], start=position)
            return self.head(self.decoder(queries, content, memory, None, None, caches))[:, 0]

        return greedy_decode(step, first, steps, end=EOS if early_stop else None).logits

    def _refine(self, memory: list, first: Tensor, logits: Tensor, steps: int) -> Tensor:
        """Each position sees every token but its own; tokens from the first EOS on are hidden (cloze mask)."""
        given = torch.cat([first[:, None], logits[:, :-1].argmax(-1)], dim=1)
        visible = ~((given == EOS).int().cumsum(-1) > 0)[:, None, None]
        # all `steps` positions are read again even where the greedy pass stopped early, as published
        # query i reads position i + 1 and may see every token j (0 = BOS) but that one
        others = ~torch.diag(torch.ones(max(steps - 1, 0), dtype=torch.bool, device=given.device), 1)
        cloze = others[:, : given.shape[1]]
        content_mask = cloze[: given.shape[1]] & visible
        queries = self.queries(given.shape[0], 0, steps)
        return self.head(self.decoder(queries, self.embed(given), memory, cloze & visible, content_mask))


def attention_masks(order: Tensor) -> tuple[Tensor, Tensor]:
    """Content and query masks `[L - 1, L - 1]`, True = may be seen, of one order `[L]` of BOS, characters and EOS."""
    length = len(order)
    seen = torch.ones(length, length, dtype=torch.bool)
    for rank, position in enumerate(order.tolist()):
        seen[position, order[rank + 1 :]] = False  # what comes later in this order
    content = seen[:-1, :-1].clone()  # EOS is never read, so it has no row and no column
    seen[torch.eye(length, dtype=torch.bool)] = False  # a query must not see its own answer
    return content, seen[1:, :-1]  # BOS is never predicted


class Permutations:
    """Draws the orders of a training step (paper, section 3.2).

    Words below five characters choose from the pool of all orders, longer ones are shuffled.
    """

    def __init__(self, count: int, forward: bool, mirrored: bool, seed: int | None = None) -> None:
        if mirrored and count % 2:
            raise ValueError(f"perm_num: {count} must be even when perm_mirrored is on")
        self.count, self.forward, self.mirrored = count // 2 if mirrored else count, forward, mirrored
        self.random = np.random.default_rng(seed)

    def draw(self, characters: int, device: torch.device | str = "cpu") -> Tensor:
        """`[K, characters + 2]` orders of BOS (0), the characters and EOS (the last position)."""
        if characters == 1:  # BOS, one character, EOS: there is one order only
            return torch.arange(3, device=device)[None]
        orders = [torch.arange(characters)] if self.forward else []
        available = factorial(characters) // (2 if self.mirrored else 1)
        wanted = min(self.count, available)
        if characters < 5:
            pool = short_pool(characters, self.mirrored)
            pool = pool[1:] if self.forward else pool  # the first is the identity, which is there already
            chosen = self.random.choice(len(pool), size=wanted - len(orders), replace=False)
            orders += list(pool[chosen])
        else:
            orders += [torch.randperm(characters) for _ in range(wanted - len(orders))]
        stacked = torch.stack(orders)
        if self.mirrored:
            stacked = torch.stack([stacked, stacked.flip(-1)], dim=1).flatten(0, 1)
        bos = stacked.new_zeros(len(stacked), 1)
        stacked = torch.cat([bos, stacked + 1, bos + characters + 1], dim=1)
        if len(stacked) > 1:
            # the second order is the reverse one; it asks for EOS first
            stacked[1, 1:] = characters + 1 - torch.arange(characters + 1)
        return stacked.to(device)

    def state_dict(self) -> str:
        """The state of the generator of short words, as text."""
        return json.dumps(self.random.bit_generator.state)

    def load_state_dict(self, state: str) -> None:
        self.random.bit_generator.state = json.loads(state)


def short_pool(characters: int, mirrored: bool) -> Tensor:
    """Orders of fewer than five characters, lexicographic; with mirroring, one of each pair of reversals."""
    pool = list(permutations(range(characters)))
    if mirrored:
        if characters == 4:  # the published choice; for four the first half holds some reversals
            pool = [pool[index] for index in (0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21)]
        else:
            pool = pool[: len(pool) // 2]
    return torch.tensor(pool)
