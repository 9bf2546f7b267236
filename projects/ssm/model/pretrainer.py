"""Symmetric superimposition modelling: the pre-training network (SSM, IJCAI 2024, section 3).

A ViT sees only m = (x + F(x)) / 2 and a light decoder, prompted by a direction embedding, separates the two images.
A momentum copy of encoder, decoder and projector sees a second superimposition and gives the contrastive targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from common.models.images import patchify, unpatchify
from common.models.positions import sincos_2d
from common.models.siamese import frozen_copy, pool_windows, projection_mlp
from common.train.optim import ema_update
from projects.ssm.model.layers import ScaledEmbedding, run, vit_blocks, vit_norm, xavier_linear

WINDOWS = 4
"""Horizontal windows a feature map is pooled to; each is one instance of the contrast."""


@dataclass
class Separation:
    """What one prompt gives: features `[B, N, d]`, pixels `[B, N, p*p*3]`, online `q` and momentum `k` `[B*4, d]`."""

    features: Tensor
    pixels: Tensor
    q: Tensor
    k: Tensor
    target_features: Tensor


@dataclass
class SSMOutput:
    """`latent` `[B, N, D]` and one `Separation` for the original ("positive") and the inverted ("negative") image."""

    latent: Tensor
    positive: Separation
    negative: Separation


class SSMPretrainer(nn.Module):
    """Online network, frozen momentum copy, and the forward pass that trains the one against the other.

    Args:
        img_size, patch_size: (height, width) in pixels.
        embed_dim, depth, num_heads: encoder; decoder_*: the prompted decoder.
        mlp_dim: hidden width of projector and predictor (published: 4096).
        copy_prompt: start the momentum prompt embedding as a copy too (published: its own draw).
        ema_decoder_twice: average the decoder blocks twice a step, as published.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (32, 128),
        patch_size: tuple[int, int] = (4, 4),
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        decoder_dim: int = 256,
        decoder_depth: int = 4,
        decoder_heads: int = 8,
        mlp_ratio: float = 4.0,
        mlp_dim: int = 4096,
        directions: int = 4,
        copy_prompt: bool = False,
        ema_decoder_twice: bool = True,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = tuple(img_size), tuple(patch_size)
        self.grid = (img_size[0] // patch_size[0], img_size[1] // patch_size[1])
        self.ema_decoder_twice = ema_decoder_twice
        self.pos_embed = fixed(sincos_2d(*self.grid, embed_dim))
        self.decoder_pos_embed = fixed(sincos_2d(*self.grid, decoder_dim))
        self.prompt_embd = ScaledEmbedding(directions, decoder_dim)
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        self.blocks = vit_blocks(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = vit_norm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_dim)
        self.decoder_blocks = vit_blocks(decoder_depth, decoder_dim, decoder_heads, mlp_ratio)
        self.decoder_norm = vit_norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, patch_size[0] * patch_size[1] * 3)
        self.student_norm = nn.LayerNorm(decoder_dim).requires_grad_(False)  # of L_den, which is off as published
        self.projection_layer = projection_mlp(decoder_dim, mlp_dim, mlp_dim, decoder_dim)
        self.predictor = projection_mlp(decoder_dim, mlp_dim, decoder_dim)
        self.apply(xavier_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # the patch convolution as a Linear layer
        # the momentum copies (mm_) begin equal to the online network; the predictor has none, as in MoCo v3
        self.mm_patch_embed = frozen_copy(self.patch_embed)
        self.mm_norm = frozen_copy(self.norm)
        self.mm_blocks = frozen_copy(self.blocks)
        self.mm_projection_layer = frozen_copy(self.projection_layer)
        self.mm_decoder_embed = frozen_copy(self.decoder_embed)
        self.mm_decoder_blocks = frozen_copy(self.decoder_blocks)
        self.mm_decoder_norm = frozen_copy(self.decoder_norm)
        # published: the momentum prompt keeps its own N(0, 1) draw and only drifts towards the online one
        prompt = self.prompt_embd if copy_prompt else ScaledEmbedding(directions, decoder_dim)
        self.mm_prompt_embd = frozen_copy(prompt)

    def encode(self, images: Tensor, momentum: bool = False) -> Tensor:
        """`[B, 3, H, W]` -> latent `[B, N, D]`. Both networks add the same fixed position table."""
        embed, blocks, norm = (
            (self.mm_patch_embed, self.mm_blocks, self.mm_norm)
            if momentum
            else (self.patch_embed, self.blocks, self.norm)
        )
        return norm(run(blocks, embed(images) + self.pos_embed))

    def decode(self, latent: Tensor, directions: Tensor, momentum: bool = False) -> Tensor:
        """Decoder features `[P*B, N, d]` for `directions` `[P, B]`: P prompts of each image in one batch."""
        embed, prompts, blocks, norm = (
            (self.mm_decoder_embed, self.mm_prompt_embd, self.mm_decoder_blocks, self.mm_decoder_norm)
            if momentum
            else (self.decoder_embed, self.prompt_embd, self.decoder_blocks, self.decoder_norm)
        )
        tokens = (embed(latent) + self.decoder_pos_embed).repeat(len(directions), 1, 1)  # [P * B, N, d]
        prompt = prompts(directions.flatten())[:, None]  # [P * B, 1, d], the first token, dropped behind the blocks
        return norm(run(blocks, torch.cat([prompt, tokens], dim=1)))[:, 1:]

    def windows(self, features: Tensor) -> Tensor:
        """Mean of each of the 4 horizontal windows: `[B, N, d]` -> `[B*4, d]`, rows (image, window)."""
        return pool_windows(features, self.grid, WINDOWS).flatten(0, 1)

    def forward(self, mix: Tensor, teacher_mix: Tensor, directions: Tensor, momentum: float | None = None) -> SSMOutput:
        """Separate `mix` and describe `teacher_mix` with the momentum network.

        Args:
            mix, teacher_mix: `[B, 3, H, W]` in [0, 1].
            directions: `[2, B]` ids; row 0 the original's (0), row 1 the inverted view's (1, 2 or 3).
            momentum: EMA momentum, applied before the targets are computed; None leaves the copy as it is.
        """
        latent = self.encode(mix)  # once: only the prompt says which of the two images is asked for
        features = self.decode(latent, directions).chunk(2)  # (original, inverted), [B, N, d] each
        # two calls, not one batch: the published batch norms see one prompt's windows at a time
        queries = [self.predictor(self.projection_layer(self.windows(part))) for part in features]
        with torch.no_grad():
            if momentum is not None:
                self.update_momentum(momentum)
            target_latent = self.encode(teacher_mix, momentum=True)
            targets = self.decode(target_latent, directions, momentum=True).chunk(2)
            keys = [self.mm_projection_layer(self.windows(part)) for part in targets]
        positive, negative = (
            Separation(part, self.decoder_pred(part), q, k, target)
            for part, q, k, target in zip(features, queries, keys, targets)
        )
        return SSMOutput(latent, positive, negative)

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """k <- m k + (1 - m) q in float32; batch-norm statistics are not averaged."""
        names = [name.removeprefix("mm_") for name, _ in self.named_children() if name.startswith("mm_")]
        for name in names:
            # two moves with the same online weights are one with m^2
            times = 2 if name == "decoder_blocks" and self.ema_decoder_twice else 1
            ema_update(getattr(self, f"mm_{name}").parameters(), getattr(self, name).parameters(), momentum**times)

    def separate(self, mix: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted original and inverted image, each `[B, 3, H, W]`."""
        pixels = self.decoder_pred(self.decode(self.encode(mix), directions))
        original, inverted = unpatchify(pixels, self.patch_size, self.img_size).chunk(2)
        return original, inverted


def pixel_target(images: Tensor, patch: tuple[int, int], normalise: bool) -> Tensor:
    """Patch vectors `[B, N, p*p*3]`, standardised per patch (unbiased variance, eps 1e-6) where asked."""
    target = patchify(images, patch)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return target


def fixed(table: Tensor) -> nn.Parameter:
    return nn.Parameter(table[None], requires_grad=False)


_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6, "decoder_dim": 256, "decoder_heads": 8}
_SIZES = {
    "small_dec256d4b": {**_SMALL, "decoder_depth": 4},
    "tiny_dec128d4b": {"embed_dim": 192, "depth": 12, "num_heads": 3, "decoder_dim": 128,
                      "decoder_depth": 4, "decoder_heads": 4},
    **{f"small_dec256d{depth}b": {**_SMALL, "decoder_depth": depth} for depth in (1, 2, 6, 8)},
    # despite its name the published "dec384" is 256 wide and 8 deep
    "small_dec384d4b": {**_SMALL, "decoder_depth": 8},
    # not published, for CPUs: patches 16 high and 8 wide, about 0.8 M parameters in the encoder
    "micro_patch16x8": {
        "embed_dim": 128, "depth": 4, "num_heads": 4, "decoder_dim": 64, "decoder_depth": 2,
        "decoder_heads": 2, "mlp_dim": 256,
    },
}  # fmt: skip
VARIANTS: dict[str, str] = {
    "flipae_sim_vit_small_str": "small_dec256d4b",
    "flipae_sim_vit_small_dec256d4b": "small_dec256d4b",
    "flipae_vit_small_str": "small_dec256d4b",
    "flipae_vit_small_dec256d4b": "small_dec256d4b",
    "flipae_vit_tiny_str": "tiny_dec128d4b",
    "flipae_vit_tiny_dec128d4b": "tiny_dec128d4b",
    **{f"flipae_vit_small_strdec{depth}": f"small_dec256d{depth}b" for depth in (1, 2, 6, 8)},
    **{f"flipae_vit_small_dec256d{depth}b": f"small_dec256d{depth}b" for depth in (1, 2, 6, 8)},
    "flipae_vit_small_strdim384": "small_dec384d4b",
    "flipae_vit_small_dec384d4b": "small_dec384d4b",
    "ssm_micro_patch16x8": "micro_patch16x8",
}
"""Names that `--model` takes -> size; all but the last are published."""


def build_pretrainer(name: str, **options) -> SSMPretrainer:
    """The pre-trainer `name` of `VARIANTS`; `options` override its sizes. Raises KeyError for an unknown name."""
    size = dict(_SIZES[VARIANTS[name]])
    if VARIANTS[name] == "micro_patch16x8":
        size["patch_size"] = (16, 8)
    return SSMPretrainer(**{**size, **options})
