"""Eight-bit floats: a matrix [N, K] as float8 e4m3 codes with one positive float16 scale for every row.

E4M3 without infinities: four bits of exponent, three of mantissa, up to 448 (https://arxiv.org/abs/2209.05433). A scale is
rounded to float16 before codes are chosen, so that what is stored means the same wherever it is read.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]

LARGEST = 448.0
_SMALLEST = np.float16(2.0**-24)  # the least positive float16: a scale is never zero


def quantize(weights: Float32) -> tuple[UInt8, Float16]:
    """Codes [N, K], the bits of e4m3 numbers, and scales [N] of float32 weights [N, K]; halves round to even.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    largest = np.abs(weights).max(axis=1, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError("a weight is infinite or not a number")
    if largest.max(initial=0) > LARGEST * float(np.finfo(np.float16).max):
        raise ValueError(f"the weight {float(largest.max()):g} is too large for a float16 scale")
    scales = np.maximum((largest / np.float32(LARGEST)).astype(np.float16), _SMALLEST)
    values = np.clip(weights / scales.astype(np.float32)[:, None], -LARGEST, LARGEST)
    return values.astype(_e4m3()).view(np.uint8), scales


def dequantize(codes: UInt8, scales: Float16) -> Float32:
    """The float32 weights [N, K] that codes [N, K] and scales [N] stand for."""
    values: Float32 = codes.view(_e4m3()).astype(np.float32) * scales.astype(np.float32)[:, None]
    return values


def _e4m3() -> np.dtype[Any]:
    import ml_dtypes

    kind: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
    return kind
