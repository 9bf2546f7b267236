"""The whole ABINet: its three parts, their iteration and the losses of its two training stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.ssm.model.abinet import (
    EOS,
    Alignment,
    Backbone,
    Head,
    Heads,
    Language,
    ParallelAttention,
    PositionAttention,
    Vision,
)
from projects.ssm.model.layers import decoding_steps, init_weights


class ABINet(nn.Module):
    """Reads `[B, 3, 32, 128]` crops, normalised to [-1, 1]. Classes: 0 ends a word, then the charset (C + 1 in all)."""

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        *,
        iter_size: int = 3,
        d_model: int = 512,
        nhead: int = 8,
        d_inner: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        v_num_layers: int = 3,
        v_attention: str = "position",
        v_attention_mode: str = "nearest",
        l_num_layers: int = 4,
        l_use_self_attn: bool = False,
        l_detach: bool = True,
        v_loss_weight: float = 1.0,
        l_loss_weight: float = 1.0,
        a_loss_weight: float = 1.0,
        lm_only: bool = False,
    ) -> None:
        super().__init__()
        if v_attention not in ("position", "attention") or v_attention_mode != "nearest" or l_use_self_attn:
            raise ValueError(
                "ABINet: v_attention must be 'position' or 'attention', v_attention_mode 'nearest', "
                "l_use_self_attn false"
            )
        self.max_label_length, self.pad_id = max_label_length, charset_size + 2
        self.iter_size, self.l_detach = iter_size, l_detach
        self.weights = {"vision": v_loss_weight, "language": l_loss_weight, "alignment": a_loss_weight}
        length, classes = max_label_length + 1, charset_size + 1
        size = (img_size[0] // 4, img_size[1] // 4)
        backbone = Backbone(d_model, nhead, d_inner, v_num_layers, activation, dropout, size[0] * size[1])
        attention = (
            PositionAttention(length, d_model, size)
            if v_attention == "position"
            else ParallelAttention(length, d_model)
        )
        self.model = nn.Module()
        self.model.vision = Vision(backbone, attention, d_model, classes)
        self.model.language = Language(length, d_model, nhead, d_inner, l_num_layers, activation, dropout, classes)
        self.model.alignment = Alignment(d_model, classes)
        self.apply(init_weights)
        self.lm_only = lm_only  # only the language model is trained and validated
        if lm_only:
            self.model.vision.requires_grad_(False)
            self.model.alignment.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Parameter names that weight decay leaves alone."""
        return {"model.language.proj.weight"}

    def first_alignment(self) -> dict[str, Tensor]:
        """First weights of the gate, drawn anew: the joint stage begins with them."""
        cls = self.model.alignment.cls
        return Alignment(cls.in_features, cls.out_features).apply(init_weights).state_dict()

    def language(self, tokens: Tensor, lengths: Tensor) -> Head:
        return self.model.language(tokens.detach() if self.l_detach else tokens, lengths)

    def iterate(self, images: Tensor) -> Heads:
        """Vision once, then `iter_size` rounds of language and alignment on the last reading."""
        vision = reading = self.model.vision(images)
        language, alignment = [], []
        for _ in range(self.iter_size):
            # the language model is given probabilities, not characters, so that doubt is not lost
            language.append(self.language(reading.logits.softmax(-1), reading.lengths))
            reading = self.model.alignment(language[-1].features, vision.features)
            alignment.append(reading)
        return Heads(vision, language, alignment)

    def separate(self, images: Tensor, targets: Tensor) -> Heads:
        """The first training stage: the language model reads the truth, the gate learns on detached features."""
        vision, language = self.model.vision(images), self.read_truth(targets)
        alignment = self.model.alignment(language.features.detach(), vision.features.detach())
        return Heads(vision, [language], [alignment])

    def read_truth(self, targets: Tensor) -> Head:
        """The language model on the truth `[B, T]` itself, padded with EOS."""
        embed = self.model.language.proj
        characters = targets.masked_fill(targets == self.pad_id, EOS)
        known = F.one_hot(characters, embed.in_features).to(embed.weight.dtype)
        return self.language(known, (targets != self.pad_id).sum(-1))

    def entropy(self, head: Head, targets: Tensor) -> Tensor:
        """Mean cross-entropy with `targets` `[B, T]`, padding ignored."""
        return F.cross_entropy(head.logits.flatten(0, 1), targets.flatten(), ignore_index=self.pad_id)

    def loss_parts(self, heads: Heads, targets: Tensor) -> dict[str, Tensor]:
        """Per head the mean over its iterations of the cross-entropy with `targets` `[B, T]`, padding ignored."""
        parts = {"vision": [heads.vision], "language": heads.language, "alignment": heads.alignment}
        return {
            name: torch.stack([self.entropy(head, targets) for head in found]).mean() for name, found in parts.items()
        }

    def full_targets(self, targets: Tensor) -> Tensor:
        """`targets` `[B, L]` with BOS in front -> `[B, max_label_length + 1]` without it, padded."""
        wanted = targets[:, 1:]
        return F.pad(wanted, (0, self.max_label_length + 1 - wanted.shape[1]), value=self.pad_id)

    def loss(self, images: Tensor, targets: Tensor, *, stage: str = "joint") -> Tensor:
        """Weighted sum of the three heads' losses; `stage` is "separate" (first 8/18 of the steps) or "joint"."""
        wanted = self.full_targets(targets)
        heads = self.separate(images, wanted) if stage == "separate" else self.iterate(images)
        return sum(self.weights[name] * part for name, part in self.loss_parts(heads, wanted).items())

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """The last alignment's logits `[B, max_length + 1, C + 1]`."""
        steps = decoding_steps(self.max_label_length, max_length)
        heads = self.iterate(images)
        return (heads.alignment[-1] if heads.alignment else heads.vision).logits[:, :steps]
