"""Protocol buffers, read by a table of fields: https://protobuf.dev/programming-guides/encoding.

A message comes back as a dictionary of the fields that are there, repeated ones always as lists, maps as dictionaries.
Core ML's own reader is a package that imports torch where it finds one, and a program's file needs a handful of messages.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Message = dict[str, Any]
_DEPTH = 64  # messages within messages
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Field:
    """A field of a message: its name, whether it is "one", a "list" or a "map", and a scalar's or a message's name."""

    name: str
    count: str
    kind: str


Schema = Mapping[str, Mapping[int, Field]]
_KEY = Field("key", "one", "string")


def schema(**messages: Mapping[int, str]) -> Schema:
    """A table of messages, each field written as "name kind", "name list kind" or "name map kind"."""
    return {name: {number: _field(text) for number, text in fields.items()} for name, fields in messages.items()}


def decode(data: bytes, messages: Schema, name: str) -> Message:
    """The message that bytes hold.

    Raises:
        ValueError: they hold none: truncated, or not of this form.
    """
    return _message(memoryview(data), messages, messages[name], 0)


def _field(text: str) -> Field:
    name, *count, kind = text.split()
    return Field(name, count[0] if count else "one", kind)


def _message(data: memoryview, messages: Schema, fields: Mapping[int, Field], depth: int) -> Message:
    if depth > _DEPTH:
        raise ValueError(f"messages are nested deeper than {_DEPTH}")
    result: Message = {
        entry.name: {} if entry.count == "map" else [] for entry in fields.values() if entry.count != "one"
    }
    for number, wire, payload in _payloads(data):
        if entry := fields.get(number):
            _store(result, entry, wire, payload, messages, depth)
    return result


def _store(result: Message, entry: Field, wire: int, payload: Any, messages: Schema, depth: int) -> None:
    if entry.kind in _SCALARS:
        values = _scalars(entry, wire, payload)
        if entry.count == "list":
            result[entry.name] += values
        elif values:
            result[entry.name] = values[-1]
        return
    if wire != _BYTES:
        raise ValueError(f"field '{entry.name}' is no message")
    if entry.count == "map":
        pair = _pair(payload, messages, entry.kind, depth + 1)
        result[entry.name][pair["key"]] = pair["value"]
        return
    value = _message(payload, messages, messages[entry.kind], depth + 1)
    if entry.count == "list":
        result[entry.name].append(value)
    else:
        result[entry.name] = value


def _pair(data: memoryview, messages: Schema, kind: str, depth: int) -> Message:
    """An entry of a map: a message of a key and a value, empty ones where they are left out."""
    pair = _message(data, messages, {1: _KEY, 2: Field("value", "one", kind)}, depth)
    empty = {
        "key": "",
        "value": None if "value" in pair else _message(memoryview(b""), messages, messages[kind], depth),
    }
    return empty | pair


def _payloads(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and payload of each field: an int, or the bytes of what is not one."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire, size = tag & 7, {_FIXED64: 8, _FIXED32: 4}.get(tag & 7, 0)
        if wire == _VARINT:
            payload, at = _varint(data, at)
            yield tag >> 3, wire, payload
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif not size:
            raise ValueError(f"wire type {wire} is unknown")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes is cut off after {len(data) - at}")
        yield tag >> 3, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is cut off")


def _scalars(entry: Field, wire: int, payload: Any) -> list[Any]:
    """The values that a field holds: one, or all of a packed list."""
    expected, read = _SCALARS[entry.kind]
    if wire == expected:
        return [read(payload)]
    if wire != _BYTES or entry.count != "list":
        raise ValueError(f"field '{entry.name}' is no {entry.kind}")
    return list(_packed(payload, expected, read))


def _packed(data: memoryview, wire: int, read: Callable[[Any], Any]) -> Iterator[Any]:
    at = 0
    while at < len(data):
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield read(value)
        else:
            size = 8 if wire == _FIXED64 else 4
            yield read(data[at : at + size])
            at += size


def _signed(value: int) -> int:
    """Negative numbers are written as of 64 bits, whatever their type."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_SCALARS: Mapping[str, tuple[int, Callable[[Any], Any]]] = {
    "int": (_VARINT, _signed),
    "bool": (_VARINT, bool),
    "string": (_BYTES, lambda data: bytes(data).decode("utf-8")),
    "bytes": (_BYTES, bytes),
    "float": (_FIXED32, lambda data: float(np.frombuffer(data, "<f4", 1)[0])),
    "double": (_FIXED64, lambda data: float(np.frombuffer(data, "<f8", 1)[0])),
}
