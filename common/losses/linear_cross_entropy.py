"""Cross-entropy of a wide linear classifier without keeping its logits for the backward pass.

With tens of thousands of classes the logits are the largest tensor of a training step, and autograd keeps the
log-softmax of them and makes two more of their size. Here the gradients are taken in the forward pass, in the one
buffer that holds the log-softmax, which is then freed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

ROWS = 2048  # positions worked at a time, which bounds the buffer


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean over rows of -log softmax(x W^T + b)[target]."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        count, loss = len(target), x.new_zeros((), dtype=torch.float32)
        wanted = any(ctx.needs_input_grad)
        grads: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # of x, W and b, for each part of the rows
        for rows, wanted_class in zip(x.split(ROWS), target.split(ROWS)):
            log_probs = F.log_softmax(F.linear(rows, weight, bias).float(), dim=1)  # [ROWS, C], the one wide buffer
            loss -= log_probs.gather(1, wanted_class[:, None]).sum()
            if wanted:
                scaled = rows / count
                error = log_probs.exp_()  # in place: softmax - onehot, the gradient of the logits
                error[torch.arange(len(rows), device=error.device), wanted_class] -= 1
                error = error.to(scaled.dtype)
                input_grad = (error @ weight.to(scaled.dtype)) / count
                grads.append((input_grad, (error.mT @ scaled).to(weight.dtype), error.sum(0).float() / count))
        if wanted:
            weight_grad, bias_grad = grads[0][1], grads[0][2]
            for _, more_weight, more_bias in grads[1:]:
                weight_grad += more_weight
                bias_grad += more_bias
            ctx.gradients = [torch.cat([grad for grad, _, _ in grads]), weight_grad, bias_grad]
        return loss / count

    @staticmethod
    def backward(ctx, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Given up here, not saved tensors, so that the parameters take them over without a copy. A factor of 1, the
        # usual one, is not worth a second read of W's gradient.
        gradients, ctx.gradients = ctx.gradients, None
        if outer.device.type != "cpu" or outer.item() != 1:
            gradients = [gradient.mul_(outer.to(gradient.dtype)) for gradient in gradients]
        return *gradients, None


def linear_cross_entropy(x: torch.Tensor, head: nn.Linear, target: torch.Tensor) -> torch.Tensor:
    """Equal to `F.cross_entropy(head(x), target)`, for a head with a bias.

    Args:
        x: [N, D], N >= 1.
        head: D -> C.
        target: int64 [N], each in 0 … C - 1.
    """
    return _LinearCrossEntropy.apply(x, head.weight, head.bias, target)
