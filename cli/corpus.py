"""`ossicle transcribe-corpus`: many recordings, on every core or many machines, killed and gone on with."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..targets.contract import CorpusError
from .common import Json, app, complain, guarded, print_json
from .options import Address, Executor, RetryFailed
from .run import Cache, Compute, Flash, Provider, Scales, scales

if TYPE_CHECKING:
    from ..runtimes.corpus_pool import Pool
    from ..runtimes.corpus_summary import Summary

EXECUTORS = ("processes", "ray")
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="BUNDLE IN OUT",
        help="A bundle; a folder, a list (.txt) or a manifest (.jsonl) of recordings; a folder for what is found.",
    ),
]


@app.command(epilog="Example: ossicle transcribe-corpus voxtral-int4 recordings transcripts --language en")
@guarded
def transcribe_corpus(
    paths: Paths,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="BUNDLE", help="The bundle, where IN and OUT alone are named.")
    ] = None,
    executor: Executor = "processes",
    workers: Annotated[int, typer.Option("--workers", min=0, help="0: a worker a core, as far as memory goes.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of each worker. 0: its share of the cores.")] = 0,
    address: Address = None,
    gpus: Annotated[float, typer.Option("--gpus", min=0.0, help="Ray: GPUs of each worker, such as 1 or 0.5.")] = 0.0,
    language: Annotated[
        str | None, typer.Option("--language", metavar="XX", help="Spoken, where the manifest does not say.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The longest transcript.")] = None,
    limit: Annotated[
        float, typer.Option("--limit", metavar="S", min=0.0, help="The longest time for a recording; 0: none.")
    ] = 0.0,
    retry_failed: RetryFailed = False,
    force: Annotated[bool, typer.Option("--force", help="Forget what OUT holds, and begin anew.")] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the bundle; by default the best that can.")
    ] = "auto",
    provider: Provider = "cpu",
    kv_cache: Cache = "",
    flash_attention: Flash = None,
    compute: Compute = "",
    adapter: Scales = None,
    as_json: Json = False,
) -> None:
    """Transcribe a corpus. The same command goes on after a kill, with nothing lost or done twice; failed files are listed."""
    from ..runtimes.corpus_run import Crew, Loading
    from ..runtimes.corpus_run import transcribe_corpus as begin
    from .progress import Bars

    bundle, source, out = _places(paths, bundle)
    if engine in EXECUTORS:  # no engine of a bundle is called so
        engine, executor = "auto", engine
    stopper = Stopper()
    with stopper.listening(), Bars() as bars:
        summary = begin(
            bundle,
            source,
            out,
            language=language,
            max_tokens=max_tokens,
            loading=Loading(engine, provider, kv_cache, flash_attention, scales(adapter or ()), compute),
            crew=Crew(executor, workers, threads, address, gpus, limit),
            retry_failed=retry_failed,
            force=force,
            progress=bars,
            watch=stopper.watch,
        )
    print_json(summary.document()) if as_json else _print(summary, out)
    _finish(summary, out)


class Stopper:
    """Ctrl-C, and the system's request to end: once for an orderly stop, twice for one at once."""

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def watch(self, pool: "Pool") -> None:
        """The pool that is to stop."""
        self._pool = pool

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, signals stop the pool."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except KeyboardInterrupt:
            complain("stopped at once. What is done is kept: go on with the same command")
            raise typer.Exit(130) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *_: Any) -> None:
        if self._pool is None or self._pool.stopped:
            raise KeyboardInterrupt
        self._pool.stop()
        complain("stopping: the files at work are finished first (once more to stop at once)")


def _places(paths: list[Path], bundle: Path | None) -> tuple[Path, Path, Path]:
    named = [bundle, *paths] if bundle else [*paths]
    if len(named) != 3:
        given = ", ".join(f"'{path}'" for path in paths)
        raise CorpusError(
            f"a bundle, recordings and a folder for transcripts are needed, and there are: {given}. "
            "Say: ossicle transcribe-corpus BUNDLE IN OUT"
        )
    found, source, out = named
    return found, source, out


def _print(summary: "Summary", out: Path) -> None:
    typer.echo(f"{summary.done} of {summary.files} files are transcribed: {out / 'transcripts.jsonl'}")
    typer.echo(f"{summary.hours:.2f} hours of audio, {summary.words} words")
    if summary.run_files:
        typer.echo(
            f"{summary.run_files} files in {summary.run_seconds:.1f} s, {summary.times_real_time:.1f} times real time, "
            f"by {summary.workers} workers of {summary.threads} threads on {', '.join(summary.engines) or 'no engine'}"
        )


def _finish(summary: "Summary", out: Path) -> None:
    """Say what is missing, and end by the exit code that tells of it."""
    if summary.damaged:
        complain(f"{summary.damaged} lines of '{out / 'results.jsonl'}' were damaged; their files were done again")
    if summary.failed:
        complain(
            f"{summary.failed} files failed: '{out / 'failed.jsonl'}' says why. Try them again with --retry-failed"
        )
    if summary.left:
        complain(f"stopped with {summary.left} files left. Go on with the same command")
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)
