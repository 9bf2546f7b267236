"""SIGA-T: a plain ViT whose inner blocks feed the glyph maps and whose last block feeds the sequence decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.models.attention import AttentionDecoder, BidirectionalLSTM, SequenceDecoder
from common.models.resnet import init_he_fan_out
from common.models.vit import PlainViT
from projects.siga.model.backbone_resnet import ColumnTail
from projects.siga.model.base import SigaModel, two_lstms
from projects.siga.model.decoding import FusionDecoder, GatedBimodal, Heads, Reading, decode_all, read_share
from projects.siga.model.glyphs import GlyphMaps, pool_glyphs, unpool
from projects.siga.model.losses import SigaOutput
from projects.siga.model.variants import Variant


class MlaHead(nn.Module):
    """Two inner token maps -> 3x3 and 1x1 convolutions each, side by side (`head2`, `head3`)."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.head2, self.head3 = self._branch(dim, channels), self._branch(dim, channels)

    @staticmethod
    def _branch(dim: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(dim, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head2(second), self.head3(third)], dim=1)


def token_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens [B, 1 + h w, D] without the class token as a map [B, D, h, w]."""
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


class SegHead(ColumnTail, nn.Module):
    """`segmentation`: columns for the sequence decoders, character maps at two scales, the text mask, pooled glyphs.

    Inputs are the last block's tokens and the four inner maps s0 … s3 [B, D, h, w]; see `CharStr`.
    """

    def __init__(self, dim: int, columns: int, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        double = 2 * channels
        self.token_norm_1, self.token_norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)  # the second is never used
        self.conv5 = nn.Conv2d(dim, columns, (2, 3), stride=(2, 1), padding=(0, 1))  # 8 rows -> 4; no norm, no ReLU
        self.build_tail(columns, (2, 1))
        self.unpool0 = unpool(dim, hidden)
        self.mlahead = MlaHead(dim, channels)
        self.cls_Head_middle = nn.Sequential(nn.Conv2d(double, classes, 1))
        self.cls_Head_low = nn.Sequential(nn.Conv2d(channels, classes, 1))
        self.unpool1, self.unpool2 = unpool(double, channels), unpool(double, channels)
        self.unpool3 = unpool(channels, channels)
        self.conv1, self.bn1 = nn.Conv2d(dim, double, 1), nn.BatchNorm2d(double)
        self.conv2, self.bn2 = nn.Conv2d(double, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.seg_cls = nn.Conv2d(channels, 2, 1)
        self.feat = nn.Conv2d(dim, hidden, 1, groups=8, bias=False)
        self.lstm = nn.ModuleList([BidirectionalLSTM(hidden, hidden, hidden) for _ in range(2)])
        init_he_fan_out(self)

    def columns(self, last: torch.Tensor) -> torch.Tensor:
        """[B, D, h, w] -> the visual sequence V [B, w, columns]."""
        return self.run_tail(self.conv5(last)).squeeze(2).transpose(1, 2)

    def maps(self, inner: Sequence[torch.Tensor], with_mask: bool = True) -> GlyphMaps:
        """Character maps, and the text mask's logits unless `with_mask` is off."""
        joined = self.mlahead(inner[1], inner[2])  # [B, 2 channels, 8, 32], the middle scale
        shallow = self.unpool2(torch.relu(self.bn1(self.conv1(inner[0]))))  # [B, channels, 16, 64]
        fine = torch.relu(self.bn2(self.conv2(torch.cat([self.unpool1(joined), shallow], dim=1))))  # the low scale
        seg_logits = None
        if with_mask:
            seg_logits = self.seg_cls(torch.relu(self.bn3(self.conv3(self.unpool3(fine)))))
        return GlyphMaps(self.cls_Head_low(fine), self.cls_Head_middle(joined), seg_logits)

    def glyphs(self, last: torch.Tensor, deepest: torch.Tensor, maps: GlyphMaps) -> tuple[torch.Tensor, torch.Tensor]:
        """(middle, low) glyph features [B, K-1, hidden]: from the last block and from s3."""
        middle = pool_glyphs(maps.middle, self.feat(last))
        low = pool_glyphs(maps.low, self.unpool0(deepest))
        return self.lstm[0](middle), self.lstm[1](low)


