"""Published figures of single layers: their weights, their results, and what convolutions try to allocate."""

from __future__ import annotations

import torch
from torch import nn

from tests.vram.simulated.published.case import CUDA, GIB, GITHUB, MIB, Published, now, peak, refused

_PYTORCH = f"{GITHUB}pytorch/pytorch/issues/"
_MEMLAB = f"{GITHUB}Stonesjtu/pytorch_memlab"


def a_linear() -> str:
    layer = nn.Linear(1024, 1024, bias=False).to(CUDA)
    made = now()
    result = layer(torch.rand(1, 512, 1024).to(CUDA))
    return f"{made / MIB}, {now() / MIB}, {peak() / MIB}" if result.numel() else ""


def a_hundred_times() -> str:
    layer, x = nn.Linear(1024, 1024).to(CUDA), torch.zeros(10240, 1024).to(CUDA)
    for _ in range(100):
        x = layer(x)
    return f"{now() / MIB}"


def line_by_line() -> str:
    kept, found = [], []
    for _ in range(3):
        kept.append(nn.Linear(100, 100).to(CUDA))
        found.append(f"{peak() / 1024:.2f}K")
    return f"{', '.join(found)}; {torch.cuda.max_memory_reserved() / MIB:.2f}M"


def product_before_a_linear() -> str:
    layer, x = nn.Linear(1024, 1024).to(CUDA), torch.Tensor(512, 1024).to(CUDA)
    mean = layer(x * (x + 2)).mean()
    return f"{now() / MIB:.2f}" if mean.numel() else ""


def low_rank() -> str:
    sides = ((512, 512), (512, 8), (8, 512))
    layers = [nn.Linear(i, o, bias=False, device=CUDA) for i, o in sides]
    return f"{now()}" if layers else ""


def spanish_bert() -> str:
    from transformers import BertConfig, BertModel

    with CUDA:
        model = BertModel(BertConfig(vocab_size=31002))
    words = torch.zeros(8, 16, dtype=torch.long, device=CUDA)
    held = now()
    del model, words
    return f"{held}, {now()}"


def after_all_is_gone() -> str:
    layer = nn.Linear(768, 768).to(CUDA)
    result = layer(torch.rand(16, 768, device=CUDA))
    del layer, result
    torch.cuda.empty_cache()
    return f"{now() / MIB}, {torch.cuda.memory_reserved() / MIB}"


def transposed(unit: int) -> str:
    x = torch.ones(32, 2048, 8, 8, device=CUDA)
    nn.ConvTranspose2d(2048, 512, kernel_size=4, stride=2, padding=1).to(CUDA)(x)
    return f"{peak() / unit:.3f}"


def three_dimensional(inputs: int, outputs: int, shape: tuple[int, ...], dtype: torch.dtype, padding: int) -> nn.Conv3d:
    """A convolution that has run."""
    layer = nn.Conv3d(inputs, outputs, 3, padding=padding, device=CUDA, dtype=dtype)
    layer(torch.rand(1, inputs, *shape, device=CUDA, dtype=dtype))
    return layer


def below_two_to_the_31() -> str:
    three_dimensional(64, 32, (361, 370, 251), torch.half, 1)
    return f"{peak() / 1e9}, {torch.cuda.max_memory_reserved() / 1e9}"


def before_a_convolution() -> str:
    layer = nn.Conv3d(256, 64, 3).to(CUDA)
    x = torch.rand(1, 256, 4, 1090, 1922, device=CUDA)
    return f"{now() / GIB}" if layer and x.numel() else ""


def ten_that_grow() -> str:
    found = []
    for i in range(10):
        x = torch.rand(1000, 1000, i + 1, device=CUDA)  # beside the one before
        found.append(f"{peak() / MIB}")
    return f"{found[0]}, {found[-1]}" if x.numel() else ""


def autocast_product(enabled: bool) -> str:
    base = torch.randn(41292, 64).to(CUDA)
    with torch.autocast("cuda", torch.float16, enabled=enabled):
        x = torch.randn(1024, 64, requires_grad=True, device=CUDA)
        result = base.expand(1024, -1, -1).bmm(x.unsqueeze(-1))
        del x
        torch.cuda.empty_cache()
        return f"{now()}" if result.numel() else ""


