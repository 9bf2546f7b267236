"""The character-aware UNet (TextSSR, ICCV 2025, section 3): stock diffusers, 13 input channels, a glyph ViT as context.

Input channels: 0-3 noisy latent, 4-7 latent of the masked image, 8-11 latent of the word glyph, 12 mask (1 = keep). The
cross-attention context is 65 tokens of 25 character planes instead of a text encoder's.
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.train import checkpoint

INPUT_CHANNELS = 13
PLANES, PLANE_SIZE, CONTEXT = 25, 64, 1024


class PlaneEmbed(PatchEmbed):
    """Patches of character planes `[B, 25, 64, 64]` -> `[B, 64, width]`; with `used_only`, blank planes cost nothing.

    Planes behind a batch's longest word are all 1, so each adds one constant: the sum of its weights. The result is the
    same up to rounding; a word of four letters convolves 4 planes of 25.
    """

    used_only = False

    def forward(self, planes: Tensor) -> Tensor:
        if not self.used_only:
            return super().forward(planes)
        inked = (planes.amin((0, 2, 3)) < 1).nonzero()  # planes with ink in any picture of the batch
        used = int(inked[-1]) + 1 if len(inked) else 1
        weight = self.proj.weight
        bias = self.proj.bias + weight[:, used:].sum((1, 2, 3))
        patches = F.conv2d(planes[:, :used], weight[:, :used], bias, self.proj.stride)
        return self.norm(patches.flatten(2).transpose(1, 2))


class GlyphEncoder(VisionTransformer):
    """Character planes `[B, 25, 64, 64]` in [0, 1] -> tokens `[B, 65, width]`: the class token, then 8x8 patches.

    At the published width every plane is convolved, as published; smaller ones skip blank planes (`PlaneEmbed`).
    """

    def __init__(self, width: int = CONTEXT, depth: int = 6, heads: int = 8) -> None:
        super().__init__(
            PLANE_SIZE, 8, PLANES, num_classes=0, global_pool="", embed_dim=width, depth=depth, num_heads=heads,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6), embed_layer=PlaneEmbed,
        )  # fmt: skip
        self.patch_embed.used_only = width != CONTEXT

    def forward(self, planes: Tensor) -> Tensor:
        return self.forward_features(planes)


class TextUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` that takes 13 channels and turns character planes into its context.

    The saved configuration stays the stock one (`_class_name` UNet2DConditionModel, `in_channels` 4), so published
    folders load here and those written here load in the original. The glyph encoder's width follows
    `cross_attention_dim`, with one head per 128 channels; published is 1024.
    """

    @functools.wraps(UNet2DConditionModel.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        # the stock first convolution takes 4 channels; the published files hold this one under its name
        first = self.conv_in
        self.conv_in = nn.Conv2d(INPUT_CHANNELS, first.out_channels, first.kernel_size, padding=first.padding)
        width = self.config.cross_attention_dim
        self.ttf_net = GlyphEncoder(width, heads=max(width // 128, 1))

    def forward(self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, **options):
        """As the stock UNet; a 4-D context is taken for character planes `[B, 25, 64, 64]`."""
        if encoder_hidden_states.ndim == 4:
            encoder_hidden_states = self.ttf_net(encoder_hidden_states)
        return super().forward(sample, timestep, encoder_hidden_states, **options)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **options) -> None:
        """Write `config.json` under the stock class name, as published folders have it."""
        super().save_config(save_directory, push_to_hub, **options)
        path = Path(save_directory) / self.config_name
        path.write_text(path.read_text().replace('"TextUNet"', '"UNet2DConditionModel"'))

    @classmethod
    def from_folder(cls, folder: str | Path) -> tuple[TextUNet, list[str]]:
        """A UNet from `config.json` and weights of a diffusers folder, and the names that keep a fresh start.

        A stock Stable Diffusion folder lacks `ttf_net.*` and has a 4-channel `conv_in.weight`: those keep their random
        start. Nothing else may be missing. Raises UserError for a folder without config or weights, or another shape.
        """
        folder = Path(folder)
        if not (folder / cls.config_name).is_file():
            raise UserError(f"{folder}: no {cls.config_name}: give a diffusers UNet folder (pretrained_unet)")
        check_class(folder, "UNet2DConditionModel", "the UNet")
        known = inspect.signature(UNet2DConditionModel.__init__).parameters
        try:
            config = cls.load_config(folder)
            unet = cls(**{name: value for name, value in config.items() if name in known})
        except Exception as error:  # diffusers checks little of what a file says: it fails in any type
            raise UserError(
                f"{folder / cls.config_name}: not the configuration of a UNet ({short(error)}); copy it again"
            ) from None
        own = unet.state_dict()
        state = read_weights(folder)
        mismatched = [name for name in state if name in own and state[name].shape != own[name].shape]
        fresh = [name for name in own if name not in state or name in mismatched]
        foreign = [name for name in state if name not in own]
        wrong = foreign + [name for name in fresh if name != "conv_in.weight" and not name.startswith("ttf_net.")]
        if wrong:
            raise UserError(f"{folder}: weights do not fit this UNet: {', '.join(wrong[:4])} ({len(wrong)} names)")
        unet.load_state_dict({name: state[name] for name in state if name not in mismatched}, strict=False)
        return unet, fresh


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a diffusers model folder: safetensors or a weights-only `.bin`, whole, in shards, or a variant as
    `diffusion_pytorch_model.fp16.safetensors`. Raises UserError for none."""
    return checkpoint.load_hub_folder(folder, ("diffusion_pytorch_model",))


def short(error: Exception) -> str:
    """An error of another library in part of a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def check_class(folder: Path, wanted: str, key: str) -> None:
    """Raise UserError where the `config.json` of a model folder names another class than `wanted`."""
    try:
        found = json.loads((folder / "config.json").read_text("utf-8")).get("_class_name", wanted)
    except (OSError, ValueError, AttributeError):
        return  # whoever reads it next says what is wrong
    if found != wanted:
        raise UserError(f"{folder}: {key}: it holds a {found}: give the folder of a {wanted}")


def predictor_input(latents: Tensor, masked: Tensor, glyph: Tensor, mask: Tensor) -> Tensor:
    """Concatenate to `[B, 13, h, w]`: three latents `[B, 4, h, w]`, the mask `[B, 1, h, w]`, in published order."""
    return torch.cat([latents, masked, glyph, mask], dim=1)
