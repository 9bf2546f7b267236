"""SIGA-R and SIGA-S: a sequence unit that finds where characters lie and a glyph unit that reads them."""

from __future__ import annotations

import torch
from torch import nn

from common.models.attention import AttentionDecoder, SequenceDecoder
from common.models.tps import Tps, sample
from projects.siga.model.backbone_resnet import ResNetFeatures
from projects.siga.model.backbone_svtr import SvtrFeatures
from projects.siga.model.base import SigaModel, two_lstms
from projects.siga.model.decoding import FusionDecoder, GatedBimodal, Heads, Reading, decode_all, read_share
from projects.siga.model.glyphs import GlyphAttention, GlyphMaps
from projects.siga.model.losses import SigaOutput, glyph_class_weights
from projects.siga.model.variants import Variant


class SequenceUnit(nn.Module):
    """`model_one`: rectification, backbone, and the 1-D decoder whose attention makes the pseudo-labels."""

    def __init__(
        self, v: Variant, image_size: tuple[int, int], in_channels: int, num_class: int, identity_tps: bool
    ) -> None:
        super().__init__()
        self.Transformation = (
            Tps(image_size, v.fiducials, in_channels, v.tps_widths, identity_start=identity_tps)
            if v.has_tps
            else nn.Identity()
        )
        if v.family == "R":
            self.FeatureExtraction = ResNetFeatures(in_channels, v.widths, v.depths)
        else:
            self.FeatureExtraction = SvtrFeatures(image_size, in_channels, v.widths, v.depths, v.heads, v.columns)
        self.SequenceModeling = two_lstms(v.columns, v.hidden)
        self.Prediction = AttentionDecoder(v.hidden, v.hidden, num_class, embedding_size=v.hidden)


class Nested(nn.Module):
    """The extra level `Prediction` that SIGA-S's state dict has around its fusion decoders."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.Prediction = decoder


class GlyphUnit(nn.Module):
    """`model_two`: glyph attention, the second sequence encoder and the decoders that lead to Share."""

    def __init__(self, v: Variant, num_class: int, steps: int) -> None:
        super().__init__()
        svtr, hidden = v.family == "S", v.hidden
        # channels of FPN0, FPN1, FPN2: SVTR's half map and first two stages; ResNet's stem, layer2 and layer4
        fpn = (v.widths[0] // 2, v.widths[0], v.widths[1]) if svtr else (v.widths[0], v.widths[2], v.widths[4])
        self.SequenceEncoding = two_lstms(v.columns, hidden)
        self.Prediction = AttentionDecoder(hidden, hidden, num_class, embedding_size=hidden)
        self.Attention_Cls = GlyphAttention(fpn, v.glyph_width, hidden, steps + 1, svtr)
        self.FC_Prediction_1 = SequenceDecoder(hidden, hidden, num_class, embedding_size=hidden)
        self.FC_Prediction_2 = SequenceDecoder(hidden, hidden, num_class, embedding_size=hidden)
        self.downsampler = nn.Linear(v.columns, hidden)  # never used; published state dicts hold it
        fusers = [FusionDecoder(hidden, hidden, num_class, embedding_size=hidden) for _ in range(2)]
        self.Iterable_Predicition_one, self.Iterable_Predicition_two = [Nested(f) for f in fusers] if svtr else fusers
        self.Fusion = GatedBimodal(hidden)
        self.pw = nn.Linear(hidden, v.columns)
        self.generator = SequenceDecoder(v.columns, v.columns, num_class, embedding_size=hidden)
        if svtr:
            self.loss = class_weight_holder(glyph_class_weights(steps + 1))

    def heads(self) -> Heads:
        """The decoders by role."""
        fusers = (self.Iterable_Predicition_one, self.Iterable_Predicition_two)
        fusers = tuple(f.Prediction if isinstance(f, Nested) else f for f in fusers)
        readers = (self.FC_Prediction_1, self.FC_Prediction_2)
        return Heads(self.Prediction, readers, fusers, self.Fusion, self.pw, self.generator)


def class_weight_holder(weights: torch.Tensor) -> nn.Module:
    """A module tree whose one buffer is named `iou_loss.crossentropy.weight`, where SIGA-S's state dict has it."""
    outer, middle, inner = nn.Module(), nn.Module(), nn.Module()
    inner.register_buffer("weight", weights)
    middle.crossentropy, outer.iou_loss = inner, middle
    return outer


