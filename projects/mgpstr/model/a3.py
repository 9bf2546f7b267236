"""A3, "adaptive addressing and aggregation" (MGP-STR, section 3.2): from N tokens of the encoder to T tokens of a text.

With x' = LN(x): m = softmax over tokens of W2 (W1 *g x') in R^{T x N}, f = Wf *g x', y = LN(m f), where *g is a 1x1
convolution in 8 groups and nothing lies between W1 and W2. All of that but the softmax is linear, so `aggregate` does
the same in another order: W2 W1 is multiplied out once a batch; the token normalisation, whose statistics all
granularities share, is taken once; its gain goes into W2 W1 and Wf; its bias drops out of the softmax and passes
through m, whose rows sum to 1; and Wf works on the T results instead of the N tokens. One matrix product serves the
addresses of all granularities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 8


def apply_grouped(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A grouped 1x1 convolution on channels-last tokens: weight [D, D/8, 1, 1], x [B, T, D] -> [B, T, D]."""
    width = x.shape[-1] // GROUPS
    grouped = x.unflatten(-1, (GROUPS, width)).unsqueeze(-2)  # [B, T, 8, 1, D / 8]
    return (grouped @ weight.view(GROUPS, width, width).transpose(-2, -1)).flatten(-3)


class A3(nn.Module):
    """Parameters of one granularity under the published names. `dim` is divisible by 8; `length` is T."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.tokenLearner = nn.Sequential(
            nn.Conv2d(dim, dim, 1, groups=GROUPS, bias=False), nn.Conv2d(dim, length, 1, bias=False)
        )
        self.feat = nn.Conv2d(dim, dim, 1, groups=GROUPS, bias=False)
        self.norm = nn.LayerNorm(dim)

    def address(self) -> torch.Tensor:
        """W2 W1 times the gain of the token norm: [T, D], what a normalised token is multiplied with."""
        first, second = self.tokenLearner[0].weight, self.tokenLearner[1].weight  # W1 [D, D/8, 1, 1], W2 [T, D, 1, 1]
        width = first.shape[1]
        # group g of W1 maps channels of group g to channels of group g, so W2 meets it group by group
        grouped = second.view(len(second), GROUPS, 1, width) @ first.view(GROUPS, width, width)
        return grouped.reshape(len(second), -1) * self.token_norm.weight

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """Attention-weighted sums [B, T, D] of normalised tokens -> y [B, T, D]."""
        # `aggregate` does not apply the token norm's gain and bias: they act here
        return self.norm(apply_grouped(self.feat.weight, pooled * self.token_norm.weight + self.token_norm.bias))


def aggregate(modules: Sequence[A3], tokens: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Encoder output [B, N, D] -> for each module its attention m [B, T, N] and its tokens y [B, T, D]."""
    norm = modules[0].token_norm  # for its eps alone: gain and bias are each module's own
    normalised = F.layer_norm(tokens, norm.normalized_shape, eps=norm.eps)
    addresses = torch.cat([module.address() for module in modules])  # [modules * T, D]
    # the token norm's bias adds the same to all tokens of a row and so drops out of the softmax
    attention = (addresses.to(normalised.dtype) @ normalised.transpose(-2, -1)).softmax(-1)
    pooled = (attention @ normalised).chunk(len(modules), dim=1)
    return list(attention.chunk(len(modules), dim=1)), [module.features(part) for module, part in zip(modules, pooled)]