_CUDNN = "cuDNN's workspace is not counted, as a remark says"
_OWN = "above 2^31 elements, PyTorch ran a kernel of its own with columns of that size; since cuDNN 9.3, cuDNN's"
_SEGMENTS = "the input there is not rounded up to 2 MiB, as with expandable segments; the setting is not published"
_THEN = "PyTorch 1.0: blocks in steps of 128 KiB, and the generator's 845 KiB on the card"

ROWS = (
    Published(f"{_PYTORCH}104604", "?", "a Linear(1024) made, run, peak, PyTorch 1.11, MiB", "4.0, 8.0, 8.0", a_linear,
        workspace=False,
    ),
    Published(f"{_PYTORCH}104604", "?", "the same, PyTorch 2.0, MiB", "4.0, 16.125, 16.125", a_linear),
    Published(f"{GITHUB}TylerYep/torchinfo/issues/144", "?", "a Linear(1024) a hundred times, MiB", "4044.00390625",
        a_hundred_times, workspace=False,
    ),
    Published(_MEMLAB, "?", "three Linear(100) one by one; reserved", "40.00K, 80.00K, 120.00K; 2.00M", line_by_line),
    Published(_MEMLAB, "?", "a product before a Linear(1024), MiB", "8.00", product_before_a_linear, workspace=False),
    Published("https://pytorch.org/torchtune/stable/tutorials/qlora_finetune.html", "?", "a Linear(512) with LoRA, B",
        "1081344", low_rank,
    ),
    Published(f"{GITHUB}facebookresearch/fvcore/issues/115", "?", "BERT and its words, and without them, B",
        "439937024, 0", spanish_bert,
    ),
    Published(f"{GITHUB}huggingface/transformers/issues/26571", "?", "left of a model that ran; reserved, MiB",
        "8.125, 20.0", after_all_is_gone,
    ),
    Published(f"{_PYTORCH}26112", "RTX 2080 Ti", "a ConvTranspose2d: peak, MiB", "96.002", lambda: transposed(MIB),
        card="RTX 2080 Ti", workspace=False,
    ),
    Published(f"{_PYTORCH}26112", "V100", "the same, GiB", "4.676", lambda: transposed(GIB), why=_CUDNN, card="V100-16",
        workspace=False,
    ),
    Published(f"{_PYTORCH}95024", "80 GB", "a Conv3d: peak, reserved, GB", "12.874233344, 12.880707584",
        below_two_to_the_31, why=_CUDNN, workspace=False,
    ),
    Published(f"{_PYTORCH}95024", "80 GB", "the same, of one slice more: tries", "108.21 GiB", why=_OWN,
        run=lambda: refused(lambda: three_dimensional(64, 32, (362, 370, 251), torch.half, 1)),
    ),
    Published(f"{_PYTORCH}128947", "A100-80", "a Conv3d and its input, GiB", "7.993362903594971", before_a_convolution,
        why=_SEGMENTS,
    ),
    Published(f"{_PYTORCH}128947", "A100-80", "the same, of one slice more, run: tries", "161.37 GiB", why=_OWN,
        run=lambda: refused(lambda: three_dimensional(256, 64, (5, 1090, 1922), torch.float, 0)),
    ),
    Published(f"{_PYTORCH}136479", "A100-80", "a Conv3d of half precision: tries", "108.00 GiB", why=_OWN,
        run=lambda: refused(lambda: three_dimensional(128, 128, (256, 256, 256), torch.half, 1)),
    ),
    Published(f"{GITHUB}facebookresearch/maskrcnn-benchmark/issues/182", "?", "ten tensors, each larger: peaks, MiB",
        "4.7001953125, 73.4501953125", ten_that_grow, why=_THEN,
    ),
    Published(f"{_PYTORCH}85698", "?", "a bmm of an expanded matrix under autocast, B", "5508148224",
        lambda: autocast_product(enabled=True), workspace=False,
    ),
    Published(f"{_PYTORCH}85698", "?", "the same without autocast, B", "180702208",
        lambda: autocast_product(enabled=False), workspace=False,
    ),
)  # fmt: skip