class TwoUnitModel(SigaModel):
    """SIGA-R and SIGA-S: `model_one` (sequence) and `model_two` (glyph)."""

    end_id = 0

    def __init__(
        self,
        v: Variant,
        num_class: int,
        batch_max_length: int,
        *,
        input_channel: int = 3,
        rectify_masks: bool | None = None,
        identity_tps: bool = False,
    ) -> None:
        super().__init__(v, num_class, batch_max_length)
        self.start_id = num_class
        self.rectify_masks = v.family == "R" if rectify_masks is None else rectify_masks
        self.model_one = SequenceUnit(v, v.image_size, input_channel, num_class, identity_tps)
        self.model_two = GlyphUnit(v, num_class, self.steps)
        self.freeze_tps(v.published)

    def freeze_tps(self, frozen: bool = True) -> None:
        """Take the rectification's parameters out of training (its batch norms still move), or put them in."""
        self.model_one.Transformation.requires_grad_(not frozen)

    @property
    def class_weights(self) -> torch.Tensor | None:
        holder = getattr(self.model_two, "loss", None)
        return None if holder is None else holder.iou_loss.crossentropy.weight

    def rectify(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(straightened images, the sampling grid; None where the model has no rectification)."""
        transform = self.model_one.Transformation
        if not isinstance(transform, Tps):
            return images, None
        grid = transform.grid(images)
        return sample(images, grid), grid

    def forward(
        self, images: torch.Tensor, text: torch.Tensor | None = None, masks: torch.Tensor | None = None
    ) -> SigaOutput:
        """Every branch. `text` [B, T]: teacher forcing; without it all decoders are greedy for T steps."""
        one, two = self.model_one, self.model_two
        rectified, grid = self.rectify(images)
        if masks is not None and grid is not None and self.rectify_masks:
            masks = sample(masks, grid)
        columns, fpn = one.FeatureExtraction(rectified)
        visual = columns.squeeze(2).transpose(1, 2)  # V of the paper, [B, W', columns]
        # "ours" is read only for its attention, which says where each character lies (implicit glyph attention)
        ours = one.Prediction(one.SequenceModeling(visual), text, start=self.start_id, steps=self.steps)
        maps = two.Attention_Cls(fpn)
        low, middle = two.Attention_Cls.glyphs(fpn, maps)  # [B, T, hidden] each
        contextual = two.SequenceEncoding(visual)  # H, [B, W', hidden]
        logits = decode_all(two.heads(), contextual, (low, middle), text, self.start_id, self.active_dropout)
        features = {
            "rectified_image": rectified,
            "visual_feature": visual,
            "backbone_last": columns,
            "contextual": contextual,
            "glyph_low": low,
            "glyph_middle": middle,
            "fused": logits.pop("fused"),
            "fpn0": fpn[0],
            "fpn1": fpn[1],
            "fpn2": fpn[2],
            "grid": grid,
        }
        return SigaOutput({"ours": ours.logits, **logits}, ours.attention, maps, masks, features)

    def read(self, images: torch.Tensor, *, stop_early: bool = True) -> tuple[Reading, GlyphMaps]:
        """The Share branch alone and the character maps it used; ends once every word has ended if `stop_early`."""
        two = self.model_two  # reading needs neither the "ours" decoder nor the text mask
        columns, fpn = self.model_one.FeatureExtraction(self.rectify(images)[0])
        maps = two.Attention_Cls(fpn, with_mask=False)
        glyphs = two.Attention_Cls.glyphs(fpn, maps)
        contextual = two.SequenceEncoding(columns.squeeze(2).transpose(1, 2))
        return read_share(two.heads(), contextual, glyphs, self.start_id, self.end_id, stop_early), maps
