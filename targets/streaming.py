"""Numbers streamed into data files: where every byte goes is known before the first is written.

So a file is filled in row blocks in any order, by as many threads as help, and the largest row block is all that is ever in
memory.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import CheckpointError, Progress, TensorSource
from .hub_folder import CHUNK_BYTES

BLOCK = 1 << 22  # elements of a row block
_PAGE = 4096  # so that engines can map external data
_WORKERS = 2
_CACHE_LINE = 64  # bytes
_STRIP = 512  # columns copied at a time as a matrix is turned


@dataclass(frozen=True)
class Slot:
    """Where one initializer's bytes go: which data file, at which offset."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: int
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass
class Layout:
    """The external data files of one graph, laid out as initializers are added, and the jobs that fill them."""

    slots: list[Slot] = field(default_factory=list)
    jobs: list[tuple[int, Callable[["DataFiles"], None]]] = field(default_factory=list)  # (bytes read, job)
    file_bytes: int | None = CHUNK_BYTES  # the most that one file holds; None: all is in one
    page: int = _PAGE  # what holds a page or more begins at one

    def add(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Slot:
        """A slot behind the last one, in a new file where the last one is full."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        file, end = (self.slots[-1].file, self.slots[-1].offset + self.slots[-1].size) if self.slots else (0, 0)
        step = self.page if size >= self.page else 64
        offset = -(-end // step) * step
        if offset and self.file_bytes is not None and offset + size > self.file_bytes:
            file, offset = file + 1, 0
        slot = Slot(name, kind, shape, file, offset)
        self.slots.append(slot)
        return slot

    def sizes(self) -> list[int]:
        """Bytes of each data file."""
        ends: dict[int, int] = {}
        for slot in self.slots:
            ends[slot.file] = slot.offset + slot.size
        return [ends[index] for index in sorted(ends)]


class DataFiles:
    """The data files of a layout, open for writing at any place."""

    def __init__(self, paths: list[Path], sizes: list[int]) -> None:
        self._handles = [os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644) for path in paths]
        self._cancelled = False
        for handle, size in zip(self._handles, sizes, strict=True):
            os.ftruncate(handle, size)

    def write(self, slot: Slot, position: int, values: NDArray[Any]) -> None:
        """Put contiguous `values` at byte `position` of a slot."""
        self._put(slot, position, _bytes(values, slot))

    def write_columns(self, slot: Slot, start: int, values: NDArray[Any]) -> None:
        """Put `values` [r, n] at columns `start` .. of the first r rows of a slot's matrix, a piece in each."""
        held = _bytes(values, slot)
        pitch, piece = slot.shape[1] * slot.dtype.itemsize, len(held) // len(values)
        for row in range(len(values)):
            self._put(slot, row * pitch + start * slot.dtype.itemsize, held[row * piece : (row + 1) * piece])

    def _put(self, slot: Slot, position: int, view: memoryview) -> None:
        if self._cancelled:
            raise CancelledError
        while view:
            written = os.pwrite(self._handles[slot.file], view, slot.offset + position)
            view, position = view[written:], position + written

    def cancel(self) -> None:
        """Make every further write fail, so that running jobs end early."""
        self._cancelled = True

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)


def _bytes(values: NDArray[Any], slot: Slot) -> memoryview:
    return np.ascontiguousarray(values, dtype=slot.dtype).data.cast("B")


def fill(layout: Layout, paths: list[Path], progress: Progress, step: str) -> None:
    """Write the numbers of every slot into the data files at `paths`."""
    progress.start(step, sum(size for size, _ in layout.jobs), "bytes")
    files = DataFiles(paths, layout.sizes())
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        pending = [(size, pool.submit(job, files)) for size, job in layout.jobs]
        for size, future in pending:
            future.result()
            progress.advance(size)
    except BaseException:
        files.cancel()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        files.close()


def write_floats(files: DataFiles, slot: Slot, source: TensorSource) -> None:
    """Fill a slot with a tensor's own numbers, rounded to what the slot holds.

    Raises:
        CheckpointError: a number is infinite, too large for the slot, or none.
    """
    for start, stop in row_blocks(source.shape):
        files.write(slot, start * (slot.size // source.shape[0]), _rounded(source, start, stop, slot.dtype))


def write_turned(files: DataFiles, slot: Slot, source: TensorSource) -> None:
    """Fill a slot [K, N] with a matrix [N, K], rounded to what the slot holds.

    Raises:
        CheckpointError: a number is infinite, too large for the slot, or none.
    """
    for start, stop in row_blocks(source.shape):
        files.write_columns(slot, start, turned(_rounded(source, start, stop, slot.dtype)))


def _rounded(source: TensorSource, start: int, stop: int, kind: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        values = source.rows(start, stop).astype(kind, copy=False)
    if np.isfinite(values).all():
        return values
    wider = "" if kind == np.float32 else ", or, where it is too large, build with --quant fp32"
    raise CheckpointError(
        f"tensor '{source.name}' cannot be stored as {kind.name}: rows {start} to {stop}: a weight is infinite, not a number "
        f"or too large for it. Repair the checkpoint{wider}"
    )


def turned(values: NDArray[Any]) -> NDArray[Any]:
    """A matrix transposed, its numbers in the order of its own rows.

    Copied in strips that fill whole cache lines of what is written: numpy alone takes four times as long for float32.
    """
    out = np.empty(values.shape[::-1], values.dtype)
    strip = max(1, _CACHE_LINE // values.dtype.itemsize)
    for row in range(0, values.shape[0], strip):
        for column in range(0, values.shape[1], _STRIP):
            held = np.s_[row : row + strip], np.s_[column : column + _STRIP]
            out[held[::-1]] = values[held].T
    return out


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together make a tensor, each of at most `BLOCK` elements where a single row allows."""
    rows = max(1, BLOCK // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
