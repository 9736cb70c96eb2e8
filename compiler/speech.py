"""Recorded speech to verify against: a list of (recording, text) lines, and the word error rate over it.

One JSON object a line: `{"file": "a.wav", "text": "what was said"}`, the file relative to the list's folder. A line may
also give `language` ("en") and `questions` ({"which room?": "kitchen"}); other keys are the author's own.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..targets.contract import AudioError

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SHAPE = '{"file": "a.wav", "text": "what was said"}'


@dataclass(frozen=True)
class Clip:
    """One recording. `name` is the file as its list spells it; `text` None: nobody wrote down what is said."""

    name: str
    file: Path
    text: str | None = None
    language: str | None = None
    questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Speech:
    """A list of recordings, and a sha256 over everything in it."""

    name: str
    clips: tuple[Clip, ...]
    sha256: str


@dataclass(frozen=True)
class WordErrors:
    """Word edits (substitutions, deletions, insertions) and how many words the references have."""

    edits: int
    words: int

    @property
    def rate(self) -> float:
        """Edits per reference word; where the references have no word, 0 without edits and 1 with any."""
        if not self.words:
            return float(self.edits > 0)
        return self.edits / self.words


def shipped() -> Path:
    """The list of recordings that this package brings.

    Raises:
        AudioError: this installation has none.
    """
    path = Path(str(resources.files("ossicle.demo"))) / "speech" / "speech.jsonl"
    if not path.is_file():
        raise AudioError("this installation of ossicle ships no speech. Pass your own: --speech data.jsonl")
    return path


def load(path: Path) -> Speech:
    """The recordings of a list.

    Raises:
        AudioError: the list cannot be read; or naming every line that is no recording and every file that is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark
    except (OSError, UnicodeDecodeError) as reason:
        raise AudioError(
            f"speech list '{path}' cannot be read: {reason}. Each of its lines is to be {_SHAPE}"
        ) from reason
    clips, faults = parse(text, path.parent)
    faults += [f"'{clip.name}' is missing" for clip in clips if not clip.file.is_file()]
    if not clips and not faults:
        faults = ["it has no lines"]
    if faults:
        listed = "; ".join(faults)
        raise AudioError(f"speech list '{path}' cannot be used: {listed}. Each of its lines is to be {_SHAPE}")
    return Speech(path.name, tuple(clips), _hash(clips))


def parse(text: str, folder: Path) -> tuple[list[Clip], list[str]]:
    """The clips that the lines of a list name, and a sentence for each line that names none; empty lines aside."""
    clips: list[Clip] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            clips.append(_clip(line, folder))
        except ValueError as reason:
            faults.append(f"line {number}: {reason}")
    return clips, faults


def words(text: str) -> list[str]:
    """The words of a text as they are compared: case, punctuation and the spelling of accents apart."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'"))


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """The word errors over (reference, hypothesis) pairs."""
    edits = total = 0
    for reference, hypothesis in pairs:
        spoken = words(reference)
        edits += edit_distance(spoken, words(hypothesis))
        total += len(spoken)
    return WordErrors(edits, total)


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The fewest substitutions, deletions and insertions that turn one sequence into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for count, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(second, start=1):
            diagonal, row[column] = row[column], min(diagonal + (item != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


def _clip(line: str, folder: Path) -> Clip:
    entry = _object(line)
    name = entry.get("file")
    if not isinstance(name, str) or not name:
        raise ValueError("it has no 'file'")
    if "\0" in name:
        raise ValueError("its 'file' is no path")
    return Clip(
        name=name,
        file=folder / name,
        text=_optional_text(entry, "text"),
        language=_language(entry),
        questions=_questions(entry.get("questions")),
    )


def _object(line: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as reason:
        raise ValueError(f"it is not JSON ({reason})") from reason
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    return entry


def _optional_text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its '{key}' is not text")
    return value


def _language(entry: Mapping[str, Any]) -> str | None:
    language = _optional_text(entry, "language") or None
    if language and not re.fullmatch("[a-z]{2}", language):
        raise ValueError(f"its 'language' is {language!r:.40} and not two letters, such as en")
    return language


def _questions(value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(isinstance(answer, str) for answer in value.values()):
        raise ValueError("its 'questions' are not an object of question to answer")
    return tuple(value.items())


def _hash(clips: Sequence[Clip]) -> str:
    total = hashlib.sha256()
    for clip in clips:
        with clip.file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        line = [clip.name, clip.text, clip.language, clip.questions, content]
        total.update(json.dumps(line).encode())
    return total.hexdigest()
