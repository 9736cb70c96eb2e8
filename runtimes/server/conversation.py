"""OpenAI's messages -> a session's: recordings decoded from base64, and nothing let through that names a file or an address."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from .errors import ApiError

ROLES = {"developer": "system"}
KEPT = ("tool_calls", "tool_call_id", "name")


def conversation(messages: Sequence[Any]) -> tuple[list[dict[str, Any]], list[BytesIO]]:
    """The messages of a session, and the recordings in them in order.

    Only texts and recordings in the request itself are taken: a part that names a path would read the server's own files.

    Raises:
        ApiError: 400, listing every part that is neither.
    """
    faults: list[str] = []
    files: list[BytesIO] = []
    read = [_message(message, f"messages[{i}]", faults, files) for i, message in enumerate(messages)]
    if faults:
        raise ApiError(400, f"the messages cannot be followed: {'; '.join(faults)}.", None, "messages")
    return read, files


def _message(message: Any, place: str, faults: list[str], files: list[BytesIO]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        faults.append(f"{place} is no JSON object")
        return {}
    role, content = message.get("role"), message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = [_part(part, f"{place}.content[{i}]", faults, files) for i, part in enumerate(content)]
    elif not isinstance(content, str | None):
        faults.append(f"{place}.content is neither a text nor a list of parts")
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    return {"role": ROLES.get(str(role), role), "content": content, **kept}


def _part(part: Any, place: str, faults: list[str], files: list[BytesIO]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
    if kind != "input_audio":
        faults.append(f"{place} is of type {kind!r} (it can be: text, input_audio)")
        return {}
    held = part.get("input_audio")
    data: Any = held.get("data") if isinstance(held, Mapping) else held
    try:
        files.append(BytesIO(base64.b64decode(data, validate=True)))
    except (binascii.Error, ValueError, TypeError):
        faults.append(f"{place}.input_audio.data is no base64 of a recording")
        return {}
    return {"type": "audio", "audio": files[-1]}
