"""What a corpus run has on disk: the terms it was begun on, a line for each file that is settled, and a lock.

A line of `results.jsonl` is written whole, by one process, and counts once its newline is there. The system has it before the
next one is begun, so that kill -9 loses none; the disk itself has it a second later, which is what a power cut may cost.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, Any

from ..targets.contract import CorpusError
from ..targets.locks import taken
from .corpus import Item

VERSION = 1
RUN, RESULTS, LOCK = "run.json", "results.jsonl", "lock"
TRANSCRIPTS, FAILED, SUMMARY = "transcripts.jsonl", "failed.jsonl", "summary.json"
OURS = (RUN, RESULTS, TRANSCRIPTS, FAILED, SUMMARY)
_SYNC = 1.0  # seconds of work that a power cut may cost

Mark = tuple[int, int, str | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the latest line on a file is, which state of the file it is about, and whether the file failed."""

    offset: int
    length: int
    mark: Mark
    failed: bool


def line(document: Mapping[str, Any]) -> bytes:
    """A document as one line of JSON; names that are no Unicode are escaped."""
    text = json.dumps(document, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(document).encode() + b"\n"


def whole_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that were written to their end, each with its offset; of what a kill cut off nothing."""
    offset = 0
    for text in stream:
        if text.endswith(b"\n"):
            yield offset, text
        offset += len(text)


class Journal:
    """The results of a run, one line a file; the latest line on a file counts. A context manager."""

    def __init__(self, path: Path) -> None:
        self._stream: IO[bytes] = path.open("a+b", buffering=0)
        self._entries: dict[str, Entry] = {}
        self.damaged = 0  # lines that are whole and say nothing, as a power cut leaves them
        self._end = self._recover()
        self._synced, self._unsynced = monotonic(), False

    def _recover(self) -> int:
        """Read what is there and cut off a torn last line; gives where the next line begins."""
        end = 0
        with open(self._stream.fileno(), "rb", closefd=False) as lines:
            lines.seek(0)
            for offset, text in whole_lines(lines):
                self._note(offset, text)
                end = offset + len(text)
        self._stream.truncate(end)
        return end

    def _note(self, offset: int, text: bytes) -> None:
        try:
            found = json.loads(text)
            mark = (found["size"], found["modified"], found["language"])
            self._entries[found["id"]] = Entry(offset, len(text), mark, "error" in found)
        except (ValueError, KeyError, TypeError):
            self.damaged += 1

    def entry(self, item: Item) -> Entry | None:
        """Where the result of this item is; None: there is none, or it is of another state of the file."""
        entry = self._entries.get(item.id)
        return entry if entry and entry.mark == item.mark else None

    def add(self, item: Item, answer: Mapping[str, Any]) -> None:
        """Write the result of an item.

        Raises:
            OSError: the disk is full or gone; what was written of the line is taken back.
        """
        size, modified, language = item.mark
        text = line({"id": item.id, "size": size, "modified": modified, "language": language, **answer})
        try:
            if self._stream.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._stream.name)
        except OSError:
            self._stream.truncate(self._end)
            raise
        self._note(self._end, text)
        self._end, self._unsynced = self._end + len(text), True
        if monotonic() - self._synced >= _SYNC:
            self.sync()

    def read(self, entry: Entry) -> dict[str, Any]:
        """The line of an entry."""
        self._stream.seek(entry.offset)
        found: dict[str, Any] = json.loads(self._stream.read(entry.length))
        return found

    def sync(self) -> None:
        """Bring what was written to the disk itself."""
        if self._unsynced:
            os.fsync(self._stream.fileno())
        self._synced, self._unsynced = monotonic(), False

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self._stream.close()


def write_whole(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there: it is the old one or the new one, never a half.

    Raises:
        OSError: the disk is full or gone; it names the file, and nothing is left beside it.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("wb") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except OSError as reason:
        draft.unlink(missing_ok=True)
        raise OSError(reason.errno, reason.strerror, str(path)) from reason


def agree(folder: Path, terms: Mapping[str, Any], *, force: bool = False) -> None:
    """Note what a run is begun on, or see that it goes on as it was begun; with `force` an earlier run is forgotten.

    A run that has settled nothing yet binds nobody: its first command may have been a slip.

    Raises:
        CorpusError: the folder holds a run with another bundle or other settings, or files that are no run's.
    """
    if force:
        for name in OURS:
            (folder / name).unlink(missing_ok=True)
    if not (folder / RUN).exists() or not _has_results(folder):
        if not (folder / RUN).exists() and (taken := [name for name in OURS if (folder / name).exists()]):
            raise CorpusError(
                f"'{folder}' holds {', '.join(taken)} and no {RUN}: no run to go on with. Give another OUT."
            )
        document = {"version": VERSION, **terms}
        write_whole(folder / RUN, [json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"])
    elif faults := _differences(folder, terms):
        raise CorpusError(
            f"'{folder}' holds a run that was begun otherwise: {'; '.join(faults)}. Go on as it was begun, give another "
            "OUT, or forget what is there with --force"
        )


def _has_results(folder: Path) -> bool:
    results = folder / RESULTS
    return results.exists() and results.stat().st_size > 0


def _differences(folder: Path, terms: Mapping[str, Any]) -> list[str]:
    """What of a run's terms is not what it was begun on."""
    try:
        begun = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if begun["version"] > VERSION:
            return ["by a newer ossicle"]
        pairs = [(key, begun[key], terms[key]) for key in terms if key != "settings"]
        wanted = terms["settings"]
        pairs += [(key, begun["settings"].get(key), wanted.get(key)) for key in wanted | begun["settings"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"its {RUN} cannot be understood"]
    return [f"{key} {json.dumps(old)} (now {json.dumps(new)})" for key, old, new in pairs if old != new]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one run; the system lets it go when the process ends, however it does.

    Raises:
        CorpusError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        if not taken(stream):
            stream.seek(0)
            raise CorpusError(
                f"'{folder}' is being written by another run (process {stream.read() or 'unknown'}). Wait for its end, or "
                "give another OUT"
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
