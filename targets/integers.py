"""Groupwise integers as several formats store them: rows of whole groups, counted around zero where they are symmetric."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..kernels import groupwise
from .contract import QuantizedRows, QuantizedTensor, WeightFormat
from .streaming import DataFiles, Slot

Packing = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def padded(tensor: QuantizedTensor) -> int:
    """Columns of a quantized matrix with its last group made whole."""
    group = tensor.format.group
    return -(-tensor.shape[1] // group) * group


def write_integers(
    files: DataFiles, tensor: QuantizedTensor, slots: Sequence[Slot], three_bits: Packing | None = None
) -> None:
    """Fill the slots of a tensor's codes, its scales and (asymmetric) its zero points.

    Three bits go as they are, 0 .. 7, in the order that a format has for them.
    """
    rows, points = tensor.shape[0], []
    pack = three_bits if three_bits and tensor.format.bits == 3 else None
    for block in tensor.blocks():
        files.write(slots[0], block.start * (slots[0].size // rows), _packed_codes(block, tensor, pack))
        files.write(slots[1], block.start * (slots[1].size // rows), block.scales)
        points += [] if block.zero_points is None else [block.zero_points]
    if points:  # of an odd number of groups, a row of nibbles ends within a byte
        files.write(slots[2], 0, _packed(np.concatenate(points).reshape(1, -1), tensor.format))


def _packed_codes(block: QuantizedRows, tensor: QuantizedTensor, pack: Packing | None) -> NDArray[np.uint8]:
    """Rows of whole groups; unless `pack` puts them together, two's complement around zero where the format is symmetric."""
    form = tensor.format
    middle = 1 << (form.bits - 1)
    codes = groupwise.pad_columns(block.codes, padded(tensor), middle)
    if pack:
        return pack(codes)
    return _packed(codes ^ np.uint8(middle) if form.symmetric else codes, form)


def _packed(codes: NDArray[np.uint8], form: WeightFormat) -> NDArray[np.uint8]:
    return groupwise.pack_pairs(codes) if form.bits == 4 else codes
