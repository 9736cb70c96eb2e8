"""Answers as OpenAI's clients read them."""

import zlib
from typing import Any

from ..replies import Reply, Segment, Transcription
from ..segments import alone
from ..subtitles import srt, vtt

Document = dict[str, Any]


def about(reply: Reply) -> Document:
    """What ran and where the time went: beside what OpenAI's answers have."""
    timings = {name: round(value, 4) for name, value in vars(reply.timings).items()}
    return {"engine": reply.engine, "timings": timings}


def heard(reply: Reply) -> Document:
    """`json`: the text."""
    return {"text": reply.text, "usage": _duration(reply), **about(reply)}


def heard_verbose(reply: Reply, task: str, temperature: float) -> Document:
    """`verbose_json`: the text and where its parts are, in seconds."""
    parts = [_segment(i, part, temperature) for i, part in enumerate(segments(reply))]
    language = reply.language if isinstance(reply, Transcription) else "english"
    head = {"task": task, "language": language, "duration": reply.timings.audio, "text": reply.text}
    return {**head, "segments": parts, "usage": _duration(reply), **about(reply)}


def heard_srt(reply: Reply) -> str:
    """`srt`: SubRip."""
    return "".join(srt(segments(reply)))


def heard_vtt(reply: Reply) -> str:
    """`vtt`: WebVTT."""
    return "".join(vtt(segments(reply)))


def segments(reply: Reply) -> tuple[Segment, ...]:
    """The stretches of a recording; a translation is one."""
    return reply.segments if isinstance(reply, Transcription) else alone(reply, None).segments


def piece_heard(text: str) -> Document:
    """A piece of a streamed transcription."""
    return {"type": "transcript.text.delta", "delta": text}


def all_heard(reply: Reply) -> Document:
    """The end of a streamed transcription."""
    return {"type": "transcript.text.done", "text": reply.text, "usage": _tokens(reply), **about(reply)}


def completion(head: Document, reply: Reply) -> Document:
    """A whole answer to a conversation."""
    message: Document = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.tool_calls:
        message |= {"content": reply.text or None, "tool_calls": _calls(reply)}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish, "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage(reply), **about(reply)}


def chunk(head: Document, delta: Document, finish: str | None = None) -> Document:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def last(head: Document, reply: Reply, with_usage: bool) -> list[Document]:
    """The end of a streamed answer: why it ended, and the counts of tokens where they were asked for."""
    called = [{"index": i, **call} for i, call in enumerate(_calls(reply))]
    end = chunk(head, {"tool_calls": called} if called else {}, reply.finish) | about(reply)
    counts = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(reply)}
    return [end, counts] if with_usage else [end]


def _calls(reply: Reply) -> list[Document]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.tool_calls
    ]


def usage(reply: Reply) -> Document:
    """Tokens of a conversation."""
    prompt, answer = reply.prompt_tokens, len(reply.tokens)
    details = {"prompt_tokens_details": {"audio_tokens": reply.audio_tokens, "cached_tokens": reply.cached_tokens}}
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer, **details}


def _duration(reply: Reply) -> Document:
    return {"type": "duration", "seconds": reply.timings.audio}


def _tokens(reply: Reply) -> Document:
    prompt, answer, audio = reply.prompt_tokens, len(reply.tokens), reply.audio_tokens
    counts = {"input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer}
    details = {"audio_tokens": audio, "text_tokens": prompt - audio}
    return {"type": "tokens", **counts, "input_token_details": details}


def _segment(number: int, part: Segment, temperature: float) -> Document:
    """One segment; what is not known of it is null."""
    packed = part.text.encode()
    return {
        "id": number,
        "seek": round(part.start * 100),  # hundredths of a second
        "start": part.start,
        "end": part.end,
        "text": part.text,
        "tokens": list(part.tokens),
        "temperature": temperature,
        "avg_logprob": None,
        "compression_ratio": round(len(packed) / len(zlib.compress(packed)), 4),
        "no_speech_prob": None,
    }
