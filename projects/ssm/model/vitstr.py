"""ViTSTR (Atienza, ICDAR 2021): a ViT whose first tokens are the characters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.vit import PlainViT
from projects.ssm.model.layers import decoding_steps


class ViTSTR(nn.Module):
    """Reads `[B, 3, H, W]` crops, normalised to [-1, 1]: logits `[B, max_length + 1, C + 1]`, class 0 ends a word."""

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (224, 224),
        patch_size: tuple[int, int] = (16, 16),
        *,
        embed_dim: int = 384,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        self.max_label_length, self.pad_id = max_label_length, charset_size + 2
        self.model = PlainViT(tuple(img_size), tuple(patch_size), embed_dim, 12, num_heads, charset_size + 1)
        nn.init.trunc_normal_(self.model.head.weight, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameter names that weight decay leaves alone."""
        return {f"model.{name}" for name in ("pos_embed", "cls_token", "dist_token")}

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of `targets` `[B, L]` (BOS, characters, EOS, PAD...), padding ignored."""
        wanted = targets[:, 1:]
        logits = self(images, wanted.shape[1] - 1)  # as many positions as the batch's longest word needs
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=self.pad_id)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        steps = decoding_steps(self.max_label_length, max_length)
        tokens = self.model.forward_features(images)
        # the class token and what follows stand for BOS and the characters; BOS is dropped
        return self.model.head(tokens[:, 1 : steps + 1])
