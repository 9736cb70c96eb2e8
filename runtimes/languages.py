"""What an answer may be, as grammars: a JSON schema, Lark, a regular expression, or calls of functions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..targets.contract import PromptError
from ..targets.manifest import ToolFormat
from .tokens import Tokenizer, is_unicode
from .tools import CALL_ID, SLOT, Choice, Tool

FORMATS = ("text", "json_object", "json_schema")
_EXACT = 2**53  # the largest integer up to which float64 has every one
# JSON as Python's `json` writes it, and as models are trained on it; a model cannot lose itself in white space.
_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Where one of these stands beside its properties, a schema may mean to have others too.
_OPEN = {
    "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "minProperties",
    "anyOf", "oneOf", "allOf", "$ref", "if", "not",
}  # fmt: skip


@dataclass(frozen=True)
class Language:
    """A set of texts. `what` names it in errors."""

    what: str
    kind: Literal["json", "lark", "regex"]
    source: str  # a JSON schema, a grammar in llguidance's dialect of Lark, or a regular expression


def text_language(response_format: Any = None, grammar: Any = None, regex: Any = None) -> Language | None:
    """The language of a text, of which at most one may be said; None of any text.

    Raises:
        PromptError: several are said, or one is of the wrong form.
    """
    given = {"response_format": response_format, "grammar": grammar, "regex": regex}
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise PromptError(f"settings {', '.join(said)} exclude each other. Give one of them.")
    for name, kind in (("grammar", "lark"), ("regex", "regex")):
        if (value := given[name]) is not None:
            if not isinstance(value, str) or not value or not is_unicode(value):
                raise PromptError(
                    f"{name} {value!r} is not possible (it can be: a text that is not empty, in Unicode)."
                )
            return Language(f"the {name}", "lark" if kind == "lark" else "regex", value)
    return None if response_format is None else _formatted(response_format)


def calls_language(tokenizer: Tokenizer, form: ToolFormat, choice: Choice) -> Language:
    """The calls of functions that an answer may end in, special tokens among them."""
    several = f" ({_terms(tokenizer, form.between)} call)*" if choice.several else ""
    lines = [
        f"start: {_terms(tokenizer, form.calls, calls='calls')}",
        f"calls: call{several}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(choice.tools))),
        f"CALL_ID: /{CALL_ID.pattern}/",
    ]
    for i, tool in enumerate(choice.tools):
        slots = {"name": json.dumps(tool.name), "id": "CALL_ID", "arguments": f"arguments_{i}"}
        spelled = {_terms(tokenizer, template, **slots): None for template in (form.call, form.call_without_id)}
        lines += [f"call_{i}: {' | '.join(spelled)}", f"arguments_{i}: %json {arguments_schema(tool)}"]
    return Language("the tools", "lark", "\n".join(lines) + "\n")


def calls_marker(tokenizer: Tokenizer, form: ToolFormat) -> int:
    """The special token with which calls begin.

    Raises:
        PromptError: the tokenizer has none for it.
    """
    first, marker = [*tokenizer.pieces(form.calls.replace("{calls}", form.call)), ""][:2]
    if first or not isinstance(marker, int):
        raise PromptError("the tokenizer of this bundle has no token for calls of tools. Build it again: ossicle build")
    return marker


def arguments_schema(tool: Tool) -> str:
    """The schema of a function's arguments; of a function without one, of no arguments."""
    return _schema({"type": "object", **(tool.parameters or {"properties": {}})})


def _formatted(response_format: Any) -> Language | None:
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Language("response_format", "json", _schema({"type": "object"}))
    if kind != "json_schema":
        raise PromptError(
            f"response_format {kind or response_format!r} is not possible (it can be: {', '.join(FORMATS)})."
        )
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping | bool):
        raise PromptError(
            "response_format has no schema (it can be: "
            '{"type": "json_schema", "json_schema": {"name": NAME, "schema": JSON SCHEMA}}).'
        )
    return Language("the schema of response_format", "json", _schema(schema if isinstance(schema, Mapping) else {}))


def _terms(tokenizer: Tokenizer, template: str, **slots: str) -> str:
    """A template as a sequence in Lark."""
    terms: list[str] = []
    for i, part in enumerate(SLOT.split(template)):
        if i % 2:
            terms.append(slots[part])
            continue
        pieces = [piece for piece in tokenizer.pieces(part) if piece != ""]
        terms += [f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece) for piece in pieces]
    return " ".join(terms)


def _schema(schema: Mapping[str, Any]) -> str:
    """A schema for llguidance, with how its JSON is written.

    Raises:
        PromptError: it is no JSON, or has a number that would be rounded.
    """
    try:
        if (number := next(_rounded(schema), None)) is not None:
            raise PromptError(
                f"a schema has the number {number}, which would be rounded (it can be: up to 2^53 either way)."
            )
        return json.dumps({**(schema if _composed(schema) else closed(schema)), "x-guidance": _WRITTEN})
    except (TypeError, ValueError, RecursionError) as reason:
        raise PromptError(f"a schema is no JSON: {reason}.") from reason


def _rounded(schema: Any) -> Iterator[int]:
    """Integers that are none of float64's, which is what llguidance takes numbers for."""
    if isinstance(schema, Mapping):
        for part in schema.values():
            yield from _rounded(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from _rounded(part)
    elif isinstance(schema, int) and abs(schema) > _EXACT:
        yield schema


def closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those they list, wherever it does not say that they may."""
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(named := found.get(key), Mapping):
            found[key] = {name: closed(value) for name, value in named.items()}
    if "items" in found:
        found["items"] = closed(found["items"])
    if "properties" not in found:
        for key in ("anyOf", "oneOf"):
            if isinstance(several := found.get(key), Sequence):
                found[key] = [closed(one) for one in several]
    elif not _OPEN & set(found) and set(found.get("required") or ()) <= set(found["properties"]):
        found["additionalProperties"] = False
    return found


def _composed(schema: Any) -> bool:
    """Whether it adds schemas to each other: what is closed could then not be added to."""
    if isinstance(schema, Mapping):
        if "allOf" in schema or {"$ref", "properties"} <= set(schema):
            return True
        return any(map(_composed, schema.values()))
    return isinstance(schema, list) and any(map(_composed, schema))
