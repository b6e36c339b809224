"""Published figures of forward passes, operations and the allocator."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.vram.simulated.published.case import CUDA, GIB, GITHUB, MIB, Published, now, peak, refused
from vram.cards import Card

_DOCS = "https://huggingface.co/docs/transformers/"


def fill(elements: int) -> str:
    kept: list[torch.Tensor] = []
    return refused(lambda: [kept.append(torch.rand(elements, device=CUDA)) for _ in range(2**20)])


def after_a_linear() -> str:
    nn.Linear(1, 1, device=CUDA)(torch.randn(1, 1, device=CUDA)).detach()
    return f"{now()}"


def softmax() -> str:
    x = torch.rand(5120, 2, 384, 384, dtype=torch.bfloat16, device=CUDA)
    before = now()
    y = torch.softmax(x, -1)
    loss = y.mean()
    return f"{before}, {now()}" if loss.numel() else ""


def square_and_eye() -> str:
    x = torch.randn(20_000, 20_000, device=CUDA)
    first = peak()
    eye = ~torch.eye(20_000, dtype=torch.bool, device=CUDA)
    return f"{first}, {peak()}" if eye.numel() + x.numel() else ""


def mask_of() -> str:
    a = torch.randn(1, 32, 24, 512, 512, device=CUDA)
    first = now()
    mask = a < 0
    return f"{first / MIB:.1f}, {now() / MIB:.1f}" if mask.numel() else ""


def sparse_parts() -> str:
    n = int(3e4 * 3e4 * (1 - 0.9))
    kept = torch.empty(2, n, dtype=torch.int64, device=CUDA), torch.empty(n, device=CUDA)
    x = torch.empty(39, dtype=torch.int64, device=CUDA)
    return f"{peak()}" if x.numel() + len(kept) else ""


def overlapping_bmm() -> str:
    batch, rows, columns = 1000, 100, 100_000
    left = torch.zeros(batch + rows + columns, device=CUDA).as_strided([batch, rows, columns], [1, 1, 1])
    right = torch.zeros(batch + columns + 1, device=CUDA).as_strided([batch, columns, 1], [1, 1, 1])
    return refused(lambda: torch.bmm(left, right))


def sort() -> str:
    t = torch.rand(400_000_000, device=CUDA)
    before = now()
    torch.sort(t)
    return f"{before / MIB:.0f}, {peak() / MIB:.0f}"


def vanilla_attention() -> str:
    found = []
    for shape in ((1, 512, 16), (1, 1024, 32), (8, 127, 32)):
        with torch.no_grad():
            q = torch.rand(shape, device=CUDA)
            torch.cuda.reset_peak_memory_stats()
            before = now()
            k, v, scaled = q.clone(), q.clone(), q * (1.0 / q.shape[-1] ** 0.5)
            result = (scaled @ k.transpose(-2, -1)).softmax(-1) @ v
        found.append(f"{(peak() - before) / MIB}")
        del q, k, v, scaled, result
    return ", ".join(found)


def bert_large() -> str:
    from transformers import BertConfig, BertForSequenceClassification

    torch.ones(1, 1, device=CUDA)
    before = torch.cuda.memory_reserved()
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    model = BertForSequenceClassification(config).to(CUDA)
    return f"{(torch.cuda.memory_reserved() - before) // MIB}" if model else ""


def octocoder() -> str:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    config = GPTBigCodeConfig(
        vocab_size=49152, n_positions=8192, n_embd=6144, n_layer=40, n_head=48, n_inner=24576, bos_token_id=0
    )
    config.eos_token_id = 0
    with torch.device(CUDA):
        model = GPTBigCodeForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        model.generate(torch.ones(1, 20, dtype=torch.long, device=CUDA), max_new_tokens=60, do_sample=False)
    return f"{peak() / GIB}"


def grouped(tokens: int, backend: SDPBackend) -> str:
    with torch.inference_mode():
        q = torch.randn(1, 28, tokens, 128, device=CUDA, dtype=torch.half)
        k, v = (torch.randn(1, 4, tokens, 128, device=CUDA, dtype=torch.half) for _ in range(2))
        mask = torch.zeros(tokens, tokens, device=CUDA, dtype=torch.half)
        torch.mm(torch.ones(2, 2, device=CUDA), torch.ones(2, 2, device=CUDA))  # it was not their first product
        torch.cuda.reset_peak_memory_stats()
        before = now()
        with sdpa_kernel([backend]):
            nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return f"{(peak() - before) / GIB:.2f}"


def steps_of_attention() -> str:
    q, k, v = (torch.randn(4096, 32, 96, device=CUDA, dtype=torch.bfloat16).transpose(0, 1) for _ in range(3))
    room = torch.empty(32, 4096, 4096, device=CUDA, dtype=torch.bfloat16)
    torch.mm(torch.ones(2, 2, device=CUDA), torch.ones(2, 2, device=CUDA))
    at = [now()]
    scores = torch.baddbmm(room, q, k.transpose(1, 2), beta=0.0, alpha=0.1)
    at.append(now())
    weights = torch.softmax(scores, -1)
    at.append(now())
    dropped, mask = torch.native_dropout(weights, 0.1, True)
    at.append(now())
    context = torch.bmm(dropped, v)
    at.append(now())
    steps = (after - before for before, after in pairwise(at))
    return ", ".join(f"{step // MIB}" for step in steps) if context.numel() + mask.numel() else ""


def transfers(reusing: bool) -> str:
    """Reserved GB after each of eight calls that pack into two buffers of 1 GiB, on two streams of their own."""
    found, streams = [], [torch.cuda.Stream() for _ in range(2)]
    for _ in range(8):
        if not reusing:
            streams = [torch.cuda.Stream() for _ in range(2)]
        buffers = []
        for stream in streams:
            with torch.cuda.stream(stream):
                buffers.append(torch.empty(GIB, dtype=torch.uint8, device=CUDA))
            stream.synchronize()
        del buffers
        found.append(f"{torch.cuda.memory_reserved() / GIB:.0f}")
    return ", ".join(found)


def kibibytes() -> str:
    x = torch.randn(1024, device=CUDA)
    return f"{torch.cuda.memory_reserved()}, {now()}" if x.numel() else ""


_RTX_5090 = Card("RTX 5090", 32 * GIB, (12, 0))
_SORT = "PyTorch of 2022 held more; the code of 2.11 holds 13,819 MiB without a card too (cardless)"
_TIMER = "1,024 B less for each of their shapes, whatever its size"
_TOKENS = "-0.033 %; how many tokens the prompt had is not published (20 taken), and the code was that of 2023"

ROWS = (
    Published(
        f"{GITHUB}pytorch/pytorch/issues/95668", "A10G", "left after a Linear(1, 1), B", "8519680", after_a_linear,
        card="A10",
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/72450", "?", "softmax and its mean: before, after, B",
        "3019898880, 6039798272", softmax,
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/30246", "Titan Xp", "20000 x 20000, ~eye: peaks, B", "1600126976, 2401239040",
        square_and_eye,
    ),
    Published(f"{GITHUB}pytorch/pytorch/issues/39374", "?", "a, and a < 0, MiB", "768.0, 960.0", mask_of),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/114855", "?", "parts of a sparse matrix, B", "1801454080", sparse_parts
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/52111", "?", "bmm of overlapping rows tries", "37.25 GiB", overlapping_bmm,
        card="RTX 3090",
    ),
    Published(
        f"{GITHUB}pytorch/pytorch/issues/77049", "?", "sort: before, peak, MiB", "1526, 18380", sort, why=_SORT
    ),
    Published(f"{GITHUB}pytorch/pytorch/issues/67971", "6 GB", "full of 40 KB tensors: tries", "2.00 MiB",
        lambda: fill(10_000), card="6GiB", slow=True,
    ),
    Published(
        f"{GITHUB}pinokiofactory/flux-webui/issues/11", "RTX 4090", "full of a few MiB each: tries", "20.00 MiB",
        lambda: fill(2**20), card="RTX 4090",
    ),
    Published(
        f"{GITHUB}NVIDIA/Megatron-LM/issues/965", "A100", "baddbmm, softmax, dropout, bmm: steps, MiB",
        "1024, 1024, 1536, 24", steps_of_attention,
    ),
    Published(
        f"{GITHUB}Comfy-Org/ComfyUI/pull/15135", "RTX 5090", "masked attention by mathematics, 8000 tokens, GiB",
        "15.48", lambda: grouped(8000, SDPBackend.MATH), card=_RTX_5090,
    ),
    Published(
        f"{GITHUB}Comfy-Org/ComfyUI/pull/15135", "RTX 5090", "the same by cuDNN, 4000 to 27000 tokens, GiB",
        "0.03, 0.05, 0.11, 0.18", card=_RTX_5090,
        run=lambda: ", ".join(grouped(n, SDPBackend.CUDNN_ATTENTION) for n in (4000, 8000, 16_000, 27_000)),
    ),
    Published(
        f"{GITHUB}facebookresearch/xformers/pull/267", "?", "attention, three of their shapes, MiB",
        "2.0947265625, 8.3759765625, 1.3583984375", vanilla_attention, why=_TIMER, workspace=False,
    ),
    Published(
        f"{GITHUB}vllm-project/vllm/issues/52950", "?", "2 GiB on new streams, eight times: reserved, GiB",
        "2, 4, 6, 8, 10, 12, 14, 16", lambda: transfers(reusing=False),
    ),
    Published(
        f"{GITHUB}vllm-project/vllm/pull/52951", "?", "the same on streams that are reused, GiB",
        "2, 2, 2, 2, 2, 2, 2, 2", lambda: transfers(reusing=True),
    ),
    Published(
        f"{_DOCS}model_memory_anatomy", "V100", "bert-large's weights, reserved (by NVML), MiB", "1288", bert_large,
        card="V100-16",
    ),
    Published(
        f"{_DOCS}llm_tutorial_optimization", "A100-40", "octocoder, bfloat16, 60 tokens: peak, GiB", "29.0260648727417",
        octocoder, why=_TOKENS, card="A100-40", slow=True,
    ),
)  # fmt: skip
