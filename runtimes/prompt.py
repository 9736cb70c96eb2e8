"""Conversations -> token ids, through the templates of the bundle's manifest.

A message is {"role": "system" | "user" | "assistant", "content": TEXT or PARTS}; a part is {"type": "text", "text":
TEXT} or {"type": "audio", "audio": RECORDING, "rate": HERTZ of an array of samples}, where "path" may stand for
"audio". Neighbouring messages of one role are one turn, and neighbouring texts are joined by an empty line, as
mistral-common does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..targets.contract import PromptError
from ..targets.manifest import TextFormat
from .tokens import Tokenizer

ROLES = ("system", "user", "assistant")
_SLOT = re.compile(r"\{(audio|content|language)\}")

# A token id, or text in which no special token is recognized.
Piece = int | str


@dataclass(frozen=True)
class Clip:
    """A recording in a conversation: whatever `load_audio` takes, and the rate of an array of samples in Hz."""

    source: Any
    rate: int | None = None


@dataclass(frozen=True)
class Turn:
    """What one role says before another does: texts and clips in order."""

    role: str
    parts: tuple[str | Clip, ...]


def read_messages(messages: Any) -> tuple[Turn, ...]:
    """The turns of a conversation.

    Raises:
        PromptError: listing everything in it that cannot be followed.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise PromptError('a conversation is a list of messages such as {"role": "user", "content": "Hello"}.')
    faults: list[str] = []
    turns = [turn for i, message in enumerate(messages) if (turn := _turn(message, f"message {i}", faults))]
    if turns and turns[-1].role != "user":
        faults.append(f"the last message is of role '{turns[-1].role}' (it can be: user)")
    if faults:
        raise PromptError("the conversation cannot be followed: " + "; ".join(faults) + ".")
    return _merged(turns)


def clips(turns: Iterable[Turn]) -> tuple[Clip, ...]:
    """Every recording of a conversation, in order."""
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, Clip))


class Prompts:
    """Writes the prompts of one bundle.

    Raises:
        PromptError: a template holds a special token that the tokenizer lacks.
    """

    def __init__(self, tokenizer: Tokenizer, text: TextFormat, tokens_per_window: int, context: int) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._tokens_per_window = tokens_per_window
        self._context = context
        self._special = re.compile("|".join(re.escape(name) for name in sorted(tokenizer.specials, key=len)[::-1]))

    def transcription(self, windows: int, language: str | None = None) -> list[int]:
        """Ids that ask for the words of a clip of so many windows; `language` is a code of two letters."""
        return self._fitting(self._transcription(windows, language), windows)

    def most_windows(self, language: str | None = None) -> int:
        """Windows of the longest clip whose transcription fits into the context."""
        beside = len(self._ids(self._transcription(0, language)))
        return max(0, self._context - 1 - beside) // self._tokens_per_window

    def chat(self, turns: Sequence[Turn], windows: Sequence[int]) -> list[int]:
        """Ids of a conversation whose clips, in order, have so many windows each."""
        remaining = iter(windows)
        pieces = self._fill(self._text.begin)
        for turn in turns:
            content = [piece for part in turn.parts for piece in self._part(part, remaining)]
            pieces += self._fill(getattr(self._text, turn.role), content=content)
        return self._fitting(pieces, sum(windows))

    def _transcription(self, windows: int, language: str | None) -> list[Piece]:
        if language is not None and not re.fullmatch(r"[a-z]{2}", language):
            raise PromptError(
                f"language {language!r} is not possible (it can be: a code of two letters, such as 'en')."
            )
        template = self._text.transcribe if language is None else self._text.transcribe_language
        pieces = self._fill(template, audio=self._clip(windows), language=[language or ""])
        return [*self._fill(self._text.begin), *pieces]

    def _part(self, part: str | Clip, windows: Any) -> list[Piece]:
        return self._clip(next(windows)) if isinstance(part, Clip) else [part]

    def _clip(self, windows: int) -> list[Piece]:
        tokens: list[Piece] = [self._text.audio_token] * (self._tokens_per_window * windows)
        return self._fill(self._text.audio, audio=tokens)

    def _fill(self, template: str, **slots: list[Piece]) -> list[Piece]:
        pieces: list[Piece] = []
        # Of what split gives back, every second entry is the name of a slot.
        for i, part in enumerate(_SLOT.split(template)):
            pieces += slots[part] if i % 2 else self._literal(part)
        return pieces

    def _literal(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        place = 0
        for match in self._special.finditer(text):
            pieces += [text[place : match.start()], self._tokenizer.specials[match.group()]]
            place = match.end()
        return [*pieces, text[place:]]

    def _fitting(self, pieces: Sequence[Piece], windows: int) -> list[int]:
        ids = self._ids(pieces)
        if len(ids) < self._context:
            return ids
        audio = windows * self._tokens_per_window
        raise PromptError(
            f"the prompt takes {len(ids)} tokens, {audio} of them for {windows} windows of audio, and the context "
            f"holds {self._context} with the answer. Possible: at most "
            f"{max(0, self._context - 1 - len(ids) + audio) // self._tokens_per_window} windows beside this text; "
            "split the recording, or shorten the conversation."
        )

    def _ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Neighbouring texts are tokenized as one: a word may begin in a template and end in what fills it."""
        ids: list[int] = []
        for is_text, neighbours in groupby(pieces, key=lambda piece: isinstance(piece, str)):
            run = list(neighbours)
            ids += self._tokenizer.encode("".join(map(str, run))) if is_text else map(int, run)
        return ids


def _turn(message: Any, place: str, faults: list[str]) -> Turn | None:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        faults.append(f"{place} is of role {role!r} (it can be: {', '.join(ROLES)})")
        return None
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        faults.append(f"{place} has no content (it can be: a text, or a list of text and audio parts)")
        return None
    parts = [_read_part(part, role, f"part {i} of {place}", faults) for i, part in enumerate(content)]
    return Turn(role, tuple(part for part in parts if part is not None))


def _read_part(part: Any, role: str, place: str, faults: list[str]) -> str | Clip | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str) and part["text"]:
        return str(part["text"])
    source = part.get("audio", part.get("path")) if kind == "audio" else None
    if source is not None and role == "user":
        return Clip(source, part.get("rate"))
    faults.append(_fault(kind, role, source, place))
    return None


def _fault(kind: Any, role: str, source: Any, place: str) -> str:
    if kind == "text":
        return f"{place} holds no text"
    if kind != "audio":
        return f"{place} is of type {kind!r} (it can be: text, audio)"
    if source is None:
        return f"{place} holds no recording (under 'audio' or 'path')"
    return f"{place} is audio in a message of role '{role}' (it can be in: user)"


def _merged(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    merged = []
    for role, neighbours in groupby(turns, key=lambda turn: turn.role):
        parts = _joined([part for turn in neighbours for part in turn.parts])
        if role == "assistant":
            parts = [part.rstrip(" ") if isinstance(part, str) else part for part in parts]
        merged.append(Turn(role, tuple(parts)))
    return tuple(merged)


def _joined(parts: Sequence[str | Clip]) -> list[str | Clip]:
    joined: list[str | Clip] = []
    for is_text, neighbours in groupby(parts, key=lambda part: isinstance(part, str)):
        run = list(neighbours)
        joined += ["\n\n".join(map(str, run))] if is_text else run
    return joined
