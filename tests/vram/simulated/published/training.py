"""Published figures of training: backward passes, checkpoints, mixed precision, optimizers."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)
from torch.utils.checkpoint import checkpoint

from tests.vram.simulated.published.case import CUDA, GITHUB, MIB, Published, now, peak

_MEMLAB = f"{GITHUB}Stonesjtu/pytorch_memlab"
_FAIRSCALE = (
    f"{GITHUB}facebookresearch/fairscale/blob/204d27728c6ba0a66f2d0d26f7cebe5df8da106e/tests/nn/checkpoint/"
    "test_checkpoint_activations.py"
)
_CCE = f"{GITHUB}apple/ml-cross-entropy"
_TENSOR_CORES = f"{GITHUB}leolui2004/tensorcore"


def two_linears() -> str:
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False)).to(CUDA)
    x = torch.rand(4, 256, 1024, device=CUDA)
    y = model(x).sum()
    forward = now()
    y.backward()
    return f"{forward}, {now()}"


def split_and_its_first_part() -> str:
    figures = []

    def note() -> None:
        figures.append(f"{round(peak() / MIB)} {round(now() / MIB)}")

    note()
    x = torch.arange(128 * MIB, dtype=torch.float16, device=CUDA).requires_grad_(True)
    x.grad = torch.zeros_like(x)
    note()
    parts = torch.split(x, MIB)
    note()
    parts[0].sum().backward()
    note()
    return ", ".join(figures)


def softmax() -> str:
    x = torch.rand(5120, 2, 384, 384, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    y = torch.softmax(x, -1)
    loss = y.mean()
    loss.backward()
    return f"{now()}, {peak()}" if loss.numel() else ""


def a_linear() -> str:
    layer, x = nn.Linear(1024, 1024).to(CUDA), torch.Tensor(512, 1024).to(CUDA)
    mean = layer(x).mean()
    forward = now()
    mean.backward()
    return f"{forward / MIB:.2f}, {now() / MIB:.2f}"


def one_weight_in_two() -> str:
    first, second = nn.Linear(1024, 1024).to(CUDA), nn.Linear(1024, 1024).to(CUDA)
    second.weight = first.weight
    x = torch.Tensor(512, 1024).to(CUDA)
    second(first(x)).mean().backward()
    return f"{now() / MIB:.2f}"


def linear_and_its_sum() -> str:
    wide, narrow = nn.Linear(1024, 1024, bias=False).to(CUDA), nn.Linear(1024, 1, bias=False).to(CUDA)
    x = torch.ones(1024, 1024).to(CUDA)
    found = [now()]
    y = wide(x)
    found.append(now())
    z = narrow(y)
    found.append(now())
    total = sum(z)  # one by one
    found.append(now())
    total.backward()
    found += [now(), peak()]
    return ", ".join(f"{each / 1024:g}" for each in found)


class Linear(nn.Linear):
    """A layer of PyTorch 1.8, which added the bias of three dimensions in place: its gradient is there first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.matmul(self.weight.t()).add_(self.bias)


class Checkpointed(nn.Module):
    """Some modules one after the other, those that are `checkpointed` run again in the backward pass."""

    def __init__(self, *modules: nn.Module, checkpointed: int) -> None:
        super().__init__()
        self.steps, self.checkpointed = nn.ModuleList(modules), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for i, step in enumerate(self.steps):
            x = checkpoint(step, x, use_reentrant=True) if i < self.checkpointed else step(x)
        return x


def norm_of_gradients(model: nn.Module, x: Tensor) -> str:
    before = now()
    torch.cuda.reset_peak_memory_stats()
    loss = model(x).sum()
    forward = now()
    loss.backward()
    backward = now()
    torch.norm(torch.stack([torch.norm(each.grad) for each in model.parameters() if each.grad is not None]))
    return f"{before}, {forward}, {backward}, {peak()}"


def feed_forward(checkpointed: bool) -> str:
    x = torch.rand(2, 16, 32).requires_grad_()
    inner = nn.Sequential(Linear(32, 128), nn.Dropout(), Linear(128, 32))
    return norm_of_gradients(Checkpointed(inner, Linear(32, 1), checkpointed=checkpointed).to(CUDA), x.to(CUDA))


def nine_linears(checkpointed: bool) -> str:
    x = torch.rand(60, 24, 4).requires_grad_()
    sides = ((4, 4, 4, 8), (8, 4, 4, 4), (4, 6, 8, 2))
    steps = [nn.Sequential(*(Linear(i, o) for i, o in pairwise(each))) for each in sides]
    return norm_of_gradients(Checkpointed(*steps, checkpointed=3 * checkpointed).to(CUDA), x.to(CUDA))


def large_vocabulary() -> str:
    """As its benchmark: after one run of both passes, each of three measurements at the second turn."""
    embedding, classifier = (
        torch.randn(n, 2304, device=CUDA, dtype=torch.bfloat16).requires_grad_() for n in (8192, 256_000)
    )
    targets = torch.zeros(8192, dtype=torch.long, device=CUDA)

    def loss() -> Tensor:
        logits = torch.tanh(embedding @ classifier.T / 30.0) * 30.0
        return F.cross_entropy(logits.float(), targets)

    loss().backward()
    found = []
    for forward, backward in ((True, False), (False, True), (True, True)):
        embedding.grad = classifier.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = peak()
        result = loss()
        if not forward:
            torch.cuda.reset_peak_memory_stats()
            before = peak()
        if backward:
            result.backward()
        found.append(f"{(peak() - before) / MIB:.1f}")
        del result
    return ", ".join(found)


