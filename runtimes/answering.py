"""Prompts ready for the decoder -> replies, whole or piece by piece."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from hashlib import blake2b
from time import perf_counter

import numpy as np

from ..targets.manifest import TextFormat
from .adapters import adapted
from .base import Engine
from .constraints import Rules
from .generate import Decoding, Row, Settings, decoding, grow, start_row
from .languages import calls_marker
from .preparing import Prepared
from .replies import Reply, Timings
from .tokens import Tokenizer
from .tools import Tool, ToolCall, ToolChoice, read_calls, read_choice


class Answerer:
    """Answers prompts with the engine that `engine` gives, in a context of so many tokens."""

    def __init__(self, text: TextFormat, tokenizer: Tokenizer, context: int, engine: Callable[[], Engine]) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._context = context
        self._engine = engine

    def how(
        self, settings: Settings, tools: Sequence[Tool] = (), choice: ToolChoice = "auto", *, several: bool = True
    ) -> Decoding:
        """The settings of an answer, with the rules that they and the tools set for its tokens."""
        how, chosen = decoding(**settings), read_choice(choice, tools, several=several)
        self._adapted(how)  # refused before any work is done
        if how.language is None and not tools:
            return how
        text = self._text
        stop = (*text.stop_tokens, *how.stop_tokens)
        rules = Rules(self._tokenizer, text, stop, text=how.language, choice=chosen if tools else None)
        return replace(how, rules=rules)

    def _adapted(self, how: Decoding) -> Engine:
        """The engine with the adapters of an answer."""
        return adapted(self._engine(), how.adapters)

    def _row(self, prepared: Prepared, how: Decoding, number: int) -> Row:
        text = self._text
        return start_row(
            self._tokenizer,
            how,
            prepared.ids,
            context=self._context,
            stop=text.stop_tokens,
            vocabulary=text.vocabulary,
            row=number,
        )

    def pieces(self, prepared: Prepared, how: Decoding, number: int = 0) -> Generator[str, None, Reply]:
        """The reply to a prompt, its text piece by piece; `number` is that of the prompt among all of the caller's."""
        how.check_wanted()
        engine, row, started = self._adapted(how), self._row(prepared, how, number), perf_counter()
        logits, state = engine.prefill([prepared.embeddings])
        known, prefilled = state.known, perf_counter()
        for _, piece in grow(engine, [row], logits, state):
            if piece:
                yield piece
        return self._reply(prepared, row, prefilled - started, perf_counter() - prefilled, known)

    def answer(self, batch: Sequence[Prepared], how: Decoding, first: int = 0) -> list[Reply]:
        """Answers of prompts decoded together; `first` is the number of the first among all of the caller's."""
        engine, rows = self._adapted(how), [self._row(prepared, how, first + i) for i, prepared in enumerate(batch)]
        started = perf_counter()
        logits, state = engine.prefill([prepared.embeddings for prepared in batch])
        known, prefilled = state.known, perf_counter()
        for _ in grow(engine, rows, logits, state):
            pass
        prefill, decode = prefilled - started, perf_counter() - prefilled
        return [
            self._reply(prepared, row, prefill * share, decode * part, known)
            for prepared, row, share, part in zip(
                batch,
                rows,
                _shares([len(prepared.ids) for prepared in batch]),
                _shares([len(row.tokens) for row in rows]),
                strict=True,
            )
        ]

    def _reply(self, prepared: Prepared, row: Row, prefill: float, decode: float, known: int) -> Reply:
        timings = Timings(prepared.audio_seconds, prepared.seconds, prefill, decode, len(row.tokens))
        return Reply(
            "".join(row.pieces),
            tuple(row.tokens),
            self._engine().name,
            row.finish or "stop",
            timings,
            prompt_tokens=len(prepared.ids),
            audio_tokens=prepared.ids.count(self._text.audio_token),
            cached_tokens=known,
            tool_calls=self._calls(prepared, row),
        )

    def _calls(self, prepared: Prepared, row: Row) -> tuple[ToolCall, ...]:
        form = self._text.tools
        if form is None or not row.calling:
            return ()
        begin = row.tokens.index(calls_marker(self._tokenizer, form))
        seed = blake2b(np.asarray((*prepared.ids, *row.tokens), np.int64).tobytes()).digest()
        return read_calls(self._tokenizer.decode(row.tokens[begin:], specials=True), form, seed)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]
