"""The fields of a request as data: read from forms and JSON alike, every fault told at once, described in OpenAPI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from .errors import ApiError

Kind = Literal["text", "number", "integer", "flag", "list", "object", "any"]
_TYPES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "integer": (int,),
    "flag": (bool,),
    "list": (list,),
    "object": (dict,),
    "any": (object,),
}
_SCHEMAS = {"text": "string", "flag": "boolean", "list": "array"}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Field:
    """One field: what it holds, what it is for, and which values are possible (`only`, or from `least` to `most`)."""

    name: str
    kind: Kind
    says: str
    only: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    required: bool = False


def read(fields: Sequence[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a request by name, those that are null left out. Numbers and flags may come as text, as in forms.

    Raises:
        ApiError: 400, listing every field that is unknown, missing or cannot have its value.
    """
    known = {field.name: field for field in fields}
    faults = {name: f"'{name}' is unknown (known: {', '.join(known)})" for name in given if name not in known}
    values: dict[str, Any] = {}
    for name, field in known.items():
        value = _converted(field, given.get(name))
        if value is None:
            if field.required:
                faults[name] = f"'{name}' is missing: {field.says}"
        elif fault := _fault(field, value):
            faults[name] = f"'{name}' {fault}"
        else:
            values[name] = value
    if faults:
        raise ApiError(400, f"the request cannot be followed: {'; '.join(faults.values())}.", None, next(iter(faults)))
    return values


def schema(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of a request of these fields."""
    properties = {field.name: _schema(field) for field in fields}
    required = [field.name for field in fields if field.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(field: Field) -> dict[str, Any]:
    described: dict[str, Any] = {"description": field.says}
    if field.kind != "any":
        described["type"] = _SCHEMAS.get(field.kind, field.kind)
    if field.only:
        described["enum"] = list(field.only)
    bounds = {"minimum": field.least, "maximum": field.most}
    return described | {name: bound for name, bound in bounds.items() if bound is not None}


def _converted(field: Field, value: Any) -> Any:
    if not isinstance(value, str) or field.kind in ("text", "any"):
        return value
    if field.kind == "flag":
        return _FLAGS.get(value.lower(), value)
    try:
        return {"number": float, "integer": int}.get(field.kind, str)(value)
    except ValueError:
        return value


def _fault(field: Field, value: Any) -> str | None:
    types: Any = _TYPES[field.kind]  # Any: what has one of them need not be shown to have it
    is_number = field.kind in ("number", "integer")
    if not isinstance(value, types) or (is_number and isinstance(value, bool)):
        return f"is {_shown(value)} (it can be: {_possible(field)})"
    if field.only and value not in field.only:
        return f"{_shown(value)} is not possible (it can be: {', '.join(map(_shown, field.only))})"
    if not is_number:
        return None
    low = float("-inf") if field.least is None else field.least
    high = float("inf") if field.most is None else field.most
    if not isfinite(value) or not low <= value <= high:
        return f"{value} is not possible (it can be: {_possible(field)})"
    return None


def _possible(field: Field) -> str:
    words = {"text": "a text", "number": "a number", "integer": "a whole number", "flag": "true or false"}
    if field.least is None and field.most is None:
        return words.get(field.kind, f"a JSON {_SCHEMAS.get(field.kind, field.kind)}")
    ends = (f"from {field.least:g}" if field.least is not None else "", f"to {field.most:g}" if field.most else "")
    return " ".join([words[field.kind], *(end for end in ends if end)])


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