class MeanOfSquares(torch.autograd.Function):
    """The loss of PyTorch 1.11, whose mean had memory of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, target)
        return F.mse_loss(x, target, reduction="none").mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.ops.aten.mse_loss_backward(gradient, *ctx.saved_tensors, 1), None


def mixed_precision_recipe() -> str:
    """The recipe's loops one after the other: the loss of the first keeps the first model in the second's first step.

    Steps after the second have the figures of the second.
    """
    data, targets = ([torch.randn(512, 4096, device=CUDA) for _ in range(50)] for _ in range(2))
    found = []
    for mixed in (False, True):
        model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096))
        model = model.to(CUDA)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, foreach=False)
        scaler = torch.amp.GradScaler("cuda", enabled=mixed)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for x, target in list(zip(data, targets, strict=True))[:2]:
            with torch.autocast("cuda", torch.float16, enabled=mixed):
                y = model(x)
                loss = MeanOfSquares.apply(y.float(), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=False)  # as it was then
        found.append(peak())
    return ", ".join(map(str, found))


class Digits(nn.Module):
    """The classifier of PyTorch's MNIST example."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.rest = nn.Sequential(
            nn.Dropout(0.4), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.pictures(x)).log_softmax(1)


def digits(pictures: int, mixed: bool) -> str:
    model = Digits().to(CUDA)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=0.001, foreach=False)
    scaler = torch.amp.GradScaler("cuda", enabled=mixed)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        x, target = torch.rand(pictures, 1, 28, 28), torch.zeros(pictures, dtype=torch.long)
        with torch.autocast("cuda", torch.float16, enabled=mixed):
            y = model(x.to(CUDA))
            loss = F.cross_entropy(y, target.to(CUDA))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return f"{peak()}"


_CUDNN = "cuDNN's workspaces are not counted, as a remark says"
_STEPS = "before, after forward, after backward, peak, B"

ROWS = (
    Published(
        f"{GITHUB}pytorch/pytorch/issues/74443", "?", "two Linear(1024): forward, backward, B", "16777728, 20972032",
        two_linears, workspace=False,
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/66923", "?", "split, and backward of the first part: peak, allocated, MiB",
        "0 0, 512 512, 512 512, 1022 512", split_and_its_first_part, workspace=False,
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/72450", "?", "softmax and its mean: after backward, peak, B",
        "9059697152, 15099495424", softmax,
    ),
    Published(_MEMLAB, "?", "a Linear(1024): forward, backward, MiB", "6.00, 10.01", a_linear, workspace=False),
    Published(_MEMLAB, "?", "one weight in two Linear: backward, MiB", "10.02", one_weight_in_two, workspace=False),
    Published(
        f"{GITHUB}00drdelius/CustomLOMO/blob/b9a7ac98169ae6e708c42e9deefb3bb33d43e668/test.py", "?",
        "two Linear, their inputs, results, sum, backward, peak, KiB", "8196, 20612, 20616, 20616.5, 33036.5, 37133",
        linear_and_its_sum, slow=True,
    ),
    Published(
        _FAIRSCALE, "?", f"a network of three Linear: {_STEPS}", "38912, 64000, 74240, 98816",
        lambda: feed_forward(checkpointed=False), workspace=False,
    ),
    Published(
        _FAIRSCALE, "?", f"two of them checkpointed: {_STEPS}", "38912, 43520, 74240, 103424",
        lambda: feed_forward(checkpointed=True), workspace=False,
    ),
    Published(
        _FAIRSCALE, "?", f"nine Linear: {_STEPS}", "32256, 274944, 41984, 334336",
        lambda: nine_linears(checkpointed=False), workspace=False,
    ),
    Published(
        _FAIRSCALE, "?", f"three times three checkpointed: {_STEPS}", "32256, 101888, 41984, 253952",
        lambda: nine_linears(checkpointed=True), workspace=False,
    ),
    Published(
        _CCE, "A100", "cross entropy of 8192 tokens, 256,000 words: forward, backward, both, MiB",
        "24000.0, 16000.0, 28000.0", large_vocabulary,
    ),
    Published(
        _TENSOR_CORES, "T4", "PyTorch's recipe of mixed precision: default, mixed, B", "1350681600, 1577232384",
        mixed_precision_recipe, card="T4", workspace=False,
    ),
    Published(
        _TENSOR_CORES, "T4", "MNIST's classifier, 512 pictures, Adadelta: peak, B", "417359872",
        lambda: digits(512, mixed=False), why=_CUDNN, card="T4", workspace=False,
    ),
    Published(
        _TENSOR_CORES, "T4", "the same by mixed precision, B", "175422976", lambda: digits(512, mixed=True), why=_CUDNN,
        card="T4", workspace=False,
    ),
    Published(
        _TENSOR_CORES, "T4", "the same of 1024 pictures, B", "320654848", lambda: digits(1024, mixed=True), why=_CUDNN,
        card="T4", workspace=False,
    ),
)  # fmt: skip
