"""Why the simulation and PyTorch's own CUDA code differ on samples of an operation, as far as it is known."""

from __future__ import annotations

_CAUSES: dict[str, tuple[str, ...]] = {
    "on the stub driver the host decides by what no kernel wrote: how many elements of a mask are true": (
        *("combinations", "masked_scatter", "linalg.ldl_factor", "linalg.cholesky"),
        *("histc", "bincount"),
    ),
    "on the stub driver the host decides by what no kernel wrote: how many classes or different values there are": (
        *("nn.functional.one_hot", "isin"),
    ),
    "the places of pivots, or of what is not zero, are not counted; a remark says so": ("lu_unpack", "nonzero_static"),
    "the gradient of a value that is a tensor is chosen by the mask; for fake tensors C++ takes another formula": (
        "masked_fill",
    ),
    "the gradient is zeros without memory on a card, and zeros with memory here": ("sgn",),
    "the mask and the number of those that are not NaN are not counted": ("nanmedian",),
    "temporary memory of a sort of indices is not counted": ("nn.functional.embedding", "nn.functional.embedding_bag"),
    "the matrices of each norm, and their places, are not counted": ("matrix_exp",),
    "partial sums of a bilinear product are not counted; a remark says so": ("nn.functional.bilinear",),
    "temporary memory of unique is not counted; a remark says so": ("unique", "unique_consecutive"),
    "temporary memory of a margin loss is not counted; a remark says so": (
        *("nn.functional.multi_margin_loss", "nn.functional.multilabel_margin_loss"),
    ),
    "copies within a dilated transposed convolution are not counted": (
        *("nn.functional.conv_transpose1d", "nn.functional.conv_transpose2d", "nn.functional.conv_transpose3d"),
    ),
    "the chunks of linear_cross_entropy are not counted": (
        *("nn.functional.linear_cross_entropy, chunked", "nn.functional.linear_cross_entropy, chunked_none"),
    ),
    "the workspace of a decomposition is not counted; a remark says so": (
        *("linalg.det", "linalg.slogdet", "linalg.inv", "linalg.pinv", "linalg.pinv, hermitian", "logdet"),
        *("linalg.eig", "linalg.eigvals", "linalg.matrix_power", "linalg.pinv, singular", "linalg.solve"),
    ),
    "a search for the true elements of a mask is not counted": ("index_fill", "index_put"),
    "an operation of attention, called by itself: its copies and sums are not counted; a remark says so": (
        *("torch.ops.aten._flash_attention_forward", "torch.ops.aten._efficient_attention_forward"),
    ),
    "an operation of compiled code, called by itself": (
        *("_unsafe_masked_index", "_unsafe_masked_index_put_accumulate", "_chunk_cat"),
    ),
    "called by itself with running means, where nn.functional.batch_norm would choose cuDNN": ("native_batch_norm",),
}
_BY_NAME = {name: cause for cause, names in _CAUSES.items() for name in names}


def cause_of(name: str, direction: str) -> str:
    """The cause for the samples of an operation in one direction; "" where it is not known."""
    return _BY_NAME.get(f"{name}, {direction}", _BY_NAME.get(name, ""))
