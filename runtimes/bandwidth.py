"""How fast this machine's memory is read, measured with numpy alone."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..targets import memory
from .processor import Processor

LEAST, MOST = 1 << 28, 1 << 29  # bytes that are read in a pass
PASSES = 9
SECONDS = 0.25  # after which no further pass begins


def read_bandwidth(processor: Processor) -> float | None:
    """Bytes a second that all usable cores together read from memory; None where too little memory is free to tell.

    Every core takes the largest number of its own part of an int32 array, over and over; the fastest pass counts. The array
    is at least four times the last cache, so that little of a pass comes from there. It takes about half a second.
    """
    size = _size(processor)
    if size is None:
        return None
    part = size // processor.cores // 4
    with ThreadPoolExecutor(processor.cores) as threads:
        # written by the threads that read them: memory lies near the core that wrote it first
        parts = list(threads.map(lambda _: np.ones(part, np.int32), range(processor.cores)))
        return sum(each.nbytes for each in parts) / min(_passes(threads, parts))


def _size(processor: Processor) -> int | None:
    """Bytes to read in a pass: at most a quarter of what is free, and no fewer than what tells memory from caches."""
    last = max(processor.caches.values(), default=LEAST)
    wanted = min(max(4 * last, LEAST), MOST)
    free = memory.available()
    return None if free is not None and free // 4 < wanted else wanted


def _passes(threads: ThreadPoolExecutor, parts: list[NDArray[np.int32]]) -> list[float]:
    """Seconds that each pass took."""
    ends = [perf_counter()]
    while len(ends) <= PASSES and ends[-1] - ends[0] < SECONDS:
        list(threads.map(np.max, parts))
        ends.append(perf_counter())
    return [end - begin for begin, end in pairwise(ends)]
