"""This machine as a device to plan for, by what it is measured to do."""

from collections.abc import Iterator
from time import perf_counter, sleep

import numpy as np

from ..targets.contract import OssicleError
from ..targets.devices import Device

SIZE = 1024  # rows and columns of the matrices that are multiplied
SECONDS = 0.5  # after which no further product begins
TIMES, PAUSE = 4, 0.5  # measurements of memory, and seconds between them: a virtual machine's neighbours come and go


def here() -> Device:
    """The CPU of this machine: its free memory, the bandwidth and the arithmetic that it reaches now.

    Raises:
        OssicleError: too little memory is free to measure with.
    """
    import ossicle

    facts = ossicle.doctor(measure=True)
    if facts.bandwidth is None or facts.memory_available is None:
        raise OssicleError(
            "device 'here' cannot be measured: too little memory is free, or the system does not say how much"
        )
    usable = tuple(one.target for one in facts.runtimes if one.reason is None and one.proof == "executed")
    return Device(
        name="here",
        title=f"this machine: {facts.processor.name}, {facts.processor.cores} cores",
        kind="here",
        memory=facts.memory_available,
        bandwidth=max(facts.bandwidth, *_bandwidths()),
        operations=_operations(),
        targets=tuple(dict.fromkeys(usable)),
    )


def _bandwidths() -> Iterator[float]:
    import ossicle

    for _ in range(TIMES - 1):
        sleep(PAUSE)
        yield ossicle.doctor(measure=True).bandwidth or 0.0


def _operations() -> float:
    """Operations a second of float32 products on all cores, as numpy's library makes them; the fastest counts."""
    matrix = np.full((SIZE, SIZE), 0.5, np.float32)
    fastest, started = float("inf"), perf_counter()
    while perf_counter() - started < SECONDS:
        begun = perf_counter()
        np.matmul(matrix, matrix)
        fastest = min(fastest, perf_counter() - begun)
    return 2 * SIZE**3 / fastest
