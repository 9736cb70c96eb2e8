"""What a corpus run leaves when it ends: transcripts in the order of the input, what failed, and figures of it all."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import corpus_state as state
from .corpus import Item
from .corpus_shares import Share
from .corpus_state import Journal


@dataclass(frozen=True)
class Run:
    """What one run settled, in how many seconds, by whom."""

    settled: Sequence[Item] = ()
    seconds: float = 0.0
    share: Share = field(default=Share(0, 0))


@dataclass(frozen=True)
class Summary:
    """What is done of a corpus, all its runs together; `run_...` is the latest alone.

    `hours` is the length of what is done, `work_seconds` what workers took for it. `damaged` lines of results were passed over.
    """

    files: int
    done: int
    failed: int
    left: int
    hours: float
    words: int
    work_seconds: float
    engines: Sequence[str]
    run_files: int
    run_hours: float
    run_seconds: float
    workers: int
    threads: int
    damaged: int = 0

    @property
    def real_time_factor(self) -> float:
        """Seconds of a worker for a second of audio; 0 without audio."""
        return self.work_seconds / (3600 * self.hours) if self.hours else 0.0

    @property
    def times_real_time(self) -> float:
        """Seconds of audio in a second of the latest run, all its workers together."""
        return 3600 * self.run_hours / self.run_seconds if self.run_seconds else 0.0

    def document(self) -> dict[str, Any]:
        """It all as JSON takes it."""
        rates = {"real_time_factor": self.real_time_factor, "times_real_time": self.times_real_time}
        figures = asdict(self) | rates
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in figures.items()}


def write_outputs(out: Path, items: Sequence[Item], journal: Journal, run: Run) -> Summary:
    """Write `transcripts.jsonl`, `failed.jsonl` and `summary.json`, each whole; an item is in one of the first two, or left."""
    journal.sync()
    state.write_whole(out / state.TRANSCRIPTS, _lines(items, journal, failed=False))
    state.write_whole(out / state.FAILED, _lines(items, journal, failed=True))
    found = _summary(items, journal, run)
    text = json.dumps(found.document(), indent=1, ensure_ascii=False)
    state.write_whole(out / state.SUMMARY, [text.encode() + b"\n"])
    return found


def _lines(items: Iterable[Item], journal: Journal, *, failed: bool) -> Iterator[bytes]:
    for item, found in _results(items, journal):
        if ("error" in found) == failed:
            yield state.line(_document(item, found))


def _results(items: Iterable[Item], journal: Journal) -> Iterator[tuple[Item, dict[str, Any]]]:
    for item in items:
        if entry := journal.entry(item):
            yield item, journal.read(entry)


def _document(item: Item, found: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it is handed over; what the manifest says beside it stands under "given"."""
    about = {"id": item.id, "audio": item.audio, "language": item.language}
    inside = ("id", "language", "size", "modified")
    answer = {key: value for key, value in found.items() if key not in inside}
    return about | answer | ({"given": dict(item.given)} if item.given else {})


def _summary(items: Sequence[Item], journal: Journal, run: Run) -> Summary:
    settled = {item.id for item in run.settled}
    done = failed = words = 0
    seconds = work = run_seconds = 0.0
    engines: dict[str, None] = {}
    for item, found in _results(items, journal):
        if "error" in found:
            failed += 1
            continue
        timings = found["timings"]
        done, words, seconds = done + 1, words + len(found["text"].split()), seconds + timings["audio"]
        work += timings["encode"] + timings["prefill"] + timings["decode"]
        run_seconds += timings["audio"] if item.id in settled else 0.0
        engines[found["engine"]] = None
    return Summary(
        files=len(items),
        done=done,
        failed=failed,
        left=len(items) - done - failed,
        hours=seconds / 3600,
        words=words,
        work_seconds=work,
        engines=tuple(engines),
        run_files=len(settled),
        run_hours=run_seconds / 3600,
        run_seconds=run.seconds,
        workers=run.share.workers,
        threads=run.share.threads,
        damaged=journal.damaged,
    )
