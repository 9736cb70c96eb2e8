"""Tensors of safetensors files, read row by row.

Format: https://huggingface.co/docs/safetensors - a length of 8 bytes, a JSON header, then the numbers without holes.
Files are read and not mapped: the pages of a mapping count as this process's memory, and a build's peak is to be
bounded by the rows it asks for.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import CheckpointError, Float32

WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_READ_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_RAW = {"U8": "u1", "F16": "<f2", "F32": "<f4"}
_LONGEST_HEADER = 100_000_000  # bytes, the reference implementation's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor where it lies in a file: a `TensorSource` once `refusal` is None."""

    name: str
    shape: tuple[int, ...]
    stored: str  # the file's own word for the dtype, such as "BF16"
    path: Path
    offset: int  # bytes from the start of the file

    @property
    def dtype(self) -> str:
        return _FLOATS.get(self.stored, self.stored)

    @property
    def refusal(self) -> str | None:
        """Why its numbers cannot be used; None where they can."""
        if self.stored in _FLOATS:
            return None
        return f"'{self.name}' in '{self.path}' is stored as {self.stored} (possible: {', '.join(_FLOATS)})"

    def rows(self, start: int, stop: int) -> Float32:
        """Elements [start:stop] along the first axis, float32.

        Raises:
            CheckpointError: the file has changed or cannot be read any more.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of '{self.name}', which has {self.shape[0]}")
        width = math.prod(self.shape[1:])
        return self.span(start * width, stop * width).reshape(stop - start, *self.shape[1:])

    def span(self, start: int, stop: int) -> Float32:
        """Elements [start:stop] of the flattened tensor, float32."""
        if self.refusal:
            raise CheckpointError(self.refusal + ". Convert the checkpoint to bfloat16 first")
        width = WIDTHS[self.stored]
        numbers = _read(self.path, self.offset + start * width, stop - start, _READ_AS[self.stored])
        if self.stored == "BF16":  # the upper half of a float32
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32, copy=False)

    def raw_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] along the first axis as they are stored: uint8, float16 or float32."""
        width = math.prod(self.shape[1:])
        offset = self.offset + start * width * WIDTHS[self.stored]
        return _read(self.path, offset, (stop - start) * width, _RAW[self.stored]).reshape(-1, *self.shape[1:])


def read_metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself beside its tensors; nothing where it is no such file, or says nothing."""
    try:
        length = int.from_bytes(_read(path, 0, 8).tobytes(), "little")
        found = _json(_read(path, 8, min(length, _LONGEST_HEADER)).tobytes()).get("__metadata__", {})
    except (CheckpointError, _FormatError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name, after checking that the file holds exactly what its header says.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    try:
        return _tensors(path)
    except OSError as reason:
        raise CheckpointError(f"'{path}' cannot be read: {reason.strerror or reason}") from reason
    except _FormatError as reason:
        raise CheckpointError(
            f"'{path}' is not a whole safetensors file: {reason}. Download or copy it again"
        ) from reason


class _FormatError(ValueError):
    """What is wrong with a file, the file's name apart."""


