"""ABINet under Lightning's Trainer: its two stages, its loss by parts, and the language model's own learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from common.data.loader import Batch
from common.models.images import to_float_nchw
from common.train.optim import parameter_groups
from projects.ssm.finetune.method import HALF, CrossEntropySystem

SEPARATE_SHARE = 8 / 18  # of the steps, in which the language model reads the truth


class ABINetSystem(CrossEntropySystem):
    """In the first 8/18 of the steps the language model reads the truth, then what the vision model has read.

    With `lm_only` the language model is trained and measured alone, on the truth.
    """

    @property
    def joint_step(self) -> int:
        """The first step with the parts joined."""
        return math.ceil(SEPARATE_SHARE * self.total_steps)

    def batch_loss(self, batch: Batch) -> Tensor:
        images, wanted = to_float_nchw(batch.images, HALF, HALF), self.model.full_targets(self.encode(batch.labels)[0])
        if self.model.lm_only:
            return self.model.entropy(self.model.read_truth(wanted), wanted)
        separate = self.global_step < self.joint_step
        heads = self.model.separate(images, wanted) if separate else self.model.iterate(images)
        parts = self.model.loss_parts(heads, wanted)
        self.log_dict({f"loss_{name}": part.detach() for name, part in parts.items()})
        return sum(self.model.weights[name] * part for name, part in parts.items())

    def validation(self, batch: Batch, labels: list[str]) -> tuple[Tensor, Tensor, int]:
        if not self.model.lm_only:
            return super().validation(batch, labels)
        wanted = self.model.full_targets(self.encode(labels)[0])
        return self.judged(self.model.read_truth(wanted).logits, wanted)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups by part and weight decay; the language model has `l_lr` where it is not trained alone."""
        o, decay, groups = self.options, self.options["weight_decay"], []
        language = o["lr"] if self.model.lm_only else float(o.get("l_lr", o["lr"]))
        for part in ("vision", "alignment", "language"):
            named = [(name, p) for name, p in self.model.named_parameters() if name.startswith(f"model.{part}.")]
            named = [(name, p) for name, p in named if p.requires_grad]
            # without model.weight_decay the published groups name none: AdamW's default of torch acts on all of them
            whole = [{"params": [p for _, p in named], "weight_decay": 0.01}] if named else []
            found = parameter_groups(named, decay, skip=self.undecayed()) if decay else whole
            own = rate * language / o["lr"] if part == "language" else rate
            groups += [{**group, "lr": own, "part": part} for group in found]
        return groups

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The joint stage begins with a new gate, drawn by rank 0 for all.

        The published code also sets `scheduler.base_lrs` here, which OneCycleLR does not read: the language model keeps
        its own rate.
        """
        if self.model.lm_only:
            return
        # the step alone decides, so that a run resumed at it does the same, once
        first_part = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.global_step == self.joint_step < self.total_steps and first_part:
            fresh = self.trainer.strategy.broadcast(self.model.first_alignment())
            self.model.model.alignment.load_state_dict(fresh)
