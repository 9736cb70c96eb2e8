"""The GGUF container, version 3: key-value metadata, then where every tensor is, then the tensors.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian throughout.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contract import BundleError, UInt8
from .gguf_blocks import BlockType, numbered

ALIGNMENT = 32
_MAGIC, _VERSION = b"GGUF", 3
_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4

# What metadata may hold: int is stored as uint32 and float as float32; lists are of int (as int32) or of str.
Value = bool | int | float | str | list[int] | list[str] | np.uint16 | np.int32


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: its shape as numpy has it, its type, and its offset in bytes behind the header."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def size(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Contents:
    """What a GGUF file says of itself. `data` is where its tensors begin, in bytes from the start of the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data: int

    def bytes_of(self, name: str) -> UInt8:
        """A tensor's stored bytes [rows, row bytes], mapped and not read."""
        info = self.tensors[name]
        return np.memmap(self.path, np.uint8, "r", self.data + info.offset, (info.rows, info.row_bytes))


def place(tensors: Sequence[tuple[str, tuple[int, ...], BlockType]]) -> tuple[TensorInfo, ...]:
    """Tensors (name, shape, type) one behind the other, each aligned."""
    placed: list[TensorInfo] = []
    end = 0
    for name, shape, kind in tensors:
        placed.append(TensorInfo(name, shape, kind, end))
        end = aligned(end + placed[-1].size)
    return tuple(placed)


def header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """All of a file that comes before its tensors, padded to where the first one begins."""
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    for info in tensors:
        dimensions = info.shape[::-1]
        parts.append(_string(info.name) + struct.pack("<I", len(dimensions)))
        parts.append(struct.pack(f"<{len(dimensions)}QIQ", *dimensions, info.type.number, info.offset))
    text = b"".join(parts)
    return text.ljust(aligned(len(text)), b"\0")


def read(path: Path) -> Contents:
    """What a GGUF file holds; of its tensors only where they are.

    Raises:
        BundleError: it is no GGUF file, or cut short, or of a version or type that is not read here.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            found = _read(path, _Reader(np.memmap(stream, np.uint8, "r") if size else b""))
    except (OSError, ValueError, struct.error) as reason:
        raise _refusal(path, str(reason)) from reason
    end = max((found.data + info.offset + info.size for info in found.tensors.values()), default=0)
    if end > size:
        raise _refusal(path, f"it is cut short: {size} bytes instead of {end}")
    return found


def aligned(offset: int, step: int = ALIGNMENT) -> int:
    """The next multiple of `step` that is not below `offset`."""
    return -(-offset // step) * step


def _refusal(path: Path, reason: str) -> BundleError:
    return BundleError(
        f"'{path}' cannot be read as GGUF: {reason}. Copy or build it again: ossicle build CHECKPOINT --target gguf"
    )


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, np.uint16 | np.int32):
        return struct.pack("<I", _UINT16 if isinstance(value, np.uint16) else _INT32) + value.tobytes()
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    texts = [item for item in value if isinstance(item, str)]
    numbers = [item for item in value if not isinstance(item, str)]
    kind = _STRING if texts else _INT32
    start = struct.pack("<IIQ", _ARRAY, kind, len(value))
    return start + b"".join(map(_string, texts)) + struct.pack(f"<{len(numbers)}i", *numbers)


class _Reader:
    """Bytes taken one field after the other."""

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data)
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise ValueError(f"it is cut short: {len(self._data)} bytes end within its header")
        self.position += count
        return bytes(self._data[self.position - count : self.position])

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def string(self) -> str:
        return self.take(self.unpack("Q")[0]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of type {kind}, which is unknown")
        item, count = self.unpack("IQ")
        if item == _ARRAY:
            raise ValueError("it has an array of arrays")
        if item in _SCALARS:
            return list(self.unpack(f"{count}{_SCALARS[item]}"))
        return [self.value(item) for _ in range(count)]


def _read(path: Path, reader: _Reader) -> Contents:
    if (magic := reader.take(4)) != _MAGIC:
        raise ValueError(f"it begins with {magic!r} and not with {_MAGIC!r}")
    version, tensors, entries = reader.unpack("IQQ")
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, and {_VERSION} is what is read")
    metadata = {}
    for _ in range(entries):
        key = reader.string()
        metadata[key] = reader.value(reader.unpack("I")[0])
    infos = [_tensor_info(reader) for _ in range(tensors)]
    step = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"its alignment is {step!r}")
    return Contents(path, metadata, {info.name: info for info in infos}, aligned(reader.position, step))


def _tensor_info(reader: _Reader) -> TensorInfo:
    name = reader.string()
    count = reader.unpack("I")[0]
    if not 1 <= count <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has {count} dimensions")
    *dimensions, number, offset = reader.unpack(f"{count}QIQ")
    kind = numbered(number)
    if kind is None:
        raise ValueError(f"tensor '{name}' is of type {number}, which is not read here")
    if dimensions[0] % kind.block:
        raise ValueError(
            f"tensor '{name}' has rows of {dimensions[0]}, no multiple of {kind.name}'s block {kind.block}"
        )
    return TensorInfo(name, tuple(dimensions[::-1]), kind, offset)
