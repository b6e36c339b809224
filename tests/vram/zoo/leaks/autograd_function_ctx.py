"""An autograd.Function of one's own puts a tensor on `ctx`; the losses that are kept keep it."""
# expect: grows
# holder: attribute `mask` of DroppedBackward `grad_fn`, attribute of Tensor in list `LOSSES` (* items), global of *

import torch

LOSSES = []
WEIGHT = torch.ones(64, requires_grad=True)


class Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden):
        ctx.mask = torch.ones(4096)  # here
        return hidden.sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.mask[:64]


def train(_):
    LOSSES.append(Dropped.apply(WEIGHT))


def test_training(vram):
    vram.assert_stable(vram.replay(train, range(20)))
