"""Functions that a model may call: as a caller lists them, as the prompt tells them, and as the answer calls them.

A tool is {"type": "function", "function": {"name": NAME, "description": TEXT, "parameters": JSON SCHEMA OF AN OBJECT}}.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from string import ascii_letters, digits
from typing import Any

from ..targets.contract import PromptError
from ..targets.manifest import ToolFormat

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
ToolChoice = str | Mapping[str, Any]
CHOICES = ("auto", "none", "required")
_SLOTS = {"name": NAME.pattern, "id": CALL_ID.pattern}
SLOT = re.compile(r"\{(calls|name|id|arguments)\}")
# Numbers of any length are read past, never computed.
_READER = json.JSONDecoder(parse_int=str, parse_float=str)


@dataclass(frozen=True)
class ToolCall:
    """A call of a function, as the model asks for it."""

    id: str  # 9 letters and digits; the result of the call is given back under it
    name: str
    arguments: str  # JSON, an object that holds to the function's schema


@dataclass(frozen=True)
class Tool:
    """A function that may be called."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # the JSON Schema of its arguments


@dataclass(frozen=True)
class Choice:
    """Which functions an answer may call, and whether it has to."""

    tools: tuple[Tool, ...]
    forced: bool
    several: bool


def read_tools(tools: Any) -> tuple[Tool, ...]:
    """The functions of a caller's list; none of None.

    Raises:
        PromptError: listing everything in it that cannot be followed.
    """
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise PromptError('tools are a list such as [{"type": "function", "function": {"name": "switch"}}].')
    faults: list[str] = []
    read = [tool for i, entry in enumerate(tools) if (tool := _tool(entry, f"tool {i}", faults))]
    names = [tool.name for tool in read]
    faults += [f"name '{name}' is that of several tools" for name in sorted(set(names)) if names.count(name) > 1]
    if faults:
        raise PromptError("the tools cannot be used: " + "; ".join(faults) + ".")
    return tuple(read)


def read_choice(choice: Any, tools: Sequence[Tool], *, several: bool) -> Choice:
    """Which of the tools an answer may call, by OpenAI's `tool_choice`.

    Raises:
        PromptError: it is none of the possible ones.
    """
    names = [tool.name for tool in tools]
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if name in names:
            return Choice((tools[names.index(name)],), forced=True, several=several)
        raise PromptError(
            f"tool_choice names function {name!r} (it can be: {', '.join(names) or 'none without tools'})."
        )
    if choice not in CHOICES:
        raise PromptError(
            f"tool_choice {choice!r} is not possible (it can be: {', '.join(CHOICES)}, or "
            '{"type": "function", "function": {"name": NAME}}).'
        )
    if choice == "required" and not tools:
        raise PromptError("tool_choice 'required' needs tools to choose from, and none is given. Give tools=[...].")
    return Choice(() if choice == "none" else tuple(tools), choice == "required", several)


def definitions(tools: Sequence[Tool]) -> str:
    """The JSON that tells a model of its functions, spelled as mistral-common does."""
    return json.dumps([{"type": "function", "function": vars(tool)} for tool in tools], ensure_ascii=False)


def read_calls(text: str, form: ToolFormat, seed: bytes) -> tuple[ToolCall, ...]:
    """The whole calls in the end of an answer, special tokens shown in it; what is unfinished is left out.

    A call that the model gave no id of its own gets one made of `seed`: the same answer has the same ids.
    """
    place = len(form.calls.partition("{calls}")[0])
    calls: list[ToolCall] = []
    while found := _read_call(text, place, form.call) or _read_call(text, place, form.call_without_id):
        id, name, arguments, place = found
        if not id or id in {call.id for call in calls}:
            id = _made_id(seed + len(calls).to_bytes(4, "little"))
        calls.append(ToolCall(id, name, arguments))
        place += len(form.between) if text.startswith(form.between, place) else 0
    return tuple(calls)


def _tool(entry: Any, place: str, faults: list[str]) -> Tool | None:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping) or entry.get("type", "function") != "function":
        faults.append(f'{place} is no function (it can be: {{"type": "function", "function": {{"name": NAME}}}})')
        return None
    name, description = function.get("name"), function.get("description")
    parameters = {} if function.get("parameters") is None else function["parameters"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        faults.append(f"{place} has name {name!r} (it can be: up to 64 letters, digits, '_' and '-')")
    elif description is not None and not isinstance(description, str):
        faults.append(f"{place}, '{name}', has a description that is no text")
    elif not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        faults.append(f"{place}, '{name}', has parameters that are no object (they can be: a JSON Schema of an object)")
    else:
        return Tool(name, description or "", parameters)
    return None


def _read_call(text: str, place: int, template: str) -> tuple[str, str, str, int] | None:
    """Id, name and arguments of the call that begins at `place`, and where it ends."""
    head, _, tail = template.partition("{arguments}")
    begun = _pattern(head).match(text, place)
    if begun is None:
        return None
    try:
        _, end = _READER.raw_decode(text, begun.end())
    except (ValueError, RecursionError):
        return None
    ended = _pattern(tail).match(text, end)
    if ended is None:
        return None
    slots = begun.groupdict() | ended.groupdict()
    return slots.get("id", ""), slots["name"], text[begun.end() : end], ended.end()


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = enumerate(SLOT.split(template))
    return re.compile("".join(f"(?P<{part}>{_SLOTS[part]})" if i % 2 else re.escape(part) for i, part in parts))


def _made_id(seed: bytes) -> str:
    letters = ascii_letters + digits
    number = int.from_bytes(blake2b(seed, digest_size=8).digest(), "little")
    return "".join(letters[number // len(letters) ** place % len(letters)] for place in range(9))
