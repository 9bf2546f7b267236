"""Multi-head attention with torch's parameter names, split so that keys and values can be kept between steps."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from common.models import cpu


class MultiheadAttention(nn.MultiheadAttention):
    """`in_proj_weight`, `in_proj_bias`, `out_proj` as in torch; dropout acts on the attention weights in training."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout=dropout, batch_first=True)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _project(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        rows = slice(start * self.embed_dim, stop * self.embed_dim)  # torch's in_proj holds q, k and v in this order
        return F.linear(tokens, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, L, head_dim]` of `tokens` `[B, L, dim]`."""
        keys, values = self._project(tokens, 1, 3).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of `queries` `[B, L, dim]` over given keys and values; `mask` is True where a key may be seen."""
        dropout = self.dropout if self.training else 0.0
        heads = self._heads(self._project(queries, 0, 1))
        mixed = F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, queries: Tensor, memory: Tensor | tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """Attention of `queries` over `memory`: tokens `[B, K, dim]`, or keys and values that were kept of them."""
        if isinstance(memory, tuple):
            return self.attend(queries, *memory, mask)
        few = self.num_heads * queries.shape[1] <= self.embed_dim // 2  # else folding costs more than it saves
        if few and self.training and mask is None and memory.device.type == "cpu" and cpu.enabled():
            return cpu.attend_folded(self, queries, memory)
        return self.attend(queries, *self.keys_values(memory), mask)
