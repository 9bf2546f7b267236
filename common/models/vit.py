"""The plain vision transformer of the recognisers, on timm's layers, under the names and with the start of timm 0.4.12.

Used by SIGA-T, MGP-STR, ACDS-STR, ViTSTR and, without a class token, by SSM.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class PlainViT(VisionTransformer):
    """timm's VisionTransformer with learned positions, pre-norm blocks and LayerNorm eps 1e-6.

    `image_size` (H, W), `patch` side or (h, w); `num_classes=0` leaves the head out. State-dict names: `cls_token`,
    `pos_embed`, `patch_embed.proj`, `blocks.i.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}`, `norm`, `head`.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 128),
        patch: int | tuple[int, int] = 4,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_classes: int = 0,
        *,
        in_channels: int = 3,
        class_token: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            in_chans=in_channels,
            num_classes=num_classes,
            global_pool="token" if class_token else "",
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            class_token=class_token,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        if class_token:  # timm draws it with 1e-6 today, with 0.02 when the originals were written
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] -> tokens [B, N(+1), D]: patches row by row, class token first, positions added."""
        tokens = self.patch_embed(images)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.pos_embed

    def block_outputs(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each block's output [B, N(+1), D] in turn; the final `norm` is not applied."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens
