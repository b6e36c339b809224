"""Operations of inference, each with the memory that it takes for a moment and the memory that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)
from torch.nn.attention import SDPBackend, sdpa_kernel

Operation = Callable[[], object]
Figures = list[int]  # requested bytes: the peak while it runs, those of its result; the peak of blocks
Make = Callable[[], Operation]  # makes the inputs, and returns what is measured
HALF, FLOAT = torch.float16, torch.float32
DTYPES = {"float16": HALF, "float32": FLOAT}
PRODUCTS = DTYPES | {"bfloat16": torch.bfloat16}
# Rows of a decoder at prefill and at a single token, a small matrix, a large one, a vocabulary, one long row.
SHAPES = {
    "prefill": (1, 627, 4096),
    "token": (1, 1, 4096),
    "small": (3, 5, 7),
    "large": (64, 1024, 1024),
    "vocabulary": (1, 1, 32064),
    "long": (1, 3_000_000),
}


_LOSSES: dict[str, Callable[..., Tensor]] = {
    each.__name__: each
    for each in (
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.huber_loss,
        F.kl_div,
        F.l1_loss,
        F.mse_loss,
        F.smooth_l1_loss,
        F.soft_margin_loss,
    )
}


def x(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def ids(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def truths(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device="cuda")


def ones(like: Tensor) -> Tensor:
    return torch.ones(like.shape, device="cuda")


def of(function: Callable[..., object], *args: Any, **kwargs: Any) -> Operation:
    return lambda: function(*args, **kwargs)


# One tensor each.
ONE: dict[str, Callable[[Tensor], object]] = {
    "abs": torch.abs,
    "add number": lambda t: t + 1,
    "add_": lambda t: t.add_(1),
    "all": lambda t: (t > 0).all(),
    "amax": lambda t: t.amax(-1),
    "amax of all": torch.amax,
    "any": lambda t: (t > 0).any(-1),
    "argmax": lambda t: t.argmax(-1),
    "argmax of all": torch.argmax,
    "argsort": lambda t: t.argsort(-1),
    "cat": lambda t: torch.cat([t, t], -1),
    "chunk, multiply": lambda t: torch.mul(*t[..., : t.shape[-1] // 2 * 2].chunk(2, -1)),
    "clamp": lambda t: t.clamp(0, 1),
    "clone": torch.clone,
    "contiguous of transposed": lambda t: t.mT.contiguous() if t.dim() > 2 else t.t().contiguous(),
    "count_nonzero": torch.count_nonzero,
    "cumsum": lambda t: t.cumsum(-1),
    "cumsum of first": lambda t: t.cumsum(0),
    "cumsum of whole numbers": lambda t: t.int().cumsum(-1),
    "cumprod": lambda t: t.cumprod(-1),
    "cummax": lambda t: t.cummax(-1),
    "diff": torch.diff,
    "dropout": lambda t: F.dropout(t, 0.1, training=True),
    "exp": torch.exp,
    "flip": lambda t: t.flip(-1),
    "float": lambda t: t.float(),
    "gelu": F.gelu,
    "gelu tanh": lambda t: F.gelu(t, approximate="tanh"),
    "glu": lambda t: F.glu(t[..., : t.shape[-1] // 2 * 2]),
    "isfinite": torch.isfinite,
    "isnan any": lambda t: t.isnan().any(),
    "kthvalue": lambda t: t.kthvalue(1),
    "log_softmax": lambda t: t.log_softmax(-1),
    "logcumsumexp": lambda t: t.logcumsumexp(-1),
    "logsumexp": lambda t: t.logsumexp(-1),
    "masked_fill": lambda t: t.masked_fill(t > 0, 0.0),
    "max": lambda t: t.max(-1),
    "max of all": torch.max,
    "mean": lambda t: t.mean(-1, keepdim=True),
    "mean in float": lambda t: t.float().pow(2).mean(-1, keepdim=True),
    "mean of all": torch.mean,
    "mean of first": lambda t: t.mean(0),
    "median": lambda t: t.median(-1),
    "median of all": torch.median,
    "min of all": torch.min,
    "nan_to_num": torch.nan_to_num,
    "norm": lambda t: t.norm(dim=-1),
    "norm of all": torch.norm,
    "normalize": lambda t: F.normalize(t, dim=-1),
    "normal_": lambda t: t.normal_(),
    "pow": lambda t: t.pow(2),
    "prod": lambda t: t.prod(-1),
    "prod of all": torch.prod,
    "rand_like": torch.rand_like,
    "relu": torch.relu,
    "repeat": lambda t: t.repeat(2, *[1] * (t.dim() - 1)),
    "repeat_interleave": lambda t: t.repeat_interleave(2, -1),
    "roll": lambda t: t.roll(1, -1),
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softmax": lambda t: t.softmax(-1),
    "softmax in float": lambda t: t.softmax(-1, dtype=torch.float32),
    "softmax of first": lambda t: t.softmax(0),
    "sort": lambda t: t.sort(-1),
    "sort, stable": lambda t: t.sort(stable=True, dim=-1),
    "sort of first": lambda t: t.sort(0),
    "sqrt": torch.sqrt,
    "std": lambda t: t.std(-1),
    "std of all": torch.std,
    "sum": lambda t: t.sum(-1),
    "sum in float": lambda t: t.sum(-1, dtype=torch.float32),
    "sum of all": torch.sum,
    "sum of first": lambda t: t.sum(0),
    "tanh": torch.tanh,
    "to float64": lambda t: t.double(),
    "topk 1": lambda t: t.topk(1),
    "topk 5": lambda t: t.topk(5),
    "tril": lambda t: t.tril(),
    "var": lambda t: t.var(-1),
    "var_mean": lambda t: torch.var_mean(t, -1),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "layer_norm": lambda t: F.layer_norm(t, t.shape[-1:]),
    "layer_norm of transposed": lambda t: F.layer_norm(t.mT, t.mT.shape[-1:]),
    "rms_norm": lambda t: F.rms_norm(t, t.shape[-1:]),
    "group_norm": lambda t: F.group_norm(t, 1),
    "softmax of transposed": lambda t: t.mT.softmax(-1),
}


def one_each() -> Iterator[tuple[str, Make]]:
    for shape_name, shape in SHAPES.items():
        for dtype_name, dtype in DTYPES.items():
            for name, function in ONE.items():
                yield f"{name}, {shape_name}, {dtype_name}", lambda f=function, s=shape, d=dtype: of(f, x(*s, dtype=d))


def attention(
    heads: int, key_heads: int, queries: int, keys: int, size: int, dtype: torch.dtype, masked: str, causal: bool,
    only: SDPBackend | None = None, dropout: float = 0.0
) -> Make:  # fmt: skip
    def make() -> Operation:
        q, k = x(2, queries, heads, size, dtype=dtype).transpose(1, 2), x(2, keys, key_heads, size, dtype=dtype)
        k = k.transpose(1, 2)
        kind = {"boolean": torch.bool, "numbers": dtype}.get(masked)
        mask = None if kind is None else torch.ones(2, 1, queries, keys, dtype=kind, device="cuda")

        def run() -> Tensor:
            return F.scaled_dot_product_attention(
                q, k, k, mask, dropout_p=dropout, is_causal=causal, enable_gqa=heads != key_heads
            )

        def with_kernel() -> Tensor:
            assert only is not None
            with sdpa_kernel(only):
                return run()

        return run if only is None else with_kernel

    return make


def attentions() -> Iterator[tuple[str, Make]]:
    for heads, key_heads, queries, keys, size in (
        (32, 32, 627, 627, 128),
        (32, 32, 1, 628, 128),
        (16, 16, 577, 577, 64),
        (32, 8, 627, 627, 128),
        (32, 8, 1, 628, 128),
        (8, 8, 64, 64, 256),
        (8, 4, 64, 64, 256),
        (8, 4, 1, 64, 256),
        (4, 4, 64, 64, 20),
        (4, 4, 64, 64, 80),
        (4, 4, 64, 64, 96),
        (4, 4, 64, 64, 72),
        (4, 4, 8, 64, 64),
        (4, 4, 1, 1, 64),
        (4, 4, 100, 2048, 64),
        (2, 2, 16, 4096, 128),
        (1, 1, 64, 64, 512),
        (16, 1, 1, 512, 576),
    ):
        for dtype_name, dtype in PRODUCTS.items():
            for masked in ("", "boolean", "numbers"):
                for causal in (False, True):
                    if causal and masked:
                        continue
                    for only in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
                        how = f"{'causal' if causal else masked or 'plain'}{', ' + only.name if only else ''}"
                        name = f"attention {heads}/{key_heads} heads {queries} x {keys} x {size} {dtype_name} {how}"
                        yield name, attention(heads, key_heads, queries, keys, size, dtype, masked, causal, only)


def products() -> Iterator[tuple[str, Make]]:
    for dtype_name, dtype in PRODUCTS.items():

        def make(f: Callable[..., object], *shapes: tuple[int, ...], d: torch.dtype = dtype) -> Make:
            return lambda: of(f, *[x(*shape, dtype=d) for shape in shapes])

        named: dict[str, Make] = {
            "linear": make(F.linear, (1, 627, 512), (1024, 512)),
            "linear, bias": make(F.linear, (1, 627, 512), (1024, 512), (1024,)),
            "linear, bias, one token": make(F.linear, (1, 1, 512), (1024, 512), (1024,)),
            "linear, bias, transposed": make(lambda t, w, b: F.linear(t.mT, w, b), (2, 512, 64), (1024, 512), (1024,)),
            "linear of a vector": make(F.linear, (512,), (1024, 512)),
            "linear of a vector, bias": make(F.linear, (512,), (1024, 512), (1024,)),
            "matmul": make(torch.matmul, (2, 8, 64, 128), (2, 8, 128, 64)),
            "matmul, transposed": make(lambda a, b: a @ b.mT, (2, 8, 64, 128), (2, 8, 64, 128)),
            "matmul, broadcast": make(torch.matmul, (2, 8, 64, 128), (128, 64)),
            "matmul, heads last": make(
                lambda a, b: a.transpose(1, 2) @ b.permute(0, 2, 3, 1), (2, 64, 8, 128), (2, 64, 8, 128)
            ),
            "bmm": make(torch.bmm, (8, 64, 128), (8, 128, 64)),
            "bmm, every second": make(lambda a, b: a[:, :, ::2] @ b, (8, 64, 256), (8, 128, 64)),
            "mm, every second": make(lambda a, b: a[:, ::2] @ b, (64, 256), (128, 64)),
            "mv": make(torch.mv, (64, 128), (128,)),
            "dot": make(torch.dot, (4096,), (4096,)),
            "outer": make(torch.outer, (64,), (64,)),
            "baddbmm": make(torch.baddbmm, (8, 64, 64), (8, 64, 128), (8, 128, 64)),
            "baddbmm, broadcast": make(torch.baddbmm, (64,), (8, 64, 128), (8, 128, 64)),
            "addmm": make(torch.addmm, (64, 64), (64, 128), (128, 64)),
            "addmm, beta 0": make(lambda c, a, b: torch.addmm(c, a, b, beta=0), (64, 64), (64, 128), (128, 64)),
            "addmm, bias, alpha": make(lambda c, a, b: torch.addmm(c, a, b, alpha=2), (64,), (64, 128), (128, 64)),
            "addmv": make(torch.addmv, (64,), (64, 128), (128,)),
            "addbmm": make(torch.addbmm, (64, 64), (8, 64, 128), (8, 128, 64)),
            "bilinear": make(F.bilinear, (4, 8), (4, 8), (3, 8, 8)),
            "einsum": make(lambda a, b: torch.einsum("bqhd,bkhd->bhqk", a, b), (2, 64, 8, 32), (2, 64, 8, 32)),
            "einsum, three": make(lambda a, b, c: torch.einsum("bi,ij,jk->bk", a, b, c), (4, 8), (8, 16), (16, 4)),
            "tensordot": make(lambda a, b: torch.tensordot(a, b, dims=1), (4, 8, 16), (16, 32)),
            "cdist": make(lambda a, b: torch.cdist(a.float(), b.float()), (2, 577, 64), (2, 577, 64)),
            "cdist, few": make(lambda a, b: torch.cdist(a.float(), b.float()), (2, 17, 64), (2, 17, 64)),
            "cosine_similarity": make(
                lambda a, b: F.cosine_similarity(a[:, :, None], b[:, None], -1), (2, 17, 64), (2, 17, 64)
            ),
        }
        for name, each in named.items():
            yield f"{name}, {dtype_name}", each
    yield "_int_mm", lambda: of(torch._int_mm, ids(32, 64, dtype=torch.int8), ids(64, 32, dtype=torch.int8))


def reductions() -> Iterator[tuple[str, Make]]:
    """Over some of the dimensions, of long and short ones, in each order."""
    functions: dict[str, Callable[[Tensor, Any], object]] = {
        "sum": lambda t, dims: t.sum(dims),
        "mean": lambda t, dims: t.mean(dims),
        "amax": lambda t, dims: t.amax(dims),
        "std": lambda t, dims: t.std(dims),
        "norm": lambda t, dims: torch.linalg.vector_norm(t, dim=dims),
        "any": lambda t, dims: t.any(dims),
    }
    for shape in ((200_000, 3), (100_000, 64), (3, 400_000), (2, 300_000, 4), (1, 3, 1024, 1024), (8, 16, 512, 512)):
        for dims in ((0,), (1,), (-1,), (0, 1), (-2, -1)):
            for name, function in functions.items():
                for dtype_name, dtype in DTYPES.items():
                    for how, turned in (("", False), (" of transposed", True)):

                        def make(
                            f: Callable[[Tensor, Any], object] = function, s: Any = shape, d: Any = dims,
                            t: bool = turned, kind: torch.dtype = dtype,
                        ) -> Operation:  # fmt: skip
                            return of(f, x(*s, dtype=kind).mT if t else x(*s, dtype=kind), d)

                        yield f"{name}{how} of {shape} over {dims}, {dtype_name}", make


def indexings() -> Iterator[tuple[str, Make]]:
    named: dict[str, Callable[[Tensor], Operation]] = {
        "embedding": lambda t: of(F.embedding, ids(1, 64), t),
        "embedding, padding": lambda t: of(F.embedding, ids(1, 64), t, 0),
        "embedding_bag": lambda t: of(F.embedding_bag, ids(4, 16), t),
        "index by numbers": lambda t: of(lambda i: t[i], ids(100)),
        "index by two": lambda t: of(lambda i: t[i, i], ids(7)),
        "index by rows and columns": lambda t: of(lambda i, j: t[i, j], ids(20, 1), ids(1, 30)),
        "index by a number of rows": lambda t: of(lambda i, j: t[i, j], ids(20, 1), ids(20, 30)),
        "write at rows and columns": lambda t: of(t.__setitem__, (ids(20, 1), ids(30)), x(20, 30, dtype=t.dtype)),
        "index by int32": lambda t: of(lambda i: t[i], ids(100, dtype=torch.int32)),
        "index, last": lambda t: of(lambda i: t[:, i], ids(100)),
        "index by a list": lambda t: of(lambda: t[[0, 1, 2]]),
        "index by a mask": lambda t: of(lambda m: t[m], truths(t.shape[0])),
        "index by a mask of all": lambda t: of(lambda m: t[m], truths(*t.shape)),
        "index by a mask, none": lambda t: of(lambda m: t[m], torch.zeros(t.shape[0], dtype=torch.bool, device="cuda")),
        "index_select": lambda t: of(torch.index_select, t, 0, ids(100)),
        "index_select, last": lambda t: of(torch.index_select, t, 1, ids(100)),
        "index_add": lambda t: of(torch.index_add, t, 0, ids(100), x(100, t.shape[1], dtype=t.dtype)),
        "index_add_, one": lambda t: of(t.index_add_, 0, ids(1), x(1, t.shape[1], dtype=t.dtype)),
        "index_copy": lambda t: of(torch.index_copy, t, 0, ids(100), x(100, t.shape[1], dtype=t.dtype)),
        "index_copy_ of a cache": lambda t: of(t[None].index_copy_, 1, ids(1), x(1, 1, t.shape[1], dtype=t.dtype)),
        "index_fill": lambda t: of(torch.index_fill, t, 0, ids(100), 1.0),
        "index_put": lambda t: of(t.index_put_, (ids(100),), x(100, t.shape[1], dtype=t.dtype)),
        "index_put, accumulate": lambda t: of(t.index_put_, (ids(100),), x(100, t.shape[1], dtype=t.dtype), True),
        "index_put by a mask": lambda t: of(t.index_put_, (truths(*t.shape),), x(t.numel(), dtype=t.dtype)),
        "fill by a mask": lambda t: of(t.__setitem__, truths(*t.shape), 0.0),
        "write at numbers": lambda t: of(t.__setitem__, ids(7), 0.0),
        "write a row": lambda t: of(t.__setitem__, 0, 1.0),
        "add where a mask is true": lambda t: of(
            t.index_put_, (truths(*t.shape),), torch.tensor(0.0, dtype=t.dtype), True
        ),
        "write numbers where the CPU's mask is true": lambda t: of(t.__setitem__, truths(*t.shape).cpu(), 0.0),
        "write tensors where the CPU's mask is true": lambda t: of(
            t.__setitem__, truths(*t.shape).cpu(), x(t.numel(), dtype=t.dtype)
        ),
        "index by the CPU's numbers": lambda t: of(lambda: t[torch.arange(100)]),
        "index by the CPU's mask": lambda t: of(lambda: t[torch.arange(120) < 50]),
        "write a number in a cross": lambda t: of(t.__setitem__, (truths(t.shape[0]), truths(t.shape[0])), 0.0),
        "gather": lambda t: of(torch.gather, t, 1, ids(t.shape[0], 9)),
        "scatter": lambda t: of(torch.scatter, t, 1, ids(t.shape[0], 9), 1.0),
        "scatter_ of tensors": lambda t: of(t.scatter_, 1, ids(t.shape[0], 9), x(t.shape[0], 9, dtype=t.dtype)),
        "scatter_add": lambda t: of(torch.scatter_add, t, 1, ids(t.shape[0], 9), x(t.shape[0], 9, dtype=t.dtype)),
        "scatter_reduce": lambda t: of(torch.scatter_reduce, t, 1, ids(t.shape[0], 9), t[:, :9].clone(), "mean"),
        "masked_scatter": lambda t: of(torch.masked_scatter, t, truths(*t.shape), t.clone()),
        "masked_scatter, broadcast": lambda t: of(torch.masked_scatter, t, truths(t.shape[0], 1), t.clone()),
        "masked_select": lambda t: of(torch.masked_select, t, truths(*t.shape)),
        "nonzero": lambda t: of(torch.nonzero, truths(*t.shape)),
        "nonzero of numbers": lambda t: of(torch.nonzero, ids(300)),
        "where of one": lambda t: of(torch.where, truths(*t.shape)),
        "argwhere": lambda t: of(torch.argwhere, truths(9)),
        "take": lambda t: of(torch.take, t, ids(100)),
        "take_along_dim": lambda t: of(torch.take_along_dim, t, ids(t.shape[0], 1), 1),
        "put_": lambda t: of(t.put_, ids(100), x(100, dtype=t.dtype)),
        "one_hot": lambda t: of(F.one_hot, ids(100), 10),
        "histc": lambda t: of(torch.histc, t.float(), 10, 0, 1),
        "bucketize": lambda t: of(torch.bucketize, t, x(16, dtype=t.dtype)),
        "searchsorted": lambda t: of(torch.searchsorted, x(16, dtype=t.dtype), t),
        "isin": lambda t: of(torch.isin, ids(1, 627), ids(3)),
        "isin, many": lambda t: of(torch.isin, ids(1, 627), ids(300)),
        "sort of ids": lambda t: of(torch.sort, ids(1000)),
        "argsort of ids, stable": lambda t: of(lambda: torch.argsort(ids(5000), stable=True)),
        "topk of ids": lambda t: of(torch.topk, ids(1000), 5),
        "sum of a mask": lambda t: of(lambda: truths(4, 627).sum(-1)),
        "sum of whole numbers": lambda t: of(lambda: ids(4, 627, dtype=torch.int32).sum(-1)),
        "mean of a mask": lambda t: of(lambda: truths(4, 627).float().mean()),
        "all of a mask": lambda t: of(lambda: truths(1, 1, 627, 627).all()),
        "cumsum of a mask": lambda t: of(lambda: truths(1, 627).cumsum(-1)),
        "cumsum of ids": lambda t: of(lambda: ids(1, 627).cumsum(-1)),
        "cumsum of many ids": lambda t: of(lambda: ids(100_000).cumsum(-1)),
        "multinomial": lambda t: of(torch.multinomial, ones(t).softmax(-1), 1),
        "multinomial, several": lambda t: of(torch.multinomial, ones(t), 5),
        "multinomial, replaced": lambda t: of(torch.multinomial, ones(t), 5, True),
        "bernoulli": lambda t: of(torch.bernoulli, ones(t)),
        "repeat_interleave by a tensor": lambda t: of(lambda: x(4, 3).repeat_interleave(truths(4).long(), 0)),
        "tril_indices": lambda t: of(torch.tril_indices, 64, 64, device="cuda"),
        "arange": lambda t: of(torch.arange, 1000, device="cuda"),
        "randperm": lambda t: of(torch.randperm, 1000, device="cuda"),
        "randperm, many": lambda t: of(torch.randperm, 100_000, device="cuda"),
        "randint": lambda t: of(torch.randint, 0, 9, (1000,), device="cuda"),
        "linspace": lambda t: of(torch.linspace, 0, 1, 1000, device="cuda"),
        "eye": lambda t: of(torch.eye, 64, device="cuda"),
        "tensor": lambda t: of(torch.tensor, [1.0, 2.0], device="cuda"),
        "equal": lambda t: of(torch.equal, t, t.clone()),
        "allclose": lambda t: of(torch.allclose, t, t.clone()),
        "cross_entropy": lambda t: of(F.cross_entropy, t, ids(t.shape[0])),
        "nll_loss": lambda t: of(F.nll_loss, t, ids(t.shape[0])),
        **{
            f"{name}, {reduction}": lambda t, f=loss, r=reduction: of(f, t, t.clone(), reduction=r)
            for name, loss in _LOSSES.items()
            for reduction in ("mean", "sum", "none")
        },
        "mse_loss, broadcast": lambda t: of(F.mse_loss, t, t[:1].clone()),
        "binary_cross_entropy_with_logits, weighed": lambda t: of(
            F.binary_cross_entropy_with_logits, t, t.clone(), pos_weight=t[0].clone()
        ),
        "dist": lambda t: of(torch.dist, t, t[:1].clone()),
        "isinf": lambda t: of(torch.isinf, t),
        "ldexp": lambda t: of(torch.ldexp, t, t[:1].clone()),
        "median of all, transposed": lambda t: of(t.t().median),
        "nanmedian": lambda t: of(t.nanmedian),
        "index_reduce": lambda t: of(torch.index_reduce, t, 0, ids(30), t[:30].clone(), "mean"),
        "scatter_reduce, greatest": lambda t: of(torch.scatter_reduce, t, 0, ids(1, 9), t, "amax"),
        "masked_select by one truth": lambda t: of(torch.masked_select, t, truths()),
        "mode over rows": lambda t: of(torch.mode, t, 0),
        "topk of many": lambda t: of(torch.topk, x(3, 100_000, dtype=t.dtype), 5000),
        "topk of many, as they come": lambda t: of(torch.topk, x(3, 100_000, dtype=t.dtype), 5000, sorted=False),
        "topk of a row": lambda t: of(torch.topk, x(100_000, dtype=t.dtype), 20_000),
        "roll": lambda t: of(torch.roll, t, 1, 0),
        "roll, several": lambda t: of(torch.roll, t, (1, 2), (0, 1)),
        "roll of a row": lambda t: of(t.t().roll, 3),
        "normal about": lambda t: of(torch.normal, t, 2.0),
        "normal, each": lambda t: of(torch.normal, t, ones(t)),
        "bernoulli_ by": lambda t: of(t.bernoulli_, ones(t)),
        "to the CPU": lambda t: of(t.cpu),
        "from the CPU": lambda t: of(lambda: torch.zeros(1000, dtype=t.dtype).to("cuda")),
        "from the CPU, cast": lambda t: of(lambda: torch.zeros(1000).to("cuda", t.dtype)),
        "to the CPU, cast": lambda t: of(lambda: t.to("cpu", torch.float64)),
        "to the CPU, transposed": lambda t: of(lambda: t.t().cpu()),
        "copy_ from the CPU, cast": lambda t: of(lambda: t.copy_(torch.zeros(t.shape, dtype=torch.float64))),
        "copy_ from the CPU, transposed": lambda t: of(lambda: t.copy_(torch.zeros(t.shape[::-1], dtype=t.dtype).t())),
        "to the CPU, columns": lambda t: of(lambda: t[:, :64].cpu()),
        "to the CPU, every second": lambda t: of(lambda: t[:, ::2].cpu()),
        "from the CPU into columns": lambda t: of(lambda: t[:, :64].copy_(torch.zeros(t.shape[0], 64, dtype=t.dtype))),
        "from the CPU, cast, not blocking": lambda t: of(
            lambda: torch.zeros(1000, dtype=torch.float64).to("cuda", t.dtype, non_blocking=True)
        ),
        "copy_ from the CPU, cast, not blocking": lambda t: of(
            lambda: t.copy_(torch.zeros(t.shape, dtype=torch.float64), non_blocking=True)
        ),
        "to the CPU, cast, not blocking": lambda t: of(lambda: t.to("cpu", torch.float64, non_blocking=True)),
        "item": lambda t: of(lambda: t[0, 0].item()),
        "tolist": lambda t: of(lambda: ids(9).tolist()),
        "quantile": lambda t: of(torch.quantile, t.float(), 0.5, -1),
        "cartesian_prod": lambda t: of(torch.cartesian_prod, ids(20), ids(20)),
        "meshgrid": lambda t: of(lambda: torch.meshgrid(ids(20), ids(20), indexing="ij")),
        "stack": lambda t: of(torch.stack, [t, t]),
        "cat of three": lambda t: of(torch.cat, [t, t, t]),
        "cat, cast": lambda t: of(torch.cat, [t, x(*t.shape, dtype=torch.float64)]),
        "cat of columns": lambda t: of(torch.cat, [t.t(), t.t()]),
        "pad": lambda t: of(F.pad, t, (1, 1)),
        "pad_sequence": lambda t: of(torch.nn.utils.rnn.pad_sequence, [t, t[:5]], batch_first=True),
        "add, cast": lambda t: of(torch.add, t, x(*t.shape, dtype=torch.float64)),
        "add, broadcast": lambda t: of(torch.add, t, t[0]),
        "add of a number on the CPU": lambda t: of(torch.add, t, torch.tensor(1.0)),
        "addcmul": lambda t: of(torch.addcmul, t, t, t),
        "lerp": lambda t: of(torch.lerp, t, t, 0.5),
        "foreach": lambda t: of(torch._foreach_add, [t, t], 1),
        "rotary": lambda t: of(lambda: t * t + torch.cat((-t[:, 2:], t[:, :2]), -1) * t),
        "pdist": lambda t: of(F.pdist, t.float()),
        "logits to probabilities": lambda t: of(lambda: t.float().softmax(-1).cumsum(-1)),
    }  # fmt: skip
    for dtype_name, dtype in (("float16", HALF), ("float32", FLOAT)):
        for name, make in named.items():
            yield f"{name}, {dtype_name}", lambda m=make, d=dtype: m(x(120, 130, dtype=d))


def pictures() -> Iterator[tuple[str, Make]]:
    named: dict[str, Callable[[Tensor], Operation]] = {
        "conv2d": lambda t: of(F.conv2d, t, x(8, 3, 14, 14, dtype=t.dtype), stride=14),
        "conv2d, bias": lambda t: of(F.conv2d, t, x(8, 3, 14, 14, dtype=t.dtype), x(8, dtype=t.dtype), stride=14),
        "conv2d, channels last": lambda t: of(
            F.conv2d, t.to(memory_format=torch.channels_last), x(8, 3, 3, 3, dtype=t.dtype)
        ),
        "conv2d, depthwise": lambda t: of(F.conv2d, t, x(3, 1, 3, 3, dtype=t.dtype), groups=3),
        "conv2d, padding same": lambda t: of(F.conv2d, t, x(8, 3, 3, 3, dtype=t.dtype), padding="same"),
        "conv_transpose2d": lambda t: of(F.conv_transpose2d, t, x(3, 8, 2, 2, dtype=t.dtype), stride=2),
        "avg_pool2d": lambda t: of(F.avg_pool2d, t, 2),
        "max_pool2d": lambda t: of(F.max_pool2d, t, 2),
        "adaptive_avg_pool2d": lambda t: of(F.adaptive_avg_pool2d, t, 7),
        "adaptive_avg_pool2d to one": lambda t: of(F.adaptive_avg_pool2d, t, 1),
        "interpolate, nearest": lambda t: of(F.interpolate, t, scale_factor=2),
        "interpolate, bilinear": lambda t: of(F.interpolate, t, scale_factor=2, mode="bilinear"),
        "interpolate, bicubic": lambda t: of(F.interpolate, t, scale_factor=2, mode="bicubic"),
        "interpolate, antialias": lambda t: of(F.interpolate, t, scale_factor=0.5, mode="bilinear", antialias=True),
        "batch_norm": lambda t: of(F.batch_norm, t, x(3, dtype=FLOAT), x(3, dtype=FLOAT)),
        "batch_norm, half": lambda t: of(
            F.batch_norm, t, x(3, dtype=t.dtype), x(3, dtype=t.dtype), x(3, dtype=t.dtype), x(3, dtype=t.dtype)
        ),
        "batch_norm, weights": lambda t: of(F.batch_norm, t, *[x(3, dtype=FLOAT) for _ in range(4)]),
        "batch_norm of a vector": lambda t: of(
            F.batch_norm, x(4, 3, dtype=t.dtype), *[x(3, dtype=FLOAT) for _ in range(4)]
        ),
        "instance_norm": lambda t: of(F.instance_norm, t),
        "group_norm": lambda t: of(F.group_norm, t, 3),
        "unfold": lambda t: of(F.unfold, t, 14, stride=14),
        "unfold, overlapping": lambda t: of(F.unfold, t, 3),
        "unfold of what is spread": lambda t: of(F.unfold, t.expand(2, -1, -1, -1), 3),
        "fold, overlapping": lambda t: of(F.fold, x(1, 27, 4900, dtype=t.dtype), 72, 3),
        "group_norm, weighed": lambda t: of(F.group_norm, t, 3, x(3, dtype=t.dtype), x(3, dtype=t.dtype)),
        "group_norm, channels last": lambda t: of(
            F.group_norm, t.to(memory_format=torch.channels_last), 3, x(3, dtype=t.dtype)
        ),
        "roll of windows": lambda t: of(torch.roll, t, (-3, -3), (2, 3)),
        "fold": lambda t: of(F.fold, x(1, 588, 256, dtype=t.dtype), 224, 14, stride=14),
        "pixel_shuffle": lambda t: of(F.pixel_shuffle, x(1, 12, 56, 56, dtype=t.dtype), 2),
        "pixel_unshuffle": lambda t: of(F.pixel_unshuffle, t, 2),
        "grid_sample": lambda t: of(F.grid_sample, t, x(1, 10, 10, 2, dtype=t.dtype)),
        "affine_grid": lambda t: of(F.affine_grid, x(1, 2, 3, dtype=t.dtype), (1, 3, 20, 20)),
        "pad, reflect": lambda t: of(F.pad, t, (1, 1, 1, 1), mode="reflect"),
        "normalize": lambda t: of(lambda: (t - t.mean((2, 3), keepdim=True)) / t.std((2, 3), keepdim=True)),
        "conv1d": lambda t: of(F.conv1d, t[:, :, 0], x(8, 3, 3, dtype=t.dtype)),
        "conv3d": lambda t: of(F.conv3d, t[:, :, None], x(8, 3, 1, 14, 14, dtype=t.dtype), stride=(1, 14, 14)),
    }
    for dtype_name, dtype in DTYPES.items():
        for name, make in named.items():
            yield f"{name}, {dtype_name}", lambda m=make, d=dtype: m(x(1, 3, 224, 224, dtype=d))


def operations() -> Iterator[tuple[str, Make]]:
    for part in (one_each, reductions, products, indexings, pictures, attentions):
        yield from part()


def measured(make: Make) -> Figures | str:
    """Figures of a second run, or the error; the first takes what is taken once, as cuBLAS's workspace."""
    try:
        with torch.inference_mode():
            operation = make()
            operation()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_stats()
            result = operation()
            after = torch.cuda.memory_stats()
            del result
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    peak, kept = (after[f"requested_bytes.all.{which}"] for which in ("peak", "current"))
    before_bytes, blocks = before["requested_bytes.all.current"], after["allocation.all.peak"]
    return [peak - before_bytes, kept - before_bytes, blocks - before["allocation.all.current"]]
