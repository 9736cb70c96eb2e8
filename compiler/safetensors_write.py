"""A safetensors file written piece by piece, in any order: its shapes are known before its numbers are."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from numpy.typing import NDArray

from .safetensors import WIDTHS
from .written import refused, whole

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

    _path: Path
    _stream: BinaryIO
    _tensors: Mapping[str, Layout]
    _offsets: Mapping[str, int]

    @classmethod
    @contextmanager
    def open(cls, path: Path, tensors: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Self]:
        """A writer whose file stands at `path` once the block ends without an error; rows never written are zeros.

        `metadata` is one JSON document, under the key "ossicle". The same rows give the same bytes.

        Raises:
            BuildError: the file cannot be written; `rows` raises it as well.
        """
        header, offsets, end = _header(tensors, metadata)
        with whole(path) as partial, _opened(path, partial) as stream:
            with refused(path):
                stream.write(header)
                stream.truncate(end)
            yield cls(path, stream, tensors, offsets)
            with refused(path):
                stream.flush()

    def rows(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write rows of a tensor from row `start` on, in the tensor's own dtype."""
        with refused(self._path):
            self._stream.seek(self._offsets[name] + start * self._tensors[name].row_bytes)
            self._stream.write(values.tobytes())


@contextmanager
def _opened(path: Path, partial: Path) -> Iterator[BinaryIO]:
    with refused(path):
        stream = partial.open("wb")
    try:
        yield stream
    finally:
        with suppress(OSError):  # what could not be flushed was said
            stream.close()


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
