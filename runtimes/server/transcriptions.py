"""/v1/audio/transcriptions and /v1/audio/translations."""

import secrets
from collections.abc import Callable, Generator
from typing import Any

from ..segments import joined
from ..session import Session
from . import shapes
from .answering import Events, Whole, answer, in_time
from .errors import ApiError
from .fields import Field
from .jobs import Work
from .service import Service, chosen
from .uploads import check_durations, read_form

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
STREAMED = ("json", "text")
TIMED = ("srt", "verbose_json", "vtt")  # cut where it is quiet, so that there are times
TRANSLATE = "Translate the speech into English. Answer with the translation alone."

_SHARED = (
    Field("model", "text", "the model's name or an alias of it, with :ADAPTER behind it an adapter's; see /v1/models"),
    Field("response_format", "text", "how the answer is written; json by default", only=FORMATS),
    Field("temperature", "number", "0, the default: always the likeliest token", least=0, most=2),
    Field("prompt", "text", "must be empty: these models were not trained to take one", only=("",)),
    Field("stream", "flag", "send the text as it is found, with response_format json or text"),
    Field("seed", "integer", "of the draw where the temperature is not 0; by default another each time", least=0),
)
TRANSCRIPTION = (
    *_SHARED,
    Field("language", "text", "of two letters, such as en; by default the model finds it"),
    Field("timestamp_granularities", "list", "segment alone: words have no times"),
    Field("chunking_strategy", "text", "auto alone: long recordings are cut where they are quiet", only=("auto",)),
    Field("include", "list", "must be empty: log probabilities are not given"),
)
TRANSLATION = _SHARED


async def transcriptions(service: Service, request: Any) -> Any:
    """The words of a recording, whole or as they are found."""
    values, file = await in_time(request, read_form(request, TRANSCRIPTION))
    model = service.model(values.get("model"))
    _check(values)
    seconds = await check_durations([file], service.options.max_seconds)
    language, settings = values.get("language"), _settings(values) | chosen(model)

    def transcribe(session: Session, unwanted: Callable[[], bool]) -> Generator[str, None, Any]:
        if values.get("response_format") in TIMED:
            found = list(session.segments(file, language=language, **settings, cancelled=unwanted))
            return joined(found, session.engine, language, seconds)
        stream = session.stream(file, language=language, **settings, cancelled=unwanted)
        for piece in stream:
            if values.get("stream"):
                yield piece
        return stream.reply

    return await _answer(service, request, values, transcribe, "transcribe")


async def translations(service: Service, request: Any) -> Any:
    """What a recording says, in English: the model is asked in words, since it has no mode for it."""
    values, file = await in_time(request, read_form(request, TRANSLATION))
    model = service.model(values.get("model"))
    _check(values)
    await check_durations([file], service.options.max_seconds)
    content = [{"type": "audio", "audio": file}, {"type": "text", "text": TRANSLATE}]
    settings = _settings(values) | chosen(model)

    def translate(session: Session, unwanted: Callable[[], bool]) -> Generator[str, None, Any]:
        stream = session.stream([{"role": "user", "content": content}], **settings, cancelled=unwanted)
        for piece in stream:
            if values.get("stream"):
                yield piece
        return stream.reply

    return await _answer(service, request, values, translate, "translate")


def _settings(values: dict[str, Any]) -> Any:
    temperature = float(values.get("temperature", 0))
    drawn = secrets.randbits(32) if temperature else 0  # unasked, two answers to the same may differ
    return {"temperature": temperature, "seed": values.get("seed", drawn)}


def _check(values: dict[str, Any]) -> None:
    """What the table of fields cannot say."""
    if values.get("include"):
        raise ApiError(400, "'include' must be empty: log probabilities are not given.", None, "include")
    if set(values.get("timestamp_granularities", ())) - {"segment"}:
        message = "'timestamp_granularities' can be: segment. Words have no times."
        raise ApiError(400, message, None, "timestamp_granularities")
    form = values.get("response_format", "json")
    if values.get("stream") and form not in STREAMED:
        message = f"'response_format' {form} cannot be streamed (it can be: {', '.join(STREAMED)})."
        raise ApiError(400, message, None, "response_format")


async def _answer(service: Service, request: Any, values: dict[str, Any], work: Work, task: str) -> Any:
    if values.get("stream"):
        return await answer(
            request, service.metrics, work, Events((), shapes.piece_heard, lambda r: [shapes.all_heard(r)])
        )
    return await answer(request, service.metrics, work, _form(values, task))


def _form(values: dict[str, Any], task: str) -> Whole:
    temperature = float(values.get("temperature", 0))
    forms = {
        "json": Whole(shapes.heard),
        "text": Whole(lambda reply: reply.text + "\n", "text/plain"),
        "srt": Whole(shapes.heard_srt, "text/plain"),
        "vtt": Whole(shapes.heard_vtt, "text/vtt"),
        "verbose_json": Whole(lambda reply: shapes.heard_verbose(reply, task, temperature)),
    }
    return forms[values.get("response_format", "json")]
