"""SIGA's losses (section 3 of the paper), over the whole batch at once.

Shapes: B images, T decode steps, K = T + 1 glyph channels, W' feature columns, H x W the image.
Two habits of the published code are kept because its numbers depend on them: probabilities and coverage values stand
where a cross entropy expects logits, and the overlap term is summed over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from projects.siga.model.glyphs import GlyphMaps
from projects.siga.model.variants import LossSettings

OUTLIERS_FROM, CORRECT_DROPS_AT = 20_000, 20_000  # iterations
ATTENTION_THRESHOLD = 0.05  # alpha of the paper, in all variants
FOREGROUND_SHARE = 0.4  # of a cell of a smaller map


@dataclass
class SigaOutput:
    """A forward pass. `logits`: name in `heads.HEADS` -> [B, T, C]; `attention` of the "ours" decoder [B, T, W'] ;
    `maps`: character maps and mask logits; `masks` [B, 1, H, W] as the losses see them (None without masks);
    `features`: intermediate tensors under the names of the reference measurements."""

    logits: dict[str, torch.Tensor]
    attention: torch.Tensor
    maps: GlyphMaps
    masks: torch.Tensor | None
    features: dict[str, torch.Tensor]


def valid_steps(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """bool [B, T]: step t belongs to a word of `lengths` [B] characters."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def predicted_text(seg_logits: torch.Tensor) -> torch.Tensor:
    """The predicted text mask F: float 0/1 [B, 1, H, W] where class 1 has more than half; detached."""
    return (seg_logits.detach().float().softmax(dim=1)[:, 1:] > 0.5).float()


class GlyphTargets(NamedTuple):
    """`layers` 0/1 [B, T, h, w], one per character (they may overlap); `classes` int64 [B, h, w]: 0 background or the
    first character that claims a pixel, counted from 1; `foreground` 0/1 [B, 1, h, w]."""

    layers: torch.Tensor
    classes: torch.Tensor
    foreground: torch.Tensor


@torch.no_grad()
def glyph_targets(
    text_mask: torch.Tensor, attention: torch.Tensor, lengths: torch.Tensor, size: tuple[int, int]
) -> GlyphTargets:
    """Pseudo-labels at one scale.

    `text_mask` 0/1 [B, 1, H, W]; `attention` [B, T, W'] of the "ours" decoder; `lengths` characters per word; `size`
    (h, w). A character owns the foreground of the columns where its attention, stretched to w, exceeds 0.05. A
    foreground pixel that nobody claims counts as background in `classes`.
    """
    foreground = (F.interpolate(text_mask, size, mode="bilinear", align_corners=False) >= FOREGROUND_SHARE).float()
    # attention knows columns only, so a character owns them over the whole height and the mask cuts its shape out
    kept = attention.float() * valid_steps(lengths, attention.shape[1])[..., None]  # [B, T, W']
    columns = F.interpolate(kept, size[1], mode="linear", align_corners=False) > ATTENTION_THRESHOLD  # [B, T, w]
    layers = columns[:, :, None, :] * foreground  # S_t of the paper, [B, T, h, w]
    # "First" is spelled out: the published arg-max over 0/1 maps leaves ties to the device.
    order = torch.arange(layers.shape[1], 0, -1, device=layers.device, dtype=layers.dtype)  # T, T - 1, …, 1
    best = (layers * order[:, None, None]).amax(dim=1)  # [B, h, w], 0 where nobody claims the pixel
    classes = torch.where(best > 0, layers.shape[1] + 1 - best, 0.0).long()
    return GlyphTargets(layers, classes, foreground)


@dataclass
class SigaLosses:
    """`total` is what training minimises; `parts` holds every term unweighted: the seven recognition losses under the
    names of `heads.HEADS`, and `predmask`, `correct` (= `dif` + `cor`), `low`, `middle`."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def recognition_loss(
    logits: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, ignore_padding: bool
) -> torch.Tensor:
    """Mean cross entropy of logits [B, T, C] against `text[:, 1:]` ([B, T+1], start id first).

    Counts each word's first `lengths` steps (characters and end symbol), as R and S do; with `ignore_padding` every
    step whose target is not 0, as T does.
    """
    return recognition_losses(logits.unsqueeze(0), text, lengths, ignore_padding)[0]


def recognition_losses(
    logits: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, ignore_padding: bool
) -> torch.Tensor:
    """`recognition_loss` of N sets of logits [N, B, T, C] at once -> [N]."""
    target = text[:, 1:]
    counted = target != 0 if ignore_padding else valid_steps(lengths, target.shape[1])
    scores = logits.float()[:, counted]  # [N, steps that count, C]
    picked = target[counted].expand(len(logits), -1)
    return F.cross_entropy(scores.flatten(0, 1), picked.flatten(), reduction="none").view(len(logits), -1).mean(dim=1)


def segmentation_loss(seg_logits: torch.Tensor, masks: torch.Tensor, iteration: int) -> torch.Tensor:
    """`predmask`: cross entropy of the text mask [B, 2, H, W] against the pseudo-mask [B, 1, H, W] > 0.5.

    The softmax is taken twice. After iteration 20 000, images whose mean is 1.0 or more (an inverted pseudo-mask) are
    skipped; if that is all of them, none is, since a mean of nothing is NaN.
    """
    target = (masks[:, 0] > 0.5).long()
    # probabilities as logits: a value lies between 0.3133 and 1.3133, which is why 1.0 can mark outliers
    values = F.cross_entropy(seg_logits.float().softmax(dim=1), target, reduction="none").flatten(1).mean(dim=1)
    if iteration <= OUTLIERS_FROM:
        return values.mean()
    kept = values < 1.0
    kept = kept | ~kept.any()
    return (values * kept).sum() / kept.sum()


def overlap_loss(columns: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """L_cor: sum over images of 1/len times the sum over pairs t < u of sum_w (a_t(w) a_u(w))^2.

    `columns` [B, T, W]: attention stretched to image width, zero beyond each word.
    """
    # The paper writes a sum of a_t a_u; the published code squares the products, and so do we.
    squares = columns.square()
    # the Gram matrix [B, T, T] has every pair t, u; those above the diagonal are t < u
    pairs = torch.bmm(squares, squares.transpose(1, 2)).triu(diagonal=1).sum(dim=(1, 2))
    return (pairs / lengths.clamp(min=1)).sum()  # summed over the batch, as published: it grows with the batch


def coverage_map(
    columns: torch.Tensor, valid: torch.Tensor, text_mask: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """C = clamp(sum_t sigmoid(slope (a_t - threshold)) F, 0, 1), [B, H, W]; `valid` bool [B, T] picks the word's
    steps.
    """
    # the steep sigmoid is a threshold that lets the gradient through to the attention
    soft = torch.sigmoid(settings.slope * (columns - settings.threshold)) * valid[..., None]
    return (soft.sum(dim=1)[:, None, :] * text_mask[:, 0]).clamp(0, 1)


def coverage_loss(coverage: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """L_dif: cross entropy with (1 - C, C) in the place of logits against F, mean over all pixels."""
    # (1 - C, C) are used as logits, so the term does not reach 0 where C equals the mask.
    margin = 2 * coverage - 1  # the cross entropy of two logits needs their difference only
    return F.softplus(torch.where(text_mask[:, 0] > 0, -margin, margin)).mean()


def glyph_loss(
    maps: torch.Tensor,
    layers: torch.Tensor,
    classes: torch.Tensor,
    lengths: torch.Tensor,
    class_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel cross entropy, Dice) of the character maps [B, K, h, w] against one scale's pseudo-labels.

    Cross entropy uses `classes` (a pixel has one owner), Dice uses `layers` (overlaps kept): per character
    1 - (2 sum q S + 1)/(sum q + sum S + 1), mean over the word, mean over the batch.
    """
    maps = maps.float()
    pixel = F.cross_entropy(maps, classes, weight=class_weights)  # channel 0 is the background
    chosen = maps.softmax(dim=1)[:, 1:].flatten(2)  # q, [B, T, h w]
    layers = layers.flatten(2)  # S, [B, T, h w]
    both = (chosen * layers).sum(dim=2)
    dice = 1 - (2 * both + 1) / (chosen.sum(dim=2) + layers.sum(dim=2) + 1)
    valid = valid_steps(lengths, dice.shape[1])
    return pixel, ((dice * valid).sum(dim=1) / lengths.clamp(min=1)).mean()


def structural_losses(
    attention: torch.Tensor,
    seg_logits: torch.Tensor,
    masks: torch.Tensor,
    maps: dict[str, torch.Tensor],
    lengths: torch.Tensor,
    iteration: int,
    settings: LossSettings,
    class_weights: torch.Tensor | None = None,
    overlap_scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """`predmask`, `correct`, `low`, `middle` and their parts `cor`, `dif`, `ce_*`, `dice_*`.

    `attention` [B, T, W'] of the "ours" decoder, `seg_logits` [B, 2, H, W], `masks` [B, 1, H, W], `maps` {"low",
    "middle"} of [B, K, h, w], `lengths` [B] in characters. `overlap_scale` multiplies `cor`, see `siga_losses`. Only
    `correct` sends a gradient to the attention, only `predmask` to the mask.
    """
    # the published code takes the predicted mask, never the pseudo-mask, wherever the glyphs need one
    text_mask = predicted_text(seg_logits)
    valid = valid_steps(lengths, attention.shape[1])
    columns = (  # [B, T, W]: the attention stretched to the image
        F.interpolate(attention.float(), text_mask.shape[3], mode="linear", align_corners=False) * valid[..., None]
    )
    parts = {"predmask": segmentation_loss(seg_logits, masks, iteration)}
    parts["cor"] = overlap_scale * overlap_loss(columns, lengths)
    parts["dif"] = coverage_loss(coverage_map(columns, valid, text_mask, settings), text_mask)
    parts["correct"] = parts["dif"] + parts["cor"]
    for scale, scale_maps in maps.items():
        target = glyph_targets(text_mask, attention, lengths, tuple(scale_maps.shape[2:]))
        pixel, dice = glyph_loss(scale_maps, target.layers, target.classes, lengths, class_weights)
        parts |= {f"ce_{scale}": pixel, f"dice_{scale}": dice, scale: pixel + dice}
    return parts


def siga_losses(
    output: SigaOutput,
    text: torch.Tensor,
    lengths: torch.Tensor,
    iteration: int,
    ratio_iteration: int | None = None,
    *,
    settings: LossSettings,
    class_weights: torch.Tensor | None = None,
    ignore_padding: bool = False,
    processes: int = 0,
) -> SigaLosses:
    """Total: seven recognition losses + predmask + c correct + low + middle.

    `text` [B, T+1] with the start id first, `lengths` [B] with the end symbol counted (as the codecs give them).
    `iteration` chooses c, `ratio_iteration` (default: the same) switches the outlier rule of `predmask`.
    `processes` that average their gradients (0: none do): with `settings.replicas` the overlap term is scaled so that
    their average is that of the published replicas, whatever their number.
    """
    names = list(output.logits)
    recognised = recognition_losses(torch.stack([output.logits[name] for name in names]), text, lengths, ignore_padding)
    parts = dict(zip(names, recognised.unbind()))
    maps = {"low": output.maps.low, "middle": output.maps.middle}
    step = iteration if ratio_iteration is None else ratio_iteration
    overlap_scale = processes / settings.replicas if processes and settings.replicas else 1.0
    parts |= structural_losses(
        output.attention,
        output.maps.seg_logits,
        output.masks,
        maps,
        lengths - 1,  # the end symbol has no glyph
        step,
        settings,
        class_weights,
        overlap_scale,
    )
    weight = settings.correct_weight if iteration < CORRECT_DROPS_AT else settings.correct_weight_late
    total = recognised.sum() + parts["predmask"] + weight * parts["correct"] + parts["low"] + parts["middle"]
    return SigaLosses(total, parts)


def glyph_class_weights(classes: int) -> torch.Tensor:
    """SIGA-S's weights of the glyph classes: characters in the middle of long words are rare. [K], 1 beyond the 21st
    class.
    """
    rise = [1.0, 1.0, 1.013, 1.058, 1.323, 1.564, 1.831, 2.210]
    weights = rise + [2.859] * 6 + rise[:0:-1] + [1.0] * classes
    return torch.tensor(weights[:classes])
