"""Files that an engine maps and then copies into forms of its own: their pages need not stay in memory beside the copies."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_DONTNEED = 4  # madvise(2): a page of a file is read again when it is wanted


def let_go(path: Path) -> int:
    """Let go of the pages of a file that this process maps to read; the bytes of its mappings.

    What is still read there comes back page by page. Where the system is not Linux nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(size for start, size in _mappings(path) if advise(start, size, _DONTNEED) == 0)


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Start and size of each mapping of a file that nothing can have been written to."""
    wanted = str(path.resolve())
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        if name == [wanted] and "w" not in rights:
            start, end = (int(address, 16) for address in span.split("-"))
            yield start, end - start
