"""Workers of a corpus run as actors of Ray: on this machine, or on every machine of a cluster.

An actor is a `Worker`, as a process of `corpus_workers.py` is. Bundle and recordings are read where the actor runs, by the
same paths. Results come back to the run, which alone writes.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..targets.contract import CorpusError, EngineError
from .corpus import Item
from .corpus_pool import Died, Helper
from .corpus_shares import Share
from .corpus_worker import Worker

# A Ray of one's own: what passes through its store, in bytes, is text.
_OWN: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 << 20, "_node_ip_address": "127.0.0.1"}
_PATIENCE = 600.0  # seconds that an actor has for being placed and opening its bundle


@contextmanager
def helpers(
    opening: Callable[[int], dict[str, Any]], workers: int, threads: int, gpus: float, address: str | None, files: int
) -> Iterator[tuple[Callable[[], Helper], Share]]:
    """What makes actors, and how many there are to be: as asked, else as many as Ray has room for.

    Raises:
        CorpusError: Ray cannot be reached, or has no room for so many.
        EngineError: Ray is not installed.
    """
    with connected(address) as ray:
        part = room(ray.cluster_resources(), workers, threads, gpus, files)
        told = opening(part.threads)
        if address:  # another machine may have another copy of the bundle
            told["loading"]["check"] = True
        yield partial(ActorHelper, ray, told, part.threads, gpus), part


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one of its own on this machine that nobody else can reach.

    Where the process is connected already it is left as it is.

    Raises:
        CorpusError: it does not answer, or does not start.
        EngineError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError("executor 'ray' needs ray. Install it with: pip install 'ossicle[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    own = {} if address else _OWN
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, OSError, ValueError) as reason:
        where = f"at '{address}' cannot be reached" if address else "cannot be started here"
        raise CorpusError(f"Ray {where}: {_first_line(reason)}. Without it: --executor processes") from reason
    try:
        yield ray
    finally:
        ray.shutdown()


def room(resources: Mapping[str, float], workers: int, threads: int, gpus: float, files: int) -> Share:
    """How many actors, of how many threads each, a cluster's CPUs and GPUs have room for.

    Raises:
        CorpusError: fewer than are asked for.
    """
    cpus, devices = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    threads = threads or (max(1, int(cpus // workers)) if workers else 1)
    most = int(min(cpus // threads, devices // gpus if gpus else cpus))
    if max(1, workers) > most:
        raise CorpusError(
            f"Ray has room for {most} workers of {threads} CPUs and {gpus:g} GPUs, and {max(1, workers)} are asked for "
            f"(it has: {cpus:g} CPUs, {devices:g} GPUs). Ask for fewer: --workers, --threads, --gpus"
        )
    return Share(workers or min(most, max(1, files)), threads)


class ActorHelper:
    """A worker as an actor, which has its CPUs and GPUs to itself."""

    def __init__(self, ray: Any, opening: Mapping[str, Any], cpus: int, gpus: float) -> None:
        self._ray = ray
        self._opening = opening
        self._kind = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self._actor: Any = None

    def open(self) -> dict[str, Any]:
        """Place an actor and have it open the bundle.

        Raises:
            Died: it died.
            EngineError: there was no place for it.
        """
        self._actor = self._kind.remote()
        return self._ask(self._actor.open.remote(**self._opening), _PATIENCE)

    def transcribe(self, item: Item) -> dict[str, Any]:
        """What the actor answers on a recording.

        Raises:
            Died: it died.
        """
        if self._actor is None:
            raise Died("the worker was ended")
        return self._ask(self._actor.transcribe.remote(item.audio, item.language))

    def close(self) -> None:
        """End the actor: between recordings it holds nothing."""
        self.kill()

    def kill(self) -> None:
        """End the actor at once, for good."""
        self.interrupt()

    def interrupt(self) -> None:
        """End the actor at once."""
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)

    def _ask(self, answer: Any, patience: float | None = None) -> dict[str, Any]:
        errors = self._ray.exceptions
        try:
            found: dict[str, Any] = self._ray.get(answer, timeout=patience)
        except errors.GetTimeoutError as reason:
            self.kill()
            raise EngineError(
                f"Ray found no place for a worker in {patience:.0f} s. Ask for fewer: --workers"
            ) from reason
        except errors.RayError as reason:
            self.kill()
            raise Died(f"the worker ended in the middle of it: {_first_line(reason)}") from reason
        return found


def _first_line(reason: Exception) -> str:
    return str(reason).strip().splitlines()[0]
