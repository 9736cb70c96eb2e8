"""Who does the work of a sweep: each job in a process of its own, several side by side, here or over Ray.

A job that dies takes no other with it. Jobs end when the sweep that started them does, killed or not.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets.contract import SweepError

ORIGINAL = ":original"  # the job that reads the original; any other is a recipe's
EXECUTORS = ("processes", "ray")


@dataclass(frozen=True)
class Crew:
    """How many jobs run side by side, and where; `address` is that of a cluster of Ray."""

    executor: str = "processes"
    workers: int = 1
    address: str | None = None

    def check(self) -> None:
        """Refuse an executor that there is none of, and an address that nothing is sent to.

        Raises:
            SweepError: naming those that there are.
        """
        if self.address and self.executor != "ray":
            raise SweepError(f"--address '{self.address}' is of a cluster of Ray. Use it with: --executor ray")
        if self.executor not in EXECUTORS:
            raise SweepError(f"executor '{self.executor}' is unknown (there are: {', '.join(EXECUTORS)})")


def finished(out: Path, jobs: Sequence[str], crew: Crew) -> Iterator[tuple[str, str | None]]:
    """Each job as it ends, with the reason where it failed."""
    threads = max(1, (os.cpu_count() or 1) // crew.workers)
    yield from (_over_ray if crew.executor == "ray" else _here)(out, jobs, crew, threads)


def run(out: str, job: str, threads: int) -> str | None:
    """Do a job in a process of its own, and give the reason back where it failed.

    The process ends as soon as its standard input does: with this one, however that ends.
    """
    command = [sys.executable, "-m", "ossicle.compiler.sweep_worker", out, job]
    told = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, env=told, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        ) as process:
            code = _wait(process)
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    if not code:
        return None
    return last if code == 1 and last else f"its process ended with status {code}" + (f": {last}" if last else "")


def _wait(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait()
    except BaseException:
        process.kill()
        raise


def _here(out: Path, jobs: Sequence[str], crew: Crew, threads: int) -> Iterator[tuple[str, str | None]]:
    pool = ThreadPoolExecutor(crew.workers)
    try:
        asked = {pool.submit(run, str(out), job, threads): job for job in jobs}
        for done in as_completed(asked):
            yield asked[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _over_ray(out: Path, jobs: Sequence[str], crew: Crew, threads: int) -> Iterator[tuple[str, str | None]]:
    """As `_here`, a task of Ray a job; other machines see `out`, the checkpoint and the recordings by the same paths."""
    with _connected(crew.address) as ray:
        task = ray.remote(run).options(num_cpus=threads, max_retries=0)
        asked = {task.remote(str(out), job, threads): job for job in jobs}
        left = list(asked)
        while left:
            (done,), left = ray.wait(left, num_returns=1)
            yield asked[done], _result(ray, done)


def _result(ray: Any, done: Any) -> str | None:
    try:
        reason: str | None = ray.get(done)
    except ray.exceptions.RayError as died:
        return f"its task ended in the middle of it: {str(died).strip().splitlines()[0]}"
    return reason


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one of its own on this machine.

    Raises:
        SweepError: it is not installed, or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise SweepError("executor 'ray' needs ray. Install it with: pip install 'ossicle[ray]'") from None
    own: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": 100 << 20,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
    except (ConnectionError, RuntimeError, OSError, ValueError) as reason:
        raise SweepError(f"Ray cannot be reached: {reason}. Without it: --executor processes") from reason
    try:
        yield ray
    finally:
        ray.shutdown()
