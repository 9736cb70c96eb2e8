"""How many workers a machine is divided among, and how many threads each has."""

from dataclasses import dataclass

from ..targets import memory
from ..targets.manifest import Manifest
from .needs import need
from .plans import Stage
from .processor import usable_cores

_CONTEXT = 8192  # tokens of the longest sequence that a worker is expected to hold
STAGES: tuple[Stage, ...] = ("encoder", "decoder")
_MOST = 0.8  # of the memory that is free


@dataclass(frozen=True)
class Share:
    """So many workers, with so many threads each."""

    workers: int
    threads: int


def share(each: int, workers: int, threads: int, files: int) -> Share:
    """What is asked for; where nothing is, a worker a core, as far as memory goes and there are files for them.

    Recordings are independent, so that workers never wait for each other as threads do. What that gains on a machine is
    measured by benchmarks/corpus.py. `each` are the bytes that one worker takes.
    """
    return divide(usable_cores(), memory.available(), each, workers, threads, files)


def divide(cores: int, free: int | None, each: int, workers: int, threads: int, files: int) -> Share:
    """The same of plain numbers; `free` memory in bytes, `each` what one worker takes, None where the system does not tell."""
    if not workers:
        room = cores if free is None else int(_MOST * free // max(1, each))
        workers = max(1, min(cores // max(1, threads), room, files))
    return Share(workers, threads or max(1, cores // workers))


def memory_of(manifest: Manifest, kv_cache: str = "", widened: int = 0) -> int:
    """Bytes that one worker takes: the largest of the bundle's targets, with a long sequence in its cache.

    `kv_cache` and `widened` are as in `need`.
    """
    targets = {artifact.target for artifact in manifest.artifacts}
    needs = [
        [need(manifest, target, stage, "cpu", _CONTEXT, kv_cache, widened) for stage in STAGES] for target in targets
    ]
    return max((sum(one.total for one in stages) for stages in needs), default=0)
