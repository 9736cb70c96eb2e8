"""A corpus transcribed: many recordings, on every core or many machines, killed and gone on with as often as it happens.

    ossicle.transcribe_corpus("bundle", "recordings/", "out/")

What is on disk: runtimes/corpus_state.py; for users: docs/corpus.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from ..targets import manifest as manifests
from ..targets.contract import CorpusError, EngineError, Progress
from . import corpus_state as state
from .corpus import Item, longest_first, read_items
from .corpus_pool import Helper, Pool
from .corpus_shares import Share, memory_of, share
from .corpus_state import Journal
from .corpus_summary import Run, Summary, write_outputs
from .corpus_worker import digest
from .corpus_workers import ProcessHelper
from .generate import decoding
from .llamacpp_widened import widened_bytes
from .prompt import check_language

EXECUTORS = ("processes", "ray")


@dataclass(frozen=True)
class Loading:
    """How each worker opens the bundle; see `ossicle.load`."""

    engine: str = "auto"
    provider: str = "cpu"
    kv_cache: str = ""
    flash_attention: bool | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)
    compute: str = ""

    def terms(self) -> dict[str, Any]:
        """What a run is begun on; a run of before there was a `compute` goes on without."""
        return {name: value for name, value in asdict(self).items() if name != "compute" or value}


@dataclass(frozen=True)
class Crew:
    """Who does the work: so many workers with so many threads each, 0 for what is best; address and GPUs are for Ray."""

    executor: str = "processes"
    workers: int = 0
    threads: int = 0
    address: str | None = None  # of a cluster; None: a Ray of its own on this machine
    gpus: float = 0.0  # of each worker
    limit: float = 0.0  # seconds that a worker may be at a recording; 0: as long as it takes


def transcribe_corpus(
    bundle: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    language: str | None = None,
    max_tokens: int | None = None,
    loading: Loading | None = None,
    crew: Crew | None = None,
    retry_failed: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    watch: Callable[[Pool], None] | None = None,
) -> Summary:
    """Transcribe the recordings of a folder, list or manifest into the folder `out`, going on with what is there.

    Args:
        retry_failed: try again what failed before; a file that changed since is done again in any case.
        force: forget what `out` holds.
        watch: given the pool before it begins, to stop it from elsewhere.

    Raises:
        BundleError, EngineError: no worker can open the bundle. What was done is kept.
        CorpusError: there is nothing to read, or `out` holds a run on other terms, or another run is at it.
    """
    bundle, out, loading, crew = Path(bundle), Path(out), loading or Loading(), crew or Crew()
    settings = {} if max_tokens is None else {"max_tokens": max_tokens}
    decoding(**settings)  # type: ignore[arg-type] # refuses what is not possible before any work is done
    check_language(language)
    _check_crew(crew)
    manifests.check_files(bundle, manifests.read(bundle))
    items = read_items(source, language)
    job = Job(bundle.absolute(), digest(bundle), asdict(loading), settings)
    terms = {"bundle": job.digest, "settings": {"language": language, **settings, **loading.terms()}}
    with state.locked(out):
        state.agree(out, terms, force=force)
        with Journal(out / state.RESULTS) as journal:
            todo = [item for item in items if _is_open(journal, item, retry_failed)]
            run = _work(journal, todo, job, crew, progress, watch) if todo else Run()
            return write_outputs(out, items, journal, run)


def _check_crew(crew: Crew) -> None:
    if crew.executor not in EXECUTORS:
        raise CorpusError(f"executor '{crew.executor}' is unknown (it can be: {', '.join(EXECUTORS)}).")
    for name in ("workers", "threads", "gpus", "limit"):
        if not getattr(crew, name) >= 0:
            raise CorpusError(f"{name} {getattr(crew, name)} is not possible (it can be: 0 or more).")


@dataclass(frozen=True)
class Job:
    """What every worker is to open, and how it is to transcribe."""

    bundle: Path
    digest: str
    loading: Mapping[str, Any]
    settings: Mapping[str, Any]

    def opening(self, threads: int) -> dict[str, Any]:
        """What a worker is told first. The files were compared with their hashes by now."""
        loading = {**self.loading, "threads": threads, "check": False}
        return {"bundle": str(self.bundle), "loading": loading, "settings": dict(self.settings)}


def _is_open(journal: Journal, item: Item, retry_failed: bool) -> bool:
    entry = journal.entry(item)
    return entry is None or (entry.failed and retry_failed)


def _work(
    journal: Journal,
    todo: Sequence[Item],
    job: Job,
    crew: Crew,
    progress: Progress | None,
    watch: Callable[[Pool], None] | None,
) -> Run:
    """Transcribe what is open, each result noted as it comes.

    Raises:
        EngineError: no worker is left, and recordings are.
    """
    started, settled = perf_counter(), []
    with (
        _helpers(job, crew, len(todo)) as (make, part),
        Pool(longest_first(todo), make, part.workers, job.digest, crew.limit) as pool,
    ):
        if progress is not None:
            progress.start("transcribing", len(todo), "files")
        if watch is not None:
            watch(pool)
        while result := pool.take():
            journal.add(result.item, result.answer)
            settled.append(result.item)
            if progress is not None:
                progress.advance(1)
        if pool.refusals and not pool.stopped and len(settled) < len(todo):
            raise EngineError(pool.refusals[-1])
    return Run(settled, perf_counter() - started, part)


@contextmanager
def _helpers(job: Job, crew: Crew, files: int) -> Iterator[tuple[Callable[[], Helper], Share]]:
    """What makes workers, and how many there are to be.

    Raises:
        CorpusError: the executor has no room for them.
        EngineError: its package is missing.
    """
    if crew.executor == "ray":
        from .corpus_ray import helpers

        with helpers(job.opening, crew.workers, crew.threads, crew.gpus, crew.address, files) as found:
            yield found
    else:
        manifest = manifests.read(job.bundle)
        each = memory_of(manifest, job.loading["kv_cache"], widened_bytes(job.bundle, manifest, job.loading["compute"]))
        part = share(each, crew.workers, crew.threads, files)
        yield partial(ProcessHelper, job.opening(part.threads)), part
