"""From an accepted request to its answer: work is started, watched, and sent whole or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from .admission import Visit
from .errors import GONE, ApiError, api_error
from .jobs import Job, Work
from .metrics import Metrics

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """An answer that is sent once it is there: what it looks like, and its media type where that is not JSON."""

    show: Callable[[Any], Any]
    media_type: str = "application/json"


@dataclass(frozen=True)
class Events:
    """An answer that is sent as it is found: what comes before, with every piece, and at the end."""

    before: Iterable[Document]
    piece: Callable[[str], Document]
    end: Callable[[Any], Iterable[Document]]
    done: str = ""  # a last line that is no JSON


async def answer(request: Any, metrics: Metrics, work: Work, form: Whole | Events) -> Any:
    """The response to a request that is read.

    Raises:
        ApiError: whatever went wrong before the response began.
    """
    from starlette.responses import Response, StreamingResponse

    visit: Visit = request.scope["ossicle.visit"]
    job = visit.start(work)
    if isinstance(form, Events):
        found = _counted(job, metrics)
        first = await _while_there(request, anext(found))
        lines = _lines(form, first, found)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    result = await _while_there(request, _whole(job, metrics))
    shown = form.show(result)
    body = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return Response(body.encode(), media_type=form.media_type, headers={"Cache-Control": "no-store"})


async def in_time(request: Any, reading: Awaitable[T]) -> T:
    """What is read of a request, unless its client takes too long to send it.

    Raises:
        ApiError: 408 where it does.
    """
    try:
        async with asyncio.timeout_at(request.scope["ossicle.visit"].deadline):
            return await reading
    except TimeoutError:
        raise ApiError(408, "the request did not come whole in the time that this server allows.", "timeout") from None


async def _counted(job: Job, metrics: Metrics) -> AsyncIterator[Any]:
    is_first = True
    async for found in job.pieces():
        if is_first:
            metrics.first(job)
        is_first = False
        if not isinstance(found, str):
            metrics.answered(job, found)
        yield found


async def _whole(job: Job, metrics: Metrics) -> Any:
    result = await job.result()
    metrics.answered(job, result)
    return result


async def _lines(form: Events, first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The events of an answer; an error in the middle is the last of them, since the status is long sent."""
    for document in form.before:
        yield _event(document)
    try:
        found = first
        while isinstance(found, str):
            yield _event(form.piece(found))
            found = await anext(rest)
        for document in form.end(found):
            yield _event(document)
        if form.done:
            yield f"data: {form.done}\n\n".encode()
    except Exception as reason:
        yield _event(api_error(reason).document)


def _event(document: Document) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


async def _while_there(request: Any, work: Awaitable[T]) -> T:
    """What `work` gives, unless the client goes away before.

    Raises:
        ApiError: it did.
    """
    working = asyncio.ensure_future(_awaited(work))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(GONE, "the client went away.", "cancelled")
    finally:
        working.cancel()
        leaving.cancel()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
