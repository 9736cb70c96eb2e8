"""What a corpus run is to do: recordings, each under a name of its own, read from a folder, a list or a manifest."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..targets.contract import CorpusError

# Bytes of a second of speech as each kind of file usually holds it. By these, long recordings are found without opening one.
SUFFIXES = {
    **dict.fromkeys((".wav", ".w64", ".rf64", ".aiff", ".aif", ".au", ".caf"), 32000),
    ".flac": 18000,
    ".mp3": 12000,
    **dict.fromkeys((".ogg", ".oga", ".opus"), 6000),
}
_SHOWN = 5  # faults of a list that an error tells


@dataclass(frozen=True)
class Item:
    """A recording to transcribe: the name it goes by in what is written, and the file as it was found.

    `given` is what else the manifest says of it. `size` is in bytes and `modified` in nanoseconds; -1: there is no such file.
    """

    id: str
    audio: str  # absolute path
    language: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    size: int = -1
    modified: int = -1

    @property
    def mark(self) -> tuple[int, int, str | None]:
        """What has to be the same for an earlier result to count: size, time of change, language."""
        return self.size, self.modified, self.language

    @property
    def expected_seconds(self) -> float:
        """About how long the recording is, by its size alone."""
        return self.size / SUFFIXES.get(Path(self.audio).suffix.lower(), 32000)


def read_items(source: str | Path, language: str | None = None) -> list[Item]:
    """The recordings of a folder (all below it, by name), a list (`.txt`, a path a line) or a manifest (`.jsonl`), in order.

    A manifest's line is {"audio": path, "id"?: name, "language"?: "en", ...}; relative paths are relative to the file that
    holds them. `language` is that of recordings with none of their own. Hidden files and folders are left out.

    Raises:
        CorpusError: there is nothing to read, a line cannot be understood, or two recordings go by one name.
    """
    source = Path(source)
    if source.is_dir():
        items = [_item(source, {"audio": path}, language) for path in sorted(_recordings(source))]
    elif source.suffix.lower() in (".txt", ".jsonl") and source.is_file():
        items = [_item(source.parent, entry, language) for entry in _listed(source)]
    else:
        raise CorpusError(
            f"'{source}' {'is no list' if source.exists() else 'does not exist'} (it can be: a folder of recordings, a .txt "
            "with a path a line, a .jsonl with an object a line). For single recordings: ossicle run BUNDLE FILE..."
        )
    if not items:
        raise CorpusError(f"'{source}' holds no recordings (they can be: {', '.join(SUFFIXES)}).")
    return items


def longest_first(items: Iterable[Item]) -> list[Item]:
    """The same recordings, so ordered that no worker is left with a long one at the end."""
    return sorted(items, key=lambda item: -item.expected_seconds)


def _recordings(folder: Path) -> Iterator[str]:
    """Relative paths, with forward slashes, of all recordings under a folder. Links to folders are not followed."""
    for here, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield (Path(here) / name).relative_to(folder).as_posix()


def _unreadable(reason: OSError) -> None:
    raise CorpusError(f"'{reason.filename}' cannot be read: {reason.strerror}. Nothing was begun.") from reason


def _listed(source: Path) -> list[dict[str, Any]]:
    """What a list or a manifest says of each recording; every fault is told, with its line."""
    entries: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    faults = []
    for number, line in _lines(source):
        entry = {"audio": line} if source.suffix.lower() == ".txt" else _object(line)
        fault = entry if isinstance(entry, str) else _fault(entry)
        if fault or isinstance(entry, str):
            faults.append(f"line {number} {fault}")
            continue
        name = entry.get("id", entry["audio"])
        if lines.setdefault(name, number) != number:
            faults.append(
                f"line {number} repeats '{name}' of line {lines[name]} (an \"id\" of its own tells them apart)"
            )
        entries.append(entry)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CorpusError(
            f"'{source}' cannot be followed: {'; '.join(faults[:_SHOWN])}{more}. Correct it and begin again."
        )
    return entries


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, numbered from 1."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as reason:
        raise CorpusError(f"'{source}' cannot be read: {reason}. Write it in UTF-8.") from reason
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _object(line: str) -> dict[str, Any] | str:
    """A line's JSON object, or what is wrong with it. An id or a language that is null is none, as in what a run writes."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as reason:
        return f"is no JSON ({reason})"
    if not isinstance(entry, dict):
        return "is no JSON object"
    return {key: value for key, value in entry.items() if value is not None or key not in ("id", "language")}


def _fault(entry: Mapping[str, Any]) -> str:
    if not entry.get("audio") or "\0" in str(entry["audio"]):
        return 'has no path as "audio"'
    wrong = [key for key in ("audio", "id", "language") if not isinstance(entry.get(key, ""), str)]
    return f"has no text as {', '.join(wrong)}" if wrong else ""


def _item(folder: Path, entry: Mapping[str, Any], language: str | None) -> Item:
    audio = (folder / entry["audio"]).absolute()
    given = {key: value for key, value in entry.items() if key not in ("audio", "id", "language")}
    size, modified = _found(audio)
    return Item(entry.get("id", entry["audio"]), str(audio), entry.get("language") or language, given, size, modified)


def _found(path: Path) -> tuple[int, int]:
    """Size and time of change; a file that is not there is an item all the same, and listed as failed."""
    try:
        known = path.stat()
    except OSError:
        return -1, -1
    return known.st_size, known.st_mtime_ns
