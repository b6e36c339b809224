"""Operations whose kernels are not of all types on a card: fake tensors have a result for the others too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vram.simulated.kernels.call import HALF

_aten = torch.ops.aten
# As C++ names them.
NAMES = {torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "Float", torch.float64: "Double"}
NAMES |= {torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long"}
NAMES |= {torch.bool: "Bool", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble"}
_COMPLEX = (torch.complex64, torch.complex128)
_FLOATS = (*HALF, torch.float32, torch.float64, *_COMPLEX)
_CHEBYSHEV = tuple(f"chebyshev_polynomial_{kind}" for kind in "tuvw")
_BESSEL = tuple(
    f"{kind}{order}" for kind in ("bessel_j", "bessel_y", "modified_bessel_i", "modified_bessel_k") for order in "01"
)
_SPECIAL = (
    *("airy_ai", "erfcx", "log_ndtr", "ndtri", "zeta", "spherical_bessel_j0"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
    *("scaled_modified_bessel_k0", "scaled_modified_bessel_k1"),
    *(*_BESSEL, *_CHEBYSHEV, *(f"shifted_{each}" for each in _CHEBYSHEV)),
)
# Operations with the name of their kernel, and the types that it does not take.
_WITHOUT: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    **{each: (each, _FLOATS) for each in ("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "gcd", "lcm")},
    "bitwise_left_shift": ("lshift", _FLOATS),
    "bitwise_right_shift": ("rshift", _FLOATS),
    **{each: (each, (*HALF, *_COMPLEX)) for each in ("igamma", "igammac")},
    "angle": ("angle", HALF),
    "_cdist_forward": ("cdist", HALF),
    "_pdist_forward": ("pdist", HALF),
    **{f"special_{each}": (each, (*HALF, *_COMPLEX)) for each in _SPECIAL},
}


def _check(kernel: str, without: tuple[torch.dtype, ...]) -> Callable[[Any, Any], Any]:
    def check(_: Any, result: Tensor) -> Tensor:
        if result.dtype in without:
            raise NotImplementedError(f"\"{kernel}_cuda\" not implemented for '{NAMES[result.dtype]}'")  # torch's words
        return result

    return check


def _overloads(operation: str) -> Iterator[Any]:
    for packet in (getattr(_aten, f"{operation}{end}", None) for end in ("", "_")):
        if packet is not None:
            yield from (getattr(packet, each) for each in packet.overloads())


# Each gets an operation's arguments and its result.
RULES: dict[Any, Callable[[Any, Any], Any]] = {
    overload: _check(*kernel) for operation, kernel in _WITHOUT.items() for overload in _overloads(operation)
}
