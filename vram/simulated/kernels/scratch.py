"""Scratch memory of CUDA's kernels: the rules of all subjects in one table, read off torch's sources.

`benchmarks/cardless` compares it with the allocations of torch's own CUDA code. Not counted: workspaces that cuDNN
chooses, and sizes that depend on how many blocks of a kernel fit a multiprocessor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vram.simulated.kernels import (
    attention,
    attention_backward,
    batch_norm,
    copies,
    indexing,
    layouts,
    reductions,
    sorting,
)
from vram.simulated.kernels.call import Call, Rules, Steps, clone, empty, name, of_bytes
from vram.simulated.kernels.cublas import by_triton, is_product, unreadable_operands
from vram.simulated.kernels.uncounted import may_be_uncounted
from vram.simulated.operations import is_custom

__all__ = ["Call", "allocated", "around", "made_last", "preparation", "scratch", "takes_result_alone"]

_aten = torch.ops.aten


@functools.cache
def takes_result_alone(func: Any) -> bool:
    """Whether a card takes memory for an operation's results and nothing else, whatever its operands are."""
    operation = name(func)
    rules = (_RULES, _BEFORE, _AROUND, _KEPT)
    fused = ("attention", "native_batch_norm", "native_dropout")
    return not (
        any(operation in each for each in rules)
        or any(part in operation for part in fused)
        or is_product(func)
        or is_custom(func)
        or may_be_uncounted(operation)
    )


def preparation(call: Call) -> Steps:
    """Operations that a card runs, and drops, before it takes memory for the result."""
    rule = _BEFORE.get(name(call.func))
    return iter(()) if rule is None else rule(call)


def around(call: Call) -> Steps:
    """Operations that a card runs before it takes memory for the result; it drops their results at the end."""
    rule = _AROUND.get(name(call.func))
    return iter(()) if rule is None else rule(call)


def made_last(call: Call) -> Tensor | None:
    """The result before which a card drops what it ran `around` the others: a convolution's gradient of the bias."""
    return call.result[2] if call.func is _aten.convolution_backward.default else None


def scratch(call: Call) -> Steps:
    """Operations that a card runs besides; it drops their results when the operation ends.

    A mask without a known value counts as true everywhere.
    """
    rule = _RULES.get(name(call.func))
    if rule is not None:
        yield from rule(call)
        return
    if n_bytes := attention.sum_bytes(call.func, call.args):
        yield of_bytes(n_bytes)
    if not by_triton(call.func, call.args, call.version):
        for operand in unreadable_operands(call.func, call.args):
            yield clone(operand)


def allocated(func: Any, result: Any, args: Any) -> Any:
    """The part of an operation's result that a card allocates; one that keeps more memory than it shows is resized."""
    kept = _KEPT.get(name(func))
    if kept is not None and (n_bytes := kept(args, result)) > result.untyped_storage().nbytes():
        result.untyped_storage().resize_(n_bytes)
    if func is _aten.native_batch_norm.default and batch_norm.without_statistics(args):
        return result[:1]  # no mean and deviation of this batch
    if func is _aten.native_dropout.default:
        return result[::-1]  # the mask comes first
    return attention.allocated(func, result, args)


def _dropped_out(call: Call) -> Steps:
    if call.argument(3, "dropout_p", 0.0):
        yield empty((2,), torch.int64)  # where the kernel begins to draw


_RULES: Rules = {
    **reductions.RULES,
    **indexing.RULES,
    **sorting.RULES,
    **copies.RULES,
    **layouts.RULES,
    **attention_backward.RULES,
    **batch_norm.RULES,
    "_scaled_dot_product_flash_attention": _dropped_out,
}
_BEFORE: Rules = batch_norm.BEFORE | copies.BEFORE | indexing.BEFORE | sorting.BEFORE
_AROUND: Rules = {
    **attention_backward.AROUND,
    **batch_norm.AROUND,
    **copies.AROUND,
    **indexing.AROUND,
    **reductions.AROUND,
    **sorting.AROUND,
}
_KEPT = reductions.KEPT | copies.KEPT
