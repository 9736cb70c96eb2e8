"""Turns of a conversation -> token ids, through the templates of the bundle's manifest."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ..targets.contract import PromptError
from ..targets.manifest import TextFormat, ToolFormat
from .messages import Clip, Turn, calls
from .tokens import Piece, Tokenizer
from .tools import Tool, ToolCall, definitions

_SLOT = re.compile(r"\{(audio|content|language|tools|calls|name|id|arguments)\}")


def tool_format(text: TextFormat) -> ToolFormat:
    """How the model is told of functions.

    Raises:
        PromptError: the bundle does not say.
    """
    if text.tools is None:
        raise PromptError(
            "this bundle was built without tools, or for a model that knows none. Build it again: ossicle build CHECKPOINT"
        )
    return text.tools


def check_language(language: Any) -> None:
    """Refuse what is neither None nor a code of two letters.

    Raises:
        PromptError: it is not.
    """
    if language is not None and not (isinstance(language, str) and re.fullmatch(r"[a-z]{2}", language)):
        raise PromptError(f"language {language!r} is not possible (it can be: a code of two letters, such as 'en').")


class Prompts:
    """Writes the prompts of one bundle."""

    def __init__(self, tokenizer: Tokenizer, text: TextFormat, tokens_per_window: int, context: int) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._tokens_per_window = tokens_per_window
        self._context = context

    def transcription(self, windows: int, language: str | None = None) -> list[int]:
        """Ids that ask for the words of a clip of so many windows; `language` is a code of two letters."""
        return self._fitting(self._transcription(windows, language), windows)

    def most_windows(self, language: str | None = None) -> int:
        """Windows of the longest clip whose transcription fits into the context."""
        beside = len(self._ids(self._transcription(0, language)))
        return max(0, self._context - 1 - beside) // self._tokens_per_window

    def chat(self, turns: Sequence[Turn], windows: Sequence[int], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a conversation whose clips, in order, have so many windows each, and in which `tools` may be called."""
        remaining = iter(windows)
        pieces = self._fill(self._text.begin)
        told_at = self._told_at(turns) if tools else -1
        for i, turn in enumerate(turns if self._text.tools is None else _ordered(turns, self._text.tools)):
            if i == told_at:
                pieces += self._fill(tool_format(self._text).available, tools=[definitions(tools)])
            pieces += self._turn(turn, remaining)
        return self._fitting(pieces, sum(windows))

    def _told_at(self, turns: Sequence[Turn]) -> int:
        """The turn that the tools stand before."""
        users = [i for i, turn in enumerate(turns) if turn.role == "user"]
        if not users:
            raise PromptError("tools need a message of role 'user', and the conversation has none.")
        return users[0] if tool_format(self._text).before == "first" else users[-1]

    def _turn(self, turn: Turn, windows: Iterator[int]) -> list[Piece]:
        content: list[Piece] = []
        for part in turn.parts:
            if not isinstance(part, ToolCall):
                content += self._clip(next(windows)) if isinstance(part, Clip) else [part]
        if turn.role == "tool":
            return self._fill(tool_format(self._text).result, content=content, id=[turn.call])
        if called := calls(turn):
            content += self._calls(called, tool_format(self._text))
        return self._fill(getattr(self._text, turn.role), content=content)

    def _calls(self, called: Sequence[ToolCall], form: ToolFormat) -> list[Piece]:
        pieces: list[Piece] = []
        for i, call in enumerate(called):
            pieces += self._fill(form.between) if i else []
            pieces += self._fill(form.call, name=[call.name], id=[call.id], arguments=[call.arguments])
        return self._fill(form.calls, calls=pieces)

    def _transcription(self, windows: int, language: str | None) -> list[Piece]:
        check_language(language)
        template = self._text.transcribe if language is None else self._text.transcribe_language
        pieces = self._fill(template, audio=self._clip(windows), language=[language or ""])
        return [*self._fill(self._text.begin), *pieces]

    def _clip(self, windows: int) -> list[Piece]:
        tokens: list[Piece] = [self._text.audio_token] * (self._tokens_per_window * windows)
        return self._fill(self._text.audio, audio=tokens)

    def _fill(self, template: str, **slots: list[Piece]) -> list[Piece]:
        pieces: list[Piece] = []
        # Of what split gives back, every second entry is the name of a slot.
        for i, part in enumerate(_SLOT.split(template)):
            pieces += slots[part] if i % 2 else self._tokenizer.pieces(part)
        return pieces

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


def _ordered(turns: Sequence[Turn], form: ToolFormat) -> Sequence[Turn]:
    """Turns with the results of calls in the order of the calls, where the model has them so."""
    if not form.results_in_order:
        return turns
    ordered: list[Turn] = []
    for role, neighbours in groupby(turns, key=lambda turn: turn.role):
        run = list(neighbours)
        if role == "tool":
            ids = [call.id for call in calls(ordered[-1])]
            run.sort(key=lambda turn: ids.index(turn.call))
        ordered += run
    return ordered
