"""Conversations, as a caller writes them -> turns.

A message is {"role": "system" | "user" | "assistant" | "tool", "content": TEXT or PARTS}; a part is {"type": "text",
"text": TEXT}, {"type": "audio", "audio": RECORDING, "rate": HERTZ of an array of samples}, where "path" may stand for
"audio", or {"type": "input_audio", "input_audio": {"data": BASE64 of a file}}. A message of the assistant may have
"tool_calls", [{"id": ID, "function": {"name": NAME, "arguments": JSON}}], each of which a message of role "tool" with
that "tool_call_id" answers. Neighbouring messages of one role are one turn, and neighbouring texts are joined by an
empty line, as mistral-common does; each result, and each message of the system, stays a turn of its own.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..targets.contract import PromptError
from .tools import CALL_ID, NAME, ToolCall

ROLES = ("system", "user", "assistant", "tool")
PARTS = ("text", "audio", "input_audio")


@dataclass(frozen=True)
class Clip:
    """A recording in a conversation: whatever `load_audio` takes, and the rate of an array of samples in Hz."""

    source: Any
    rate: int | None = None


@dataclass(frozen=True)
class Turn:
    """What one role says before another does: texts, clips and calls in order. `call`: whose result it is."""

    role: str
    parts: tuple[str | Clip | ToolCall, ...]
    call: str = ""


def read_messages(messages: Any) -> tuple[Turn, ...]:
    """The turns of a conversation.

    Raises:
        PromptError: listing everything in it that cannot be followed.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise PromptError('a conversation is a list of messages such as {"role": "user", "content": "Hello"}.')
    faults: list[str] = []
    turns = [turn for i, message in enumerate(messages) if (turn := _turn(message, f"message {i}", faults))]
    if turns and turns[-1].role not in ("user", "tool"):
        faults.append(f"the last message is of role '{turns[-1].role}' (it can be: user, tool)")
    merged = _merged(turns)
    if not faults:
        faults += _unanswered(merged)
    if faults:
        raise PromptError("the conversation cannot be followed: " + "; ".join(faults) + ".")
    return merged


def clips(turns: Iterable[Turn]) -> tuple[Clip, ...]:
    """Every recording of a conversation, in order."""
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, Clip))


def calls(turn: Turn) -> tuple[ToolCall, ...]:
    """The functions that a turn calls, in order."""
    return tuple(part for part in turn.parts if isinstance(part, ToolCall))


def _turn(message: Any, place: str, faults: list[str]) -> Turn | None:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        faults.append(f"{place} is of role {role!r} (it can be: {', '.join(ROLES)})")
        return None
    call = message.get("tool_call_id", "") if role == "tool" else ""
    if role == "tool" and not call:
        faults.append(f"{place} is a result without a call (it can have: tool_call_id)")
    called = _read_calls(message.get("tool_calls") or (), role, place, faults)
    content = message.get("content")
    if (role == "tool" and content == "") or (called and content in (None, "")):
        return Turn(role, tuple(called), call)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        faults.append(f"{place} has no content (it can be: a text, or a list of text and audio parts)")
        return None
    parts = [_read_part(part, role, f"part {i} of {place}", faults) for i, part in enumerate(content)]
    return Turn(role, (*(part for part in parts if part is not None), *called), call)


def _read_calls(entries: Any, role: str, place: str, faults: list[str]) -> list[ToolCall]:
    if entries and (role != "assistant" or not isinstance(entries, Sequence)):
        faults.append(f"{place} has tool_calls that cannot be (they can be: a list, in messages of role 'assistant')")
        return []
    read = [_read_call(entry, f"call {i} of {place}", faults) for i, entry in enumerate(entries)]
    return [call for call in read if call is not None]


def _read_call(entry: Any, place: str, faults: list[str]) -> ToolCall | None:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping):
        faults.append(f"{place} names no function")
        return None
    id, name, arguments = entry.get("id"), function.get("name"), _arguments(function.get("arguments"))
    if not isinstance(id, str) or not CALL_ID.fullmatch(id):
        faults.append(f"{place} has id {id!r} (it can be: 9 letters and digits, such as the calls of a reply have)")
    elif not isinstance(name, str) or not NAME.fullmatch(name):
        faults.append(f"{place} has name {name!r} (it can be: up to 64 letters, digits, '_' and '-')")
    elif arguments is None:
        faults.append(f"{place} has arguments that are no object in JSON")
    else:
        return ToolCall(id, name, arguments)
    return None


def _arguments(given: Any) -> str | None:
    """Arguments spelled as mistral-common does; None of what is no JSON object."""
    try:
        read = json.loads(given) if isinstance(given, str) and given else given or {}
        return json.dumps(read, ensure_ascii=False) if isinstance(read, Mapping) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _read_part(part: Any, role: str, place: str, faults: list[str]) -> str | Clip | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str) and part["text"]:
        return str(part["text"])
    if kind == "input_audio":
        source = _decoded(part.get("input_audio"))
    else:
        source = part.get("audio", part.get("path")) if kind == "audio" else None
    if source is not None and role == "user":
        return Clip(source, part.get("rate"))
    faults.append(_fault(kind, role, source, place))
    return None


def _decoded(audio: Any) -> bytes | None:
    """The file in an OpenAI part; None where there is none."""
    data = audio.get("data") if isinstance(audio, Mapping) else None
    if not isinstance(data, str) or not data:
        return None
    try:
        return base64.b64decode(data.rpartition("base64,")[2], validate=True)
    except (ValueError, binascii.Error):
        return None


def _fault(kind: Any, role: str, source: Any, place: str) -> str:
    if kind == "text":
        return f"{place} holds no text"
    if kind not in PARTS:
        return f"{place} is of type {kind!r} (it can be: {', '.join(PARTS)})"
    if source is None:
        held = "a file in base64 under 'input_audio', 'data'" if kind == "input_audio" else "under 'audio' or 'path'"
        return f"{place} holds no recording ({held})"
    return f"{place} is audio in a message of role '{role}' (it can be in: user)"


def _merged(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    merged: list[Turn] = []
    for role, neighbours in groupby(turns, key=lambda turn: turn.role):
        if role in ("tool", "system"):
            merged += [Turn(role, tuple(_joined(turn.parts)), turn.call) for turn in neighbours]
            continue
        run = list(neighbours)
        said = [part for turn in run for part in turn.parts if not isinstance(part, ToolCall)]
        parts = _joined(said)
        if role == "assistant":
            parts = [part.rstrip(" ") if isinstance(part, str) else part for part in parts]
        merged.append(Turn(role, (*parts, *(call for turn in run for call in calls(turn)))))
    return tuple(merged)


def _joined(parts: Iterable[str | Clip | ToolCall]) -> list[str | Clip | ToolCall]:
    joined: list[str | Clip | ToolCall] = []
    for is_text, neighbours in groupby(parts, key=lambda part: isinstance(part, str)):
        run = list(neighbours)
        joined += ["\n\n".join(map(str, run))] if is_text else run
    return joined


def _unanswered(turns: Sequence[Turn]) -> list[str]:
    """What is wrong with calls and their results: each call is answered once, right behind the turn that calls."""
    faults: list[str] = []
    open_calls: list[str] = []
    for turn in (*turns, Turn("end", ())):
        if turn.role == "tool":
            if turn.call in open_calls:
                open_calls.remove(turn.call)
            else:
                faults.append(f"the result of '{turn.call}' answers no call of the turn before it")
            continue
        faults += [f"call '{id}' has no result (a message of role 'tool' behind it)" for id in open_calls]
        open_calls = [call.id for call in calls(turn)]
    return faults
