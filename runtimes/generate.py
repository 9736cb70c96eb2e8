"""Prompts -> answers: one token at a time for a batch of sequences, each of which ends by itself."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, Unpack, cast

import numpy as np

from ..kernels.sampling import Chooser, Sampling
from ..targets.contract import Cancelled, EngineError, Float32, PromptError
from .base import Engine, Sequences
from .constraints import Constraint, Rules
from .languages import Language, text_language
from .tokens import GrowingText, Tokenizer

Finish = Literal["stop", "length", "tool_calls"]
MAX_TOKENS = 1024
_SAMPLING = {setting.name for setting in fields(Sampling)}


class Settings(TypedDict, total=False):
    """What a caller may say about an answer; all optional."""

    max_tokens: int  # at most so many tokens; fewer where the context ends first
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]  # the answer ends before any of these texts
    stop_tokens: Sequence[int]  # beside those of the model
    response_format: Mapping[
        str, Any
    ]  # OpenAI's: {"type": "text" | "json_object" | "json_schema", "json_schema": {..}}
    grammar: str  # the answer is of this language: Lark in llguidance's dialect
    regex: str  # the whole answer matches
    adapters: Mapping[str, float]  # added at run time, by name, and how much of each; {}: none, whatever was loaded
    cancelled: Callable[[], bool]  # asked before each window of audio and each token; true: give up, by Cancelled


@dataclass(frozen=True)
class Decoding:
    """How an answer is found and where it ends."""

    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    stop_tokens: tuple[int, ...]
    cancelled: Callable[[], bool] | None = None
    language: Language | None = None  # of the answer; None: any text
    rules: Rules | None = None  # what that means for the tokens of a model
    adapters: Mapping[str, float] | None = None  # None: those that the bundle was loaded with

    def check_wanted(self) -> None:
        """Go on only if the caller still wants the answer.

        Raises:
            Cancelled: it does not.
        """
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("the answer is not wanted any more.")


def decoding(**settings: Unpack[Settings]) -> Decoding:
    """The settings, checked; greedy where nothing else is said, and None says nothing.

    Raises:
        PromptError: one is unknown or outside its range.
    """
    if unknown := sorted(set(settings) - set(Settings.__annotations__)):
        possible = ", ".join(Settings.__annotations__)
        raise PromptError(f"settings {', '.join(unknown)} are unknown (they can be: {possible}).")
    settings = cast(Settings, {name: value for name, value in settings.items() if value is not None})
    _check_kinds(settings)
    most = settings.get("max_tokens", MAX_TOKENS)
    if most < 1:
        raise PromptError(f"max_tokens {most} is not possible (it can be: above 0).")
    stop = settings.get("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise PromptError("stop '' is not possible (it can be: texts that are not empty).")
    return Decoding(
        _sampling(settings),
        most,
        stops,
        tuple(settings.get("stop_tokens", ())),
        settings.get("cancelled"),
        text_language(settings.get("response_format"), settings.get("grammar"), settings.get("regex")),
        adapters=_adapters(settings.get("adapters")),
    )


def _check_kinds(settings: Settings) -> None:
    for name, value in settings.items():
        is_kind, possible = _KINDS.get(name, (_any, ""))
        if not is_kind(value):
            raise PromptError(f"{name} {value!r:.60} is not possible (it can be: {possible}).")


def _any(_: Any) -> bool:
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Collection) and all(isinstance(one, str) for one in value))


def _is_ids(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes) and all(map(_is_whole, value))


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("max_tokens", "top_k", "seed"), (_is_whole, "a whole number")),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), (_is_number, "a number")),
    "stop": (_is_texts, "a text, or a list of texts"),
    "stop_tokens": (_is_ids, "a list of tokens' ids"),
    "cancelled": (callable, "a function without arguments"),
}


def _sampling(settings: Settings) -> Sampling:
    drawn: dict[str, Any] = {name: value for name, value in settings.items() if name in _SAMPLING}
    try:
        return Sampling(**drawn)
    except ValueError as reason:
        raise PromptError(f"{reason}.") from reason


def _adapters(adapters: Any) -> Mapping[str, float] | None:
    if adapters is None:
        return None
    if not isinstance(adapters, Mapping) or not all(isinstance(one, int | float) for one in adapters.values()):
        raise PromptError(f'adapters {adapters!r:.60} are not possible (they can be, for example: {{"name": 0.8}}).')
    return {str(name): float(scale) for name, scale in adapters.items()}


@dataclass
class Row:
    """One sequence while it grows."""

    how: Decoding
    chooser: Chooser
    text: GrowingText
    most: int  # tokens
    stop_tokens: frozenset[int]
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, logits: Float32) -> str:
        """Choose the next token; the text that it makes certain."""
        self.how.check_wanted()
        token = self.chooser.choose(logits, self.constraint.allowed() if self.constraint else None)
        if token in self.stop_tokens:
            return self._finish("stop", "")
        self.tokens.append(token)
        if self.constraint:
            self.constraint.add(token)
        piece = "" if self.calling else self.text.add(token)
        if self.text.stopped or (self.constraint and self.constraint.ended):
            return self._finish("stop", piece)
        if len(self.tokens) >= self.most:
            return self._finish("length", piece)
        return self._show(piece)

    @property
    def calling(self) -> bool:
        """Whether it calls functions by now: what it says is no text any more."""
        return self.constraint is not None and self.constraint.calling

    def _finish(self, why: Finish, piece: str) -> str:
        rest = self.text.finish()
        self.finish = "stop" if self.text.stopped else "tool_calls" if self.calling and why == "stop" else why
        return self._show(piece + rest)

    def _show(self, piece: str) -> str:
        self.pieces.append(piece)
        return piece


def start_row(
    tokenizer: Tokenizer,
    how: Decoding,
    ids: Sequence[int],
    *,
    context: int,
    stop: Sequence[int],
    vocabulary: int,
    row: int,
) -> Row:
    """A sequence about to grow behind a prompt of these ids; `stop` are the model's own stop tokens."""
    return Row(
        how,
        Chooser(how.sampling, vocabulary, ids, row),
        GrowingText(tokenizer, how.stop),
        min(how.max_tokens, context - len(ids)),
        frozenset((*stop, *how.stop_tokens)),
        how.rules.start() if how.rules else None,
    )


def grow(engine: Engine, rows: Sequence[Row], logits: Float32, state: Sequences) -> Iterator[tuple[int, str]]:
    """Let every row grow to its end, in one batch that shrinks; gives each row's number and piece of text as it comes.

    Raises:
        EngineError: the engine gives logits that are no numbers.
    """
    active = list(range(len(rows)))
    while active:
        if not np.isfinite(logits.max(axis=1)).all():
            raise EngineError(f"engine '{engine.name}' gave logits that are no numbers. Check it with: ossicle verify")
        for place, row in enumerate(active):
            yield row, rows[row].add(logits[place])
        places = [place for place, row in enumerate(active) if rows[row].finish is None]
        if not places:
            return
        if len(places) < len(active):
            state = engine.keep(state, places)
        active = [active[place] for place in places]
        logits, state = engine.step(state, np.array([rows[row].tokens[-1] for row in active], np.int64))