class CharStr(PlainViT):
    """`mgp_str`: the ViT and, at the same level of the state dict, all of SIGA-T's heads."""

    def __init__(self, v: Variant, num_class: int, steps: int, in_channels: int) -> None:
        dim, hidden = v.widths[0], v.hidden
        super().__init__(v.image_size, 4, dim, v.depths[0], v.heads[0], num_class, in_channels=in_channels)
        self.taps = tuple(round(share * v.depths[0] / 6) - 1 for share in (1, 2, 3, 4))  # blocks 2, 4, 6, 8 of 12
        self.norm_seg = nn.ModuleList([nn.LayerNorm(dim) for _ in self.taps])
        self.segmentation = SegHead(dim, v.columns, v.glyph_width, hidden, steps + 1)
        self.SequenceModeling = two_lstms(v.columns, hidden)
        self.SequenceEncoding = two_lstms(v.columns, hidden)
        sizes = {"embedding_size": hidden}
        self.Prediction_our = AttentionDecoder(hidden, hidden, num_class, **sizes)
        self.Prediction_TRBA = AttentionDecoder(hidden, hidden, num_class, **sizes)
        self.FC_Prediction_1 = SequenceDecoder(hidden, hidden, num_class, **sizes)
        self.FC_Prediction_2 = SequenceDecoder(hidden, hidden, num_class, **sizes)
        self.Iterable_Predicition_one = FusionDecoder(hidden, hidden, num_class, **sizes)
        self.Iterable_Predicition_two = FusionDecoder(hidden, hidden, num_class, **sizes)
        self.generator = SequenceDecoder(v.columns, v.columns, num_class, **sizes)
        self.Fusion = GatedBimodal(hidden)
        self.pw = nn.Linear(hidden, v.columns)

    def backbone(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(last block as a normalised map, [s0 … s3]), each [B, D, h, w]."""
        inner, grid = [], self.patch_embed.grid_size
        for index, tokens in enumerate(self.block_outputs(images)):
            if index in self.taps:  # each tap has a norm of its own; the ViT's last `norm` is never applied
                inner.append(token_map(self.norm_seg[self.taps.index(index)](tokens), grid))
        return token_map(self.segmentation.token_norm_1(tokens), grid), inner

    def heads(self) -> Heads:
        """The decoders by role."""
        readers = (self.FC_Prediction_1, self.FC_Prediction_2)
        fusers = (self.Iterable_Predicition_one, self.Iterable_Predicition_two)
        return Heads(self.Prediction_TRBA, readers, fusers, self.Fusion, self.pw, self.generator)


class CharStrModel(SigaModel):
    """SIGA-T. [GO] = 0 starts and pads, [s] = 1 ends. Index 1 of the paired heads is the middle scale, 2 the low
    one.
    """

    start_id, end_id = 0, 1

    def __init__(self, v: Variant, num_class: int, batch_max_length: int, *, input_channel: int = 3) -> None:
        super().__init__(v, num_class, batch_max_length)
        self.mgp_str = CharStr(v, num_class, self.steps, input_channel)

    def forward(
        self, images: torch.Tensor, text: torch.Tensor | None = None, masks: torch.Tensor | None = None
    ) -> SigaOutput:
        """Every branch. `text` [B, T]: teacher forcing; without it all decoders are greedy for T steps."""
        net, segmentation = self.mgp_str, self.mgp_str.segmentation
        last, inner = net.backbone(images)
        visual, maps = segmentation.columns(last), segmentation.maps(inner)  # V [B, W', columns]
        middle, low = segmentation.glyphs(last, inner[3], maps)  # [B, T, hidden] each
        ours = net.Prediction_our(net.SequenceModeling(visual), text, start=self.start_id, steps=self.steps)
        contextual = net.SequenceEncoding(visual)
        logits = decode_all(net.heads(), contextual, (middle, low), text, self.start_id, self.active_dropout)
        features = {
            "sequential_features": visual.transpose(1, 2).unsqueeze(2),
            "glyph_middle": middle,
            "glyph_low": low,
            "contextual": contextual,
            "fused": logits.pop("fused"),
        }
        return SigaOutput({"ours": ours.logits, **logits}, ours.attention, maps, masks, features)

    def read(self, images: torch.Tensor, *, stop_early: bool = True) -> tuple[Reading, GlyphMaps]:
        """The Share branch alone and the character maps it used; ends once every word has ended if `stop_early`."""
        net, segmentation = self.mgp_str, self.mgp_str.segmentation
        last, inner = net.backbone(images)
        maps = segmentation.maps(inner, with_mask=False)
        glyphs = segmentation.glyphs(last, inner[3], maps)
        contextual = net.SequenceEncoding(segmentation.columns(last))
        return read_share(net.heads(), contextual, glyphs, self.start_id, self.end_id, stop_early), maps
