"""Pre-training by reading and writing: masked image modelling and contrast on one ViT (published class `MoCo_ViT`)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.losses.contrastive import info_nce
from common.models.siamese import frozen_copy, projection_mlp
from common.train.optim import ema_update
from projects.dig.model.encoder import SIZES, Encoder, EncoderSize
from projects.dig.model.pooling import patch_head


class PretrainOutput(NamedTuple):
    """What one forward pass gives; the fields of an absent branch are None.

    `pixels`: predictions of the masked tokens, `[B, n, p * p * 3]` for each view that has masked tokens, rows in
    ascending token order. `contrast`: scalar loss. `accuracies`: percent, named as the published meters.
    """

    contrast: Tensor | None
    accuracies: dict[str, Tensor]
    pixels: list[Tensor] | None


class MoCoViT(nn.Module):
    """Online encoder, its momentum copy, projectors, predictor, patch head and pixel decoder.

    Args:
        size: encoder variant.
        pixel, contrast: which branches exist.
        dim, mlp_dim: width of the projections and of their hidden layers (`--moco_dim`, `--moco_mlp_dim`).
        temperature: of the contrast.
        windows, patchnet_name: the patch head, see `projects.dig.model.pooling`.
        drop_path: stochastic depth of both encoders.
        image_size: (height, width).
    """

    def __init__(
        self,
        size: EncoderSize,
        *,
        pixel: bool = True,
        contrast: bool = True,
        dim: int = 256,
        mlp_dim: int = 4096,
        temperature: float = 1.0,
        windows: int = 4,
        patchnet_name: str = "no_patchtrans",
        drop_path: float = 0.0,
        image_size: tuple[int, int] = (32, 128),
    ) -> None:
        super().__init__()
        self.temperature, self.has_pixel, self.has_contrast = temperature, pixel, contrast
        self.encoder = Encoder(size, image_size, final_norm=not contrast, drop_path=drop_path)
        width, grid = size.dim, self.encoder.grid
        # the order of these lines is the order of the published state dict
        if contrast:
            self._redraw_patch_embed()
            self.momentum_encoder = frozen_copy(self.encoder)
            self.encoder_projection_layer = projection_mlp(width, mlp_dim, mlp_dim, dim)
            self.momentum_projection_layer = frozen_copy(self.encoder_projection_layer)
            self.predictor = projection_mlp(dim, mlp_dim, dim)
            self.patch_extractor = patch_head(patchnet_name, width, size.heads, grid, windows)
            self.momentum_patch_extractor = frozen_copy(self.patch_extractor)
        if contrast and pixel:
            self.pix_projector = projection_mlp(width, size.pixel_hidden, size.pixel_hidden, width)
            self.pix_projector_m = frozen_copy(self.pix_projector)
        if pixel:
            self.pix_decoder = pixel_decoder(width, 3 * size.patch**2)

    def _redraw_patch_embed(self) -> None:
        """MoCo v3's stem: uniform, as if the convolution were a Linear layer over the patch."""
        projection = self.encoder.patch_embed.proj
        bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
        nn.init.uniform_(projection.weight, -bound, bound)
        nn.init.zeros_(projection.bias)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(momentum module, the online module that it follows), in the order of the update."""
        names = [("momentum_encoder", "encoder"), ("momentum_projection_layer", "encoder_projection_layer"),
                 ("momentum_patch_extractor", "patch_extractor"), ("pix_projector_m", "pix_projector")]  # fmt: skip
        return [(getattr(self, m), getattr(self, o)) for m, o in names if hasattr(self, m)]

    def update_momentum(self, momentum: float) -> None:
        """Move the momentum parameters towards the online ones; BatchNorm statistics are not averaged."""
        averaged, online = [], []
        for copy_, module in self.pairs():
            averaged += copy_.parameters()
            online += module.parameters()
        ema_update(averaged, online, momentum)

    def forward(
        self, images: Tensor, augmented: Tensor, mask: Tensor, momentum: float = 0.99, only_first: bool = True
    ) -> PretrainOutput:
        """One step's losses.

        Args:
            images, augmented: the two views, `[B, 3, H, W]` in [-1, 1].
            mask: bool `[B, 2, N]`, True where a token is hidden. A model without pixel branch sees no mask at all.
            momentum: weight kept by the momentum branch. It moves here, before the keys are computed, and only in
            training mode.
            only_first: view 2 is not masked and not reconstructed (`--only_mim_on_ori_img`).
        """
        views = torch.cat([images, augmented])  # one call for both: [2B, 3, H, W]
        hidden = self._view_major(mask, only_first) if self.has_pixel else None
        tokens = self.encoder(views, hidden)  # [2B, N, D]
        contrast, accuracies = None, {}
        if self.has_contrast:
            queries = self.predictor(self.project(tokens, online=True))
            keys = self._keys(views, hidden, momentum)
            # symmetric: the windows of each view must find those of the other
            (q1, q2), (k1, k2) = queries.chunk(2), keys.chunk(2)
            first, second = info_nce(q1, k2, self.temperature), info_nce(q2, k1, self.temperature)
            contrast = first.loss + second.loss
            accuracies = {"q1_acc1": first.top1, "q1_acc5": first.top5, "q2_acc1": second.top1, "q2_acc5": second.top5}
        pixels = self._pixels(tokens, hidden, only_first) if self.has_pixel else None
        return PretrainOutput(contrast, accuracies, pixels)

    @staticmethod
    def _view_major(mask: Tensor, only_first: bool) -> Tensor:
        """`[B, 2, N]` -> `[2 * B, N]`, all first views, then all second ones; the latter cleared with `only_first`."""
        first, second = mask.unbind(1)
        return torch.cat([first, torch.zeros_like(second) if only_first else second])

    def project(self, tokens: Tensor, online: bool) -> Tensor:
        """Tokens `[2B, N, D]` -> projections `[2B * W, d]`. The masked view passes the pixel projector first (section
        3.2)."""
        names = ("pix_projector", "patch_extractor", "encoder_projection_layer")
        averaged = ("pix_projector_m", "momentum_patch_extractor", "momentum_projection_layer")
        projector, head, projection = (getattr(self, name, None) for name in (names if online else averaged))
        if projector is not None:
            masked, plain = tokens.chunk(2)
            # BatchNorm statistics over all tokens of the masked view, [B * N, D]
            masked = projector(masked.flatten(0, 1)).view_as(masked)
            tokens = torch.cat([masked, plain.to(masked.dtype)])
        return projection(head(tokens).flatten(0, 1))  # instances of the contrast, image-major: `[2B * W, D]`

    @torch.no_grad()
    def _keys(self, views: Tensor, hidden: Tensor | None, momentum: float) -> Tensor:
        if self.training:  # before the keys are computed, so the first step already compares with a moved copy
            self.update_momentum(momentum)
        return self.project(self.momentum_encoder(views, hidden), online=False)

    def _pixels(self, tokens: Tensor, hidden: Tensor, only_first: bool) -> list[Tensor]:
        """Predictions for hidden tokens, from the encoder's own output (before the pixel projector)."""
        if only_first:
            # view 2 has no hidden token: decoding it would be thrown away
            tokens, hidden = tokens.chunk(2)[0], hidden.chunk(2)[0]
        views = 1 if only_first else 2
        chosen = self.pix_decoder(tokens[hidden].view(len(tokens), -1, tokens.shape[-1]))  # [views * B, n, p * p * 3]
        return list(chosen.chunk(views))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted pixels of every token, `[B, N, p * p * 3]`, of images `[B, 3, H, W]` under `mask` `[B, N]`."""
        return self.pix_decoder(self.encoder(images, mask))


def pixel_decoder(width: int, out: int, hidden: int = 192) -> nn.Sequential:
    """Two Linear layers (nothing between them, as published), LayerNorm, GELU, Linear to a patch's pixels."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.Linear(hidden, hidden, bias=False),
        nn.LayerNorm(hidden, eps=1e-6),
        nn.GELU(),
        nn.Linear(hidden, out),
    )


BRANCHES = {"simmim_moco": (True, True), "simmim": (True, False), "moco": (False, True)}
MODELS = {
    f"pretrain_{kind}_ori_vit_{size}_patch{SIZES[size].patch}_32x128": (kind, size)
    for kind in BRANCHES
    for size in SIZES
}
"""Names that `--model` takes -> (branches, size); the "micro" ones are additional, the others published."""


def build_pretrainer(model: str, **options) -> MoCoViT:
    """The pre-trainer of this name; `options` as for `MoCoViT`. Raises KeyError for an unknown name."""
    kind, size = MODELS[model]
    pixel, contrast = BRANCHES[kind]
    return MoCoViT(SIZES[size], pixel=pixel, contrast=contrast, **options)
