"""The lock of a file, which the system lets go when the process that holds it ends, however it does."""

import errno
import sys
from collections.abc import Callable
from functools import cache
from typing import IO, Any

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that has none


def taken(stream: IO[Any]) -> bool:
    """Take the lock of an open file, until it is closed; False where another process has it."""
    try:
        _lock()(stream)
    except OSError as reason:
        return reason.errno in _NO_LOCKS
    return True


@cache
def _lock() -> Callable[[IO[Any]], None]:
    if sys.platform == "win32":
        import msvcrt

        return lambda stream: msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
    import fcntl

    return lambda stream: fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
