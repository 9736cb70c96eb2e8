"""Reading requests: the body within its limit, forms and JSON, and how long a recording is before it is decoded."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..audio import audio_blocks, audio_seconds
from .errors import GONE, ApiError
from .fields import Field, read

FORM_FIELDS = 64
FORM_FIELD_BYTES = 1 << 16
COUNTED_RATE = 16000  # Hz


async def read_json(request: Any, fields: Sequence[Field]) -> dict[str, Any]:
    """The fields of a JSON request.

    Raises:
        ApiError: 415 where it is none, 400 where it cannot be followed, 413 where it is too large.
    """
    _check_type(request, "application/json")
    body = await _unless_gone(request.body())
    try:
        document = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as reason:
        raise ApiError(400, f"the body is no JSON: {reason}.", "invalid_json") from reason
    if not isinstance(document, dict):
        raise ApiError(400, "the body is no JSON object.", "invalid_json")
    return read(fields, document)


async def read_form(request: Any, fields: Sequence[Field]) -> tuple[dict[str, Any], Any]:
    """The fields of a form and its file, open for reading and closed when the request is over.

    Large files lie on disk, not in memory.

    Raises:
        ApiError: 415 where it is no form, 400 where it cannot be followed, 413 where it is too large.
    """
    from starlette.exceptions import HTTPException

    _check_type(request, "multipart/form-data")
    try:
        form = await _unless_gone(
            request.form(max_files=1, max_fields=FORM_FIELDS, max_part_size=FORM_FIELD_BYTES).__aenter__()
        )
    except HTTPException as reason:
        raise ApiError(400, f"the form cannot be read: {reason.detail}", "invalid_form") from reason
    request.scope["ossicle.visit"].close_behind(form.close)
    files = {name: value for name, value in form.multi_items() if hasattr(value, "file")}
    texts = dict(_texts(form.multi_items(), fields))
    if texts.pop("file", None) is not None:
        files.clear()  # a text where the recording should be
    values = read(fields, texts)
    if set(files) != {"file"}:
        raise ApiError(
            400,
            "the form has no recording: one file part named 'file', such as curl's -F file=@meeting.wav.",
            "missing_file",
            "file",
        )
    return values, files["file"].file


def duration(file: Any, most: float) -> float:
    """The length of a recording in seconds, with none of it kept; one that does not say is read, to beyond `most` at most.

    Raises:
        AudioError: it cannot be read.
    """
    seconds = audio_seconds(file)
    if seconds is not None:
        return seconds
    seconds = 0.0
    for block in audio_blocks(file, target_rate=COUNTED_RATE):
        seconds += len(block) / COUNTED_RATE
        if seconds > most:
            break
    file.seek(0)
    return seconds


async def check_durations(files: Sequence[Any], most: float) -> float:
    """The seconds of recordings, refused where they are too long together, before they are queued.

    Raises:
        ApiError: 400, with the numbers.
        AudioError: one cannot be read.
    """
    seconds = sum([await asyncio.to_thread(duration, file, most) for file in files])
    if seconds > most:
        message = f"the recording is {seconds:.1f} s long, and this server takes at most {most:g} s in one request."
        raise ApiError(400, message, "audio_too_long", "file")
    return seconds


def _texts(items: Sequence[tuple[str, Any]], fields: Sequence[Field]) -> Mapping[str, Any]:
    """A form's texts by field; those of a list, which come as `name[]` or several times, together."""
    lists = {field.name for field in fields if field.kind == "list"}
    texts: dict[str, Any] = {}
    for key, value in items:
        name = key.removesuffix("[]")
        if hasattr(value, "file"):
            continue
        if name in lists:
            texts.setdefault(name, []).append(value)
        else:
            texts[name] = value
    return texts


def _check_type(request: Any, wanted: str) -> None:
    found = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if found != wanted:
        raise ApiError(415, f"the body is of type '{found}' (it can be: {wanted}).", "wrong_content_type")


async def _unless_gone(reading: Any) -> Any:
    from starlette.requests import ClientDisconnect

    try:
        return await reading
    except ClientDisconnect:
        raise ApiError(GONE, "the client went away.", "cancelled") from None
