"""A safetensors file written piece by piece, in any order: its shapes are known before its numbers are."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from numpy.typing import NDArray

from ..targets.contract import BuildError
from .safetensors import WIDTHS

_ALIGNMENT = 8


@dataclass(frozen=True)
class Layout:
    """A tensor to write: the file's own word for its dtype ("U8", "F16", "F32"), and its shape."""

    stored: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * WIDTHS[self.stored]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.stored]


@dataclass(frozen=True)
class Writer:
    """Puts rows of the tensors where they belong."""

    _stream: BinaryIO
    _tensors: Mapping[str, Layout]
    _offsets: Mapping[str, int]

    @classmethod
    @contextmanager
    def open(cls, path: Path, tensors: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Self]:
        """A writer whose file stands at `path` once the block ends without an error; rows never written are zeros.

        `metadata` is one JSON document, under the key "ossicle". The same rows give the same bytes.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        header, offsets, end = _header(tensors, metadata)
        try:
            with partial.open("wb") as stream:
                stream.write(header)
                stream.truncate(end)
                yield cls(stream, tensors, offsets)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def rows(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write rows of a tensor from row `start` on, in the tensor's own dtype."""
        self._stream.seek(self._offsets[name] + start * self._tensors[name].row_bytes)
        self._stream.write(values.tobytes())


def check_place(path: Path, option: str) -> None:
    """Refuse a file's place that cannot be written to, before there is anything to write; `option` is what named it.

    Raises:
        BuildError: it is a folder, or lies in one that refuses.
    """
    if path.is_dir():
        raise BuildError(f"'{path}' is a folder. Name a file in it: {option} {path / 'NAME'}")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BuildError(
            f"'{path}' cannot be written: '{parent}' is not a folder that you may write to. Give another {option}"
        )


def _header(tensors: Mapping[str, Layout], metadata: Mapping[str, Any]) -> tuple[bytes, dict[str, int], int]:
    """The file's beginning, each tensor's offset in the file, and the file's end; wide numbers first, for alignment."""
    document: dict[str, Any] = {"__metadata__": {"ossicle": json.dumps(metadata, sort_keys=True)}}
    order = sorted(tensors, key=lambda name: (-WIDTHS[tensors[name].stored], name))
    spans, end = {}, 0
    for name in order:
        one = tensors[name]
        spans[name] = (end, end + one.size)
        document[name] = {"dtype": one.stored, "shape": list(one.shape), "data_offsets": list(spans[name])}
        end += one.size
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: begin + span[0] for n, span in spans.items()}, begin + end
