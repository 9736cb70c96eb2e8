"""ggml's tensor types: rows of numbers as the bytes that GGUF stores, and back.

Blocks of 32 neighbours share a float16 scale d (and a float16 minimum m): Q4_0 is (code - 8) d, Q4_1 is code d + m, Q8_0 is
an int8 times d. The shared integers go into these three as they are; what has a block format of its own is quantized by
kernels/kquants.py. Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import groupwise, kquants
from . import gguf_mixes
from .contract import Float32, QuantizedRows, UInt8, WeightFormat

BLOCK = 32


@dataclass(frozen=True)
class BlockType:
    """A tensor type: its number in a file, and how many bytes a block of so many neighbours takes."""

    name: str
    number: int
    block: int
    size: int  # bytes
    file_type: int  # general.file_type of a file that mostly holds it

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.size


def _blocks(name: str, number: int, file_type: int) -> BlockType:
    layout = kquants.LAYOUTS[name]
    return BlockType(name, number, layout.columns, layout.size, file_type)


F32 = BlockType("F32", 0, 1, 4, 0)
F16 = BlockType("F16", 1, 1, 2, 1)
Q4_0 = _blocks("Q4_0", 2, 2)
Q4_1 = _blocks("Q4_1", 3, 3)
Q5_0 = _blocks("Q5_0", 6, 8)
Q5_1 = _blocks("Q5_1", 7, 9)
Q8_0 = _blocks("Q8_0", 8, 7)
Q2_K = _blocks("Q2_K", 10, 10)
Q3_K = _blocks("Q3_K", 11, 12)
Q4_K = _blocks("Q4_K", 12, 15)
Q5_K = _blocks("Q5_K", 13, 17)
Q6_K = _blocks("Q6_K", 14, 18)
BF16 = BlockType("BF16", 30, 1, 2, 32)

TYPES = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)
_BY_NUMBER = {kind.number: kind for kind in TYPES}
_BY_FORMAT = {
    WeightFormat(32): F32,
    WeightFormat(16): F16,
    gguf_mixes.BFLOAT16: BF16,
    WeightFormat(8, BLOCK): Q8_0,
    WeightFormat(4, BLOCK): Q4_0,
    WeightFormat(4, BLOCK, symmetric=False): Q4_1,
    gguf_mixes.Q4_0: Q4_0,
    gguf_mixes.Q5_0: Q5_0,
    gguf_mixes.Q5_1: Q5_1,
    gguf_mixes.Q8_0: Q8_0,
    gguf_mixes.Q2_K: Q2_K,
    gguf_mixes.Q3_K: Q3_K,
    gguf_mixes.Q4_K: Q4_K,
    gguf_mixes.Q5_K: Q5_K,
    gguf_mixes.Q6_K: Q6_K,
}
# What a user may ask for, as messages say it.
POSSIBLE = ", ".join(form.name for form in _BY_FORMAT)


def numbered(number: int) -> BlockType | None:
    """The type that a file calls by this number; None where it is not one of these."""
    return _BY_NUMBER.get(number)


def holding(form: WeightFormat) -> BlockType | None:
    """The type that holds the numbers of a format; None where there is none."""
    return _BY_FORMAT.get(form)


def pack_floats(values: Float32, kind: BlockType) -> UInt8:
    """Bytes [rows, row bytes] of floats [rows, columns] as F32, or as F16 or BF16 rounded to nearest, halves to even.

    Raises:
        ValueError: a number is too large for float16 or bfloat16, or none.
    """
    if kind is F32:
        if not np.isfinite(values).all():
            raise ValueError("a weight is infinite or not a number")
        return _as_bytes(np.ascontiguousarray(values, np.float32))
    if kind is BF16:
        return _as_bytes(brain_floats(values))
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("a weight is infinite, not a number or too large for float16")
    return _as_bytes(halves)


def brain_floats(values: Float32) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each number, halves to even.

    Raises:
        ValueError: a number is infinite, too large for bfloat16, or none.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16).astype(np.uint16)
    if not np.isfinite(values).all() or (rounded & np.uint16(0x7F80) == 0x7F80).any():
        raise ValueError("a weight is infinite, not a number or too large for bfloat16")
    return rounded


def pack_codes(rows: QuantizedRows, kind: BlockType) -> UInt8:
    """Bytes [rows, row bytes] of quantized rows whose columns fill whole blocks."""
    codes = rows.codes.reshape(len(rows.codes), -1, BLOCK)
    scales = rows.scales
    if kind is Q8_0:
        # ggml has no scale for a block of zeros; the codes say the same with any
        scales = np.where((codes == 128).all(-1), np.float16(0), scales)
        return _joined(scales, (codes - np.uint8(128)).view(np.int8))
    packed = codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << np.uint8(4))
    if rows.zero_points is None:
        return _joined(scales, packed)
    return _joined(scales, _minimum(rows), packed)


def unpack(data: UInt8, kind: BlockType) -> Float32:
    """The numbers [rows, columns] that bytes [rows, row bytes] stand for, float32."""
    if kind.block == 1:
        return _unpack_floats(np.ascontiguousarray(data), kind)
    return kquants.dequantize(data, kind.name)


def spelled_out(rows: QuantizedRows, form: WeightFormat) -> Float32:
    """The numbers [rows, columns] that quantized rows stand for; float32 holds each of them exactly."""
    return groupwise.dequantize(rows.codes, rows.scales, rows.zero_points, form.bits, form.group)


def _minimum(rows: QuantizedRows) -> NDArray[np.float16]:
    """What a block's code 0 stands for, rounded to float16."""
    assert rows.zero_points is not None
    return (-rows.zero_points.astype(np.float32) * rows.scales.astype(np.float32)).astype(np.float16)


def _unpack_floats(data: UInt8, kind: BlockType) -> Float32:
    if kind is BF16:
        return np.asarray((data.view("<u2").astype(np.uint32) << 16).view(np.float32), np.float32)
    return np.asarray(data.view("<f4" if kind is F32 else "<f2"), np.float32)


def _joined(*fields: NDArray[Any]) -> UInt8:
    """Fields [rows, blocks] or [rows, blocks, n] side by side in every block, as bytes [rows, row bytes]."""
    parts = [np.ascontiguousarray(field).view(np.uint8).reshape(*field.shape[:2], -1) for field in fields]
    return np.concatenate(parts, axis=-1).reshape(len(fields[0]), -1)


def _as_bytes(values: NDArray[Any]) -> UInt8:
    return values.view(np.uint8).reshape(len(values), -1)
