"""/v1/chat/completions."""

import asyncio
import secrets
from collections.abc import Callable, Generator
from time import time
from typing import Any

from ..session import Session
from . import shapes
from .answering import Events, Whole, answer, in_time
from .conversation import conversation
from .errors import ApiError
from .fields import Field
from .service import Service, chosen
from .uploads import check_durations, read_json

_NO_EFFECT = "taken, and without effect"
COMPLETION = (
    Field("messages", "list", "the conversation: texts, and recordings as input_audio parts", required=True),
    Field("model", "text", "the model's name or an alias of it, with :ADAPTER behind it an adapter's; see /v1/models"),
    Field("max_tokens", "integer", "at most so many tokens; 1024 by default", least=1),
    Field("max_completion_tokens", "integer", "the same as max_tokens", least=1),
    Field("temperature", "number", "0, the default: always the likeliest token", least=0, most=2),
    Field("top_p", "number", "draw from the likeliest tokens of this share", least=0, most=1),
    Field("top_k", "integer", "draw from so many of the likeliest tokens", least=0),
    Field("min_p", "number", "draw from tokens of at least this share of the likeliest", least=0, most=1),
    Field("repetition_penalty", "number", "above 1: tokens that came before become less likely", least=0),
    Field("seed", "integer", "of the draw where the temperature is not 0; by default another each time", least=0),
    Field("stop", "any", "a text, or a list of texts, before which the answer ends"),
    Field("stream", "flag", "send the answer as it is found"),
    Field("stream_options", "object", "include_usage: a last chunk with the counts of tokens"),
    Field("response_format", "object", "text, json_object, or json_schema with a schema that the answer holds to"),
    Field("grammar", "text", "the answer is of this language: Lark in llguidance's dialect"),
    Field("regex", "text", "the whole answer matches"),
    Field("tools", "list", "functions that the answer may call"),
    Field("tool_choice", "any", "auto, none, required, or one function"),
    Field("parallel_tool_calls", "flag", "whether an answer may have several calls; true by default"),
    Field("n", "integer", "one answer alone", only=(1,)),
    Field("modalities", "list", "answers are text", only=(["text"],)),
    Field("logprobs", "flag", "are not given", only=(False,)),
    Field("top_logprobs", "integer", "are not given", only=(0,)),
    Field("frequency_penalty", "number", "is not had; see repetition_penalty", only=(0,)),
    Field("presence_penalty", "number", "is not had; see repetition_penalty", only=(0,)),
    Field("logit_bias", "object", "is not had", only=({},)),
    Field("store", "flag", "nothing is stored", only=(False,)),
    Field("user", "text", _NO_EFFECT),
    Field("safety_identifier", "text", _NO_EFFECT),
    Field("prompt_cache_key", "text", _NO_EFFECT),
    Field("service_tier", "text", _NO_EFFECT),
    Field("metadata", "object", _NO_EFFECT),
)
SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "response_format",
    "grammar",
    "regex",
)
CALLS = ("tools", "tool_choice", "parallel_tool_calls")


async def completions(service: Service, request: Any) -> Any:
    """The answer to a conversation of texts and recordings, whole or as it is found."""
    values = await in_time(request, read_json(request, COMPLETION))
    model = service.model(values.get("model"))
    messages, files = await asyncio.to_thread(conversation, values["messages"])
    await check_durations(files, service.options.max_seconds)
    settings = _settings(values) | chosen(model) | {name: values[name] for name in CALLS if name in values}
    is_streamed = bool(values.get("stream"))

    def converse(session: Session, unwanted: Callable[[], bool]) -> Generator[str, None, Any]:
        stream = session.stream(messages, **settings, cancelled=unwanted)
        for piece in stream:
            if is_streamed:
                yield piece
        return stream.reply

    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time()), "model": model.name}
    form = _chunks(head, values) if is_streamed else Whole(lambda reply: shapes.completion(head, reply))
    return await answer(request, service.metrics, converse, form)


def _chunks(head: dict[str, Any], values: dict[str, Any]) -> Events:
    with_usage = bool(values.get("stream_options", {}).get("include_usage"))
    first = shapes.chunk(head, {"role": "assistant", "content": ""})
    return Events(
        [first],
        lambda piece: shapes.chunk(head, {"content": piece}),
        lambda r: shapes.last(head, r, with_usage),
        "[DONE]",
    )


def _settings(values: dict[str, Any]) -> Any:
    """What the session is told of the answer."""
    settings = {name: values[name] for name in SETTINGS if name in values}
    limits = {values[name] for name in ("max_tokens", "max_completion_tokens") if name in values}
    if len(limits) > 1:
        raise ApiError(400, "'max_tokens' and 'max_completion_tokens' differ. Give one.", None, "max_tokens")
    if limits:
        settings["max_tokens"] = limits.pop()
    if values.get("temperature") and "seed" not in values:
        settings["seed"] = secrets.randbits(32)  # unasked, two answers to the same may differ
    if (stop := values.get("stop")) is not None:
        settings["stop"] = _stops(stop)
    return settings


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ApiError(400, "'stop' is neither a text nor a list of texts.", None, "stop")
    return stops