def _tensors(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    if size < 8:
        raise _FormatError(f"it has {size} bytes")
    length = int.from_bytes(_read(path, 0, 8).tobytes(), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise _FormatError(f"its header would be {length} bytes long, the file has {size}")
    header = _json(_read(path, 8, length).tobytes())
    header.pop("__metadata__", None)
    spans = {name: _checked(name, entry) for name, entry in header.items()}
    _check_coverage(spans, size - 8 - length)
    return {
        name: StoredTensor(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + spans[name][0])
        for name, entry in header.items()
    }


def _json(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
    except _FormatError:
        raise
    except (ValueError, RecursionError) as reason:
        raise _FormatError(f"its header is not JSON ({reason})") from reason
    if not isinstance(header, dict):
        raise _FormatError("its header is not a JSON object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _FormatError(f"its header names '{next(name for name in names if names.count(name) > 1)}' twice")
    return found


def _checked(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, in bytes after the header."""
    if not isinstance(entry, Mapping):
        raise _FormatError(f"its header does not describe '{name}'")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise _FormatError(f"'{name}' has the unknown dtype {dtype!r:.40}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _FormatError(f"'{name}' has no proper shape and offsets")
    needed = math.prod(shape) * WIDTHS[dtype]
    if offsets[1] - offsets[0] != needed:
        raise _FormatError(f"'{name}' takes {offsets[1] - offsets[0]} bytes where {dtype} {shape!r:.60} takes {needed}")
    return offsets[0], offsets[1]


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_coverage(spans: Mapping[str, tuple[int, int]], size: int) -> None:
    end = 0
    for (start, stop), name in sorted((span, name) for name, span in spans.items()):
        if start != end:
            raise _FormatError(f"'{name}' begins at byte {start} of the numbers instead of {end}")
        end = stop
    if end != size:
        raise _FormatError(f"it has {size} bytes of numbers instead of {end}")


def _read(path: Path, offset: int, count: int, dtype: str = "u1") -> NDArray[Any]:
    """`count` numbers from byte `offset`; fewer is an error, since a header promised them."""
    try:
        numbers = np.fromfile(path, dtype, count, offset=offset)
    except OSError as reason:
        raise CheckpointError(f"'{path}' cannot be read: {reason.strerror or reason}") from reason
    if numbers.size < count:
        raise CheckpointError(f"'{path}' has lost its end: it changed while it was read")
    return numbers


def read_shards(folder: Path, stem: str) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Every tensor of `stem.safetensors`, or of `stem-00001-of-0000N.safetensors` and so on; and the files read.

    Shards are found by their index, or without one by their numbers, which say how many there have to be.

    Raises:
        CheckpointError: listing every missing shard, and every tensor that is not where the index says or is there twice.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file():
        return _indexed(folder, index)
    if single.is_file():
        return read_header(single), (single,)
    files = _numbered(folder, stem)
    return _joined([read_header(path) for path in files]), files


def _indexed(folder: Path, index: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    places = _weight_map(index)
    files = tuple(folder / name for name in sorted(set(places.values())))
    _check_present(folder, [path.name for path in files])
    tensors = _joined([read_header(path) for path in files])
    faults = [f"'{name}' is not in '{place}'" for name, place in places.items() if _place(tensors, name) != place]
    faults += [f"'{name}' in '{_place(tensors, name)}' is not in the index" for name in tensors.keys() - places.keys()]
    if faults:
        raise CheckpointError(
            f"'{index}' and its shards disagree: {'; '.join(sorted(faults))}. Copy the checkpoint again, or remove the "
            "index: shards numbered model-00001-of-0000N are read without one"
        )
    return tensors, (index, *files)


def _place(tensors: Mapping[str, StoredTensor], name: str) -> str | None:
    return tensors[name].path.name if name in tensors else None


def _weight_map(index: Path) -> dict[str, str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if places and all(type(place) is str and Path(place).name == place for place in places.values()):
            return dict(places)
        reason: object = "its weight_map is not one of tensors to files of its own folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
    raise CheckpointError(f"'{index}' is not a safetensors index: {reason}. Copy it again")


def _numbered(folder: Path, stem: str) -> tuple[Path, ...]:
    found = {
        path.name: int(match[1])
        for path in folder.glob(f"{stem}-*.safetensors")
        if (match := re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.safetensors", path.name))
    }
    counts = sorted(set(found.values()))
    if len(counts) != 1:
        raise CheckpointError(
            f"'{folder}' has no {stem}.safetensors, no index, and no one set of numbered shards "
            f"(found: {', '.join(sorted(path.name for path in folder.glob('*.safetensors'))) or 'none'})"
        )
    names = [f"{stem}-{number:05}-of-{counts[0]:05}.safetensors" for number in range(1, counts[0] + 1)]
    _check_present(folder, names)
    return tuple(folder / name for name in names)


def _check_present(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"'{folder}' lacks {', '.join(missing)}. Copy or download the checkpoint again")


def _joined(shards: list[dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    twice = []
    for shard in shards:
        twice += [f"'{name}' ('{shard[name].path.name}')" for name in shard.keys() & tensors.keys()]
        tensors |= shard
    if twice:
        raise CheckpointError(f"shards of one checkpoint hold the same tensors: {', '.join(sorted(twice))}")
    return tensors
