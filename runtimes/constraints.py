"""Answers held to a language: a mask over the vocabulary before every token, by llguidance.

Source: https://github.com/guidance-ai/llguidance
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, PromptError
from ..targets.manifest import TextFormat
from .languages import Language, arguments_schema, calls_language, calls_marker
from .prompt import tool_format
from .tokens import Tokenizer
from .tools import Choice

# A vocabulary of 131072 tokens takes some seconds to prepare.
_prepared: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


class Vocabulary:
    """A tokenizer as llguidance asks for it.

    It could read tokenizer.json itself, but would take the name of a special token in a text for that token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: int) -> None:
        self.tokens = tokenizer.bytes_of_tokens()
        self.special_token_ids = sorted(tokenizer.specials.values())
        self.eos_token_id, self.bos_token_id = stop, None
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Rules:
    """What every answer to one question may be; `start` gives each answer a state of its own.

    `text` is the language of a text, None: any. With a `choice`, calls of its tools may come instead of a text or, where
    any text will do, behind one. `stop` are the tokens that end an answer: allowed where it may end, nowhere else.

    Raises:
        PromptError: a language cannot be used, or the bundle knows no tools.
        EngineError: llguidance is not installed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: TextFormat,
        stop: Iterable[int],
        *,
        text: Language | None = None,
        choice: Choice | None = None,
    ) -> None:
        self._prepared = _prepare(tokenizer, format) if text or choice else None
        self.vocabulary = format.vocabulary
        self.stop = _within(format.vocabulary, stop)
        self.specials = _within(format.vocabulary, tokenizer.specials.values())
        self.marker: int | None = None
        self.forced = choice is not None and choice.forced
        self.calls: Any = None
        if choice is not None:
            form = tool_format(format)
            self.marker = calls_marker(tokenizer, form)
            if choice.tools:
                self.calls = self._calls(calls_language(tokenizer, form, choice), choice)
        self.text = self._matcher(text) if text else None
        self.start().allowed()

    def start(self) -> "Constraint":
        """What holds before the first token of an answer."""
        return Constraint(self)

    def _calls(self, language: Language, choice: Choice) -> Any:
        try:
            return self._matcher(language)
        except PromptError:
            # llguidance does not say in which of them the fault lies
            for tool in choice.tools:
                self._matcher(Language(f"the parameters of tool '{tool.name}'", "json", arguments_schema(tool)))
            raise

    def _matcher(self, language: Language) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._prepared, _grammar(language), log_level=0)
        if not matcher.is_error():
            return matcher
        reason = " ".join(str(matcher.get_error()).split())
        where = _place(json.loads(language.source)) if language.kind == "json" else ""
        raise PromptError(f"{language.what} cannot be used: {reason}{where}.")


class Constraint:
    """What one answer may go on with."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._begun = False
        self.calling = rules.forced
        prototype = rules.calls if rules.forced else rules.text
        self._matcher: Any = None if prototype is None else prototype.deep_copy()

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher is not None and bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which tokens may come next, bool [vocabulary]; None where all may.

        Raises:
            PromptError: none may.
        """
        rules = self._rules
        if self._matcher is None:
            return None if rules.marker is None or rules.calls is not None else _all_but(rules.vocabulary, rules.marker)
        allowed = self._mask()
        if not self.calling:
            allowed[rules.specials] = False
        allowed[rules.stop] = self._matcher.is_accepting()
        if not (self.calling or self._begun or rules.calls is None):
            allowed[rules.marker] = True
        if not allowed.any():
            raise PromptError(
                "the grammar allows no token here that the tokenizer has. Give one that it can be written in."
            )
        return allowed

    def add(self, token: int) -> None:
        """Go on with a token.

        Raises:
            EngineError: it was not allowed, or the language is too complex to go on.
        """
        if token == self._rules.marker and self._rules.calls is not None and not self.calling:
            self.calling, self._matcher = True, self._rules.calls.deep_copy()
        self._begun = True
        if self._matcher is not None and not self._matcher.consume_token(token):
            raise EngineError(f"the answer cannot go on: {self._matcher.get_error()}.")

    def _mask(self) -> NDArray[np.bool_]:
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise EngineError(f"the answer cannot go on: {self._matcher.get_error()}.")
        # A model may have more tokens than its tokenizer, and masks are padded to whole words.
        allowed = np.zeros(self._rules.vocabulary, bool)
        known = min(len(bits), self._rules.vocabulary)
        allowed[:known] = bits[:known]
        return allowed


def _prepare(tokenizer: Tokenizer, format: TextFormat) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise EngineError(
            'schemas, grammars and tools need llguidance. Install it with: pip install "ossicle[grammar]"'
        ) from None
    if tokenizer not in _prepared:
        _prepared[tokenizer] = LLTokenizer(TokenizerWrapper(Vocabulary(tokenizer, format.stop_tokens[0])))
    return _prepared[tokenizer]


def _grammar(language: Language) -> str:
    from llguidance import LLMatcher

    written = {
        "json": LLMatcher.grammar_from_json_schema,
        "lark": LLMatcher.grammar_from_lark,
        "regex": LLMatcher.grammar_from_regex,
    }
    return str(written[language.kind](language.source))


def _place(schema: Mapping[str, Any]) -> str:
    """Where in a schema that llguidance refuses the fault lies: the innermost part that it refuses by itself."""
    from llguidance import LLMatcher

    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, inner = "", schema
    while True:
        for step, part in _parts(inner):
            if LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps({**shared, **part}))):
                path, inner = f"{path}/{step}", part
                break
        else:
            return f" (at '#{path}')" if path else ""


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if isinstance(named := schema.get(key), Mapping):
            yield from ((f"{key}/{name}", part) for name, part in named.items() if isinstance(part, Mapping))
    for key in ("items", "additionalProperties"):
        if isinstance(part := schema.get(key), Mapping):
            yield key, part
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        if isinstance(several := schema.get(key), list):
            yield from ((f"{key}/{i}", part) for i, part in enumerate(several) if isinstance(part, Mapping))


def _within(vocabulary: int, tokens: Iterable[int]) -> list[int]:
    return sorted({token for token in tokens if 0 <= token < vocabulary})


def _all_but(vocabulary: int, token: int) -> NDArray[np.bool_]:
    allowed = np.ones(vocabulary, bool)
    allowed[token] = False
    return allowed
