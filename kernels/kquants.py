"""GGUF's blocks: a matrix [N, K] as the bytes of Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, and of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

The bytes are those of `ggml_quantize_chunk`, with and without an importance matrix, because every sum runs in ggml's order,
in float32, one value of a block after the other. What runs side by side is blocks: 32 of them stand transposed in one tile,
so that the lanes of a vector hold the same position of neighbouring blocks. Compiled with numba on first use; the GIL is
released, so rows can be shared out among threads.

Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import RLock
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kquants_plain, kquants_super, kquants_two
from .kquants_read import FORMS
from .kquants_tile import largest

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """A block of `columns` neighbours in a row as `size` bytes, of which the float16 numbers stand at `halves`."""

    columns: int
    size: int
    bits: int
    halves: tuple[int, ...]


LAYOUTS = {
    "Q4_0": Layout(32, 18, 4, (0,)),
    "Q4_1": Layout(32, 20, 4, (0, 2)),
    "Q5_0": Layout(32, 22, 5, (0,)),
    "Q5_1": Layout(32, 24, 5, (0, 2)),
    "Q8_0": Layout(32, 34, 8, (0,)),
    "Q2_K": Layout(256, 84, 2, (80, 82)),
    "Q3_K": Layout(256, 110, 3, (108,)),
    "Q4_K": Layout(256, 144, 4, (0, 2)),
    "Q5_K": Layout(256, 176, 5, (0, 2)),
    "Q6_K": Layout(256, 210, 6, (208,)),
}

_INFINITE = 0x7F800000  # the bits of a float32 from which on it is no number
_TOO_LARGE = np.float32(2.0**28)  # more than a float16 times the largest scale and level of any format


def quantize(weights: Float32, name: str, importance: Float32 | None = None) -> UInt8:
    """The bytes [N, K / columns * size] of float32 weights [N, K] in the format `name` of `LAYOUTS`.

    `importance` is the mean squared activation of each column [K], or none; Q8_0 has no use for it.

    Raises:
        ValueError: no such format, K is no multiple of its block, a number is not finite, or too large for float16 scales.
    """
    layout = _checked(weights, name, importance)
    rows, columns = weights.shape
    out = np.zeros((rows, row_bytes(name, columns)), np.uint8)
    if out.size == 0:
        return out
    values = np.ascontiguousarray(weights, np.float32).reshape(-1)
    given = np.zeros(0, np.float32) if importance is None else np.ascontiguousarray(importance, np.float32)
    kind = _kind(name, importance is not None)
    with _LOCK:
        most, kernel = _compiled(largest), _compiled(_KERNELS[kind])
    _refuse_large(most(values.view(np.int32)), name)
    kernel(values, layout.bits, out.reshape(-1), *(() if kind.startswith("plain") else (given, columns)))
    _refuse_infinite_scales(out, layout, name)
    return out


def dequantize(data: UInt8, name: str) -> Float32:
    """The float32 numbers [N, K] that bytes [N, K / columns * size] in the format `name` stand for, as ggml reads them.

    Raises:
        ValueError: no such format, or a row is no whole number of blocks.
    """
    size = _layout(name).size
    if data.ndim != 2 or data.shape[1] % size:
        raise ValueError(f"{name} needs rows of a multiple of {size} bytes, not the shape {data.shape}")
    blocks = np.ascontiguousarray(data).reshape(-1, size)
    return FORMS[name].numbers(blocks).reshape(len(data), data.shape[1] // size * _layout(name).columns)


def row_bytes(name: str, columns: int) -> int:
    """The bytes of a row of so many columns in the format `name`.

    Raises:
        ValueError: no such format.
    """
    layout = _layout(name)
    return columns // layout.columns * layout.size


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"no block format {name!r} (there are: {', '.join(LAYOUTS)})")
    return LAYOUTS[name]


def _checked(weights: Float32, name: str, importance: Float32 | None) -> Layout:
    layout = _layout(name)
    if weights.ndim != 2 or weights.shape[1] % layout.columns:
        raise ValueError(f"{name} needs rows of a multiple of {layout.columns} columns, not the shape {weights.shape}")
    if importance is not None:
        if importance.shape != weights.shape[1:]:
            raise ValueError(f"an importance for each of {weights.shape[1]} columns, not the shape {importance.shape}")
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise ValueError("an importance is negative, infinite or not a number")
    return layout


def _refuse_large(bits: int, name: str) -> None:
    """Refuse weights of which the largest magnitude, as the bits of a float32, is too large."""
    if bits >= _INFINITE:
        raise ValueError("a weight is infinite or not a number")
    if np.int32(bits).view(np.float32) > _TOO_LARGE:
        raise ValueError(f"a weight or an importance is too large for the float16 scales of {name}")


def _refuse_infinite_scales(out: UInt8, layout: Layout, name: str) -> None:
    blocks = out.reshape(-1, layout.size)
    for start in layout.halves:
        halves = np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)
        if not np.isfinite(halves).all():
            raise ValueError(f"a weight or an importance is too large for the float16 scales of {name}")


def _kind(name: str, important: bool) -> str:
    """The kernel for a format."""
    if name == "Q2_K":
        return "two"
    if name.endswith("_K"):
        return "affine" if name in ("Q4_K", "Q5_K") else "symmetric"
    if name == "Q8_0" or not important:
        return "plain_affine" if name.endswith("_1") else "plain"
    return "weighted_affine" if name.endswith("_1") else "weighted"


_LOCK = RLock()


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel as machine code. What it calls is found by global names of its module, and compiled before it.

    On disk, code goes stale with the module that its function stands in, not with those it calls into: whoever changes one of
    the `kquants_*` modules removes `kernels/__pycache__`.
    """
    import numba

    names = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    for name, helper in names.items():
        if isinstance(helper, FunctionType) and str(helper.__module__).startswith(__name__):
            function.__globals__[name] = _compiled(helper)
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return compiled


_KERNELS: dict[str, Callable[..., Any]] = {
    "affine": kquants_super.quantize_affine,
    "symmetric": kquants_super.quantize_symmetric,
    "two": kquants_two.quantize_two,
    "plain": kquants_plain.quantize_plain,
    "plain_affine": kquants_plain.quantize_plain_affine,
    "weighted": kquants_plain.quantize_weighted,
    "weighted_affine": kquants_plain.quantize_weighted_affine,
}
