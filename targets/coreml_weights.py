"""Weights of a Core ML package: records of `weight.bin`, laid out before any is written, and what they become in a program.

A record is a header of 64 bytes with its numbers behind it; the file begins with one that counts them. Both functions of a
package name the same records. Four-bit numbers lie two to a byte, the first in the low half; of three bits they are a stream.
https://github.com/apple/coremltools/blob/main/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import groupwise, octets, palettes
from .contract import (
    CheckpointError,
    Float16,
    Float32,
    QuantizedTensor,
    TensorSource,
    WeightFormat,
    WeightStore,
)
from .coreml_mil import Blob, Block, Value
from .coreml_ops import blockwise, lookup
from .integers import padded, write_integers
from .streaming import BLOCK, DataFiles, Layout, Slot, write_floats

HEADER = 64  # bytes in front of a record, and of the file
_VERSION, _SENTINEL = 2, 0xDEADBEEF
# What a record's header calls each type, and how it is written.
_STORED: Mapping[str, tuple[int, Any]] = {
    "float16": (1, np.float16),
    "float32": (2, np.float32),
    "uint8": (3, np.uint8),
    "int8": (4, np.uint8),
    "int4": (8, np.uint8),
    "uint4": (11, np.uint8),
    "uint3": (12, np.uint8),
}
_BITS: Mapping[str, int] = {"int4": 4, "uint4": 4, "uint3": 3}  # of numbers that share bytes
_INTEGERS = "integers.3"  # the record of what three bits stand for


@dataclass
class Records:
    """The records of one `weight.bin`, each made once however many functions use it."""

    compute: str  # "float16" or "float32": the type of all floats
    layout: Layout = field(default_factory=lambda: Layout(file_bytes=None, page=HEADER))
    count: int = 0
    _made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slot = self.layout.add("storage", np.uint8, (HEADER,))
        self.layout.jobs.append((HEADER, lambda files: files.write(slot, 0, self._storage_header())))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave at the first call for this name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def place(self, name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Blob, Slot]:
        """A new record, and the place of its numbers."""
        code, stored = _STORED[dtype]
        count = int(np.prod(shape, dtype=np.int64))
        bits = _BITS.get(dtype)
        head = self.layout.add(f"{name}.header", np.uint8, (HEADER,))
        data = self.layout.add(name, stored, (-(-count * bits // 8),) if bits else shape)
        padding = -count * bits % 8 if bits else 0
        written = struct.pack("<IIQQQ32x", _SENTINEL, code, data.size, data.offset, padding)
        self.layout.jobs.append((HEADER, lambda files: files.write(head, 0, np.frombuffer(written, np.uint8))))
        self.count += 1
        return Blob(dtype, shape, head.offset), data

    def _storage_header(self) -> NDArray[np.uint8]:
        return np.frombuffer(struct.pack("<II56x", self.count, _VERSION), np.uint8)


@dataclass(frozen=True)
class Compressed:
    """The records of a matrix [N, K] that is not floats; its rows are [N, columns], the last ones of which may be padding."""

    columns: int
    data: Blob
    scale: Blob | None = None
    offset: Blob | None = None
    tables: Blob | None = None  # with a scale, one table of the integers that are scaled


def matrix(block: Block, records: Records, weights: WeightStore, name: str) -> Value:
    """A weight as the store's format has it, in floats of the records' type; matrices may have columns that only pad."""
    form = weights.format(name)
    if form.is_float:
        return floats(block, records, weights.source(name))
    if form.kind:
        held = records.once(name, lambda: _palettized(records, weights.source(name), form))
    else:
        held = records.once(name, lambda: _quantized(records, weights.quantized(name)))
    if held.tables is None:
        return blockwise(block, held.data, held.scale, held.offset, name)
    if held.scale is None:
        return lookup(block, held.data, held.tables, name)
    return blockwise(block, lookup(block, held.data, held.tables, f"{name}.integers"), held.scale, None, name)


def floats(block: Block, records: Records, source: TensorSource) -> Value:
    """A weight stored as floats."""

    def make() -> Blob:
        blob, slot = records.place(source.name, records.compute, source.shape)
        count = int(np.prod(source.shape, dtype=np.int64))
        records.layout.jobs.append((4 * count, lambda files: write_floats(files, slot, source)))
        return blob

    return block.stored(records.once(source.name, make), source.name)


def table(block: Block, records: Records, name: str, values: Float32) -> Value:
    """A table that no checkpoint holds."""

    def make() -> Blob:
        blob, slot = records.place(name, records.compute, values.shape)
        stored = values.astype(slot.dtype)
        records.layout.jobs.append((stored.nbytes, lambda files: files.write(slot, 0, stored)))
        return blob

    return block.stored(records.once(name, make), name)


def zeros(block: Block, records: Records, count: int) -> Value:
    """The bias of a product that has none."""
    return table(block, records, f"zeros.{count}", np.zeros(count, np.float32))


def _quantized(records: Records, tensor: QuantizedTensor) -> Compressed:
    """Records of codes, scales and (asymmetric) zero points; codes signed around zero where symmetric.

    No integer of three bits is among MIL's, but indices are: of a table of the eight integers that are scaled.
    """
    form, rows = tensor.format, tensor.shape[0]
    width = padded(tensor)
    groups = width // form.group
    dtype = f"{'' if form.symmetric and form.bits > 3 else 'u'}int{form.bits}"
    parts = [
        records.place(f"{tensor.name}.codes", dtype, (rows, width)),
        records.place(f"{tensor.name}.scales", "float16", (rows, groups)),
    ]
    if not form.symmetric:
        parts.append(records.place(f"{tensor.name}.zero_points", dtype, (rows, groups)))
    blobs, slots = zip(*parts, strict=True)
    records.layout.jobs.append(
        (4 * rows * tensor.shape[1], lambda files: write_integers(files, tensor, slots, octets.pack_stream))
    )
    tables = _integers(records) if form.bits == 3 else None
    return Compressed(width, blobs[0], blobs[1], None if form.symmetric else blobs[2], tables)


def _integers(records: Records) -> Blob:
    """The table that three bits are looked up in: -4 .. 3."""

    def make() -> Blob:
        blob, slot = records.place(_INTEGERS, "float16", (1, 1, 8, 1))
        values = np.arange(-4, 4, dtype=np.float16)
        records.layout.jobs.append((values.nbytes, lambda files: files.write(slot, 0, values)))
        return blob

    made: Blob = records.once(_INTEGERS, make)
    return made


def _palettized(records: Records, source: TensorSource, form: WeightFormat) -> Compressed:
    """Records of indices and of tables, one for every few rows."""
    rows, width = source.shape
    height = palettes.height(rows)
    data, indices = records.place(f"{source.name}.indices", f"uint{form.bits}", (rows, width))
    shape = (rows // height, 1, 2**form.bits, 1)
    tables, levels = records.place(f"{source.name}.tables", "float16", shape)
    records.layout.jobs.append(
        (4 * rows * width, lambda files: _write_palettes(files, source, height, (indices, levels)))
    )
    return Compressed(width, data, tables=tables)


def _write_palettes(files: DataFiles, source: TensorSource, height: int, slots: tuple[Slot, Slot]) -> None:
    (rows, width), (indices, levels) = source.shape, slots
    whole = 8 * height  # rows whose indices end with a byte
    step = whole * max(1, BLOCK // (whole * width))
    bits = levels.shape[2].bit_length() - 1
    for start in range(0, rows, step):
        values = np.ascontiguousarray(source.rows(start, min(start + step, rows)))
        tables, codes = _fit(source.name, values, height, levels.shape[2])
        files.write(indices, start * width * bits // 8, _packed(codes.reshape(1, -1), bits))
        files.write(levels, start // height * tables.shape[1] * 2, tables)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """A row of codes of four or three bits, its last byte filled up with nought."""
    if bits == 4:
        return groupwise.pack_pairs(codes)
    count = codes.shape[1]
    return octets.pack_stream(groupwise.pad_columns(codes, count + -count % 8, 0))[:, : -(-count * bits // 8)]


def _fit(name: str, values: Float32, height: int, levels: int) -> tuple[Float16, NDArray[np.uint8]]:
    try:
        return palettes.fit(values, height, levels)
    except ValueError as reason:
        raise CheckpointError(
            f"tensor '{name}' cannot be stored in palettes: {reason}. Repair the checkpoint, or build with --quant fp32"
        ) from reason
