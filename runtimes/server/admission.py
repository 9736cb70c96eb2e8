"""Who is let in: so many requests at a time, none once the server is ending."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import monotonic
from types import TracebackType
from typing import Any, Self

from .errors import GONE, LOG, ApiError
from .jobs import Job, Work, Workers


class Places:
    """The places of a server: a request holds one from its arrival until its answer is sent and no thread works for it."""

    def __init__(self, most: int, timeout: float, workers: Workers) -> None:
        self.most = most
        self.draining = False
        self._timeout = timeout
        self._workers = workers
        self._visits: set[Visit] = set()

    @property
    def taken(self) -> int:
        return len(self._visits)

    def enter(self) -> "Visit":
        """A place, for one request.

        Raises:
            ApiError: 503 where the server is ending, 429 where all are taken; both say when to try again.
        """
        if self.draining:
            raise ending()
        if self.taken >= self.most:
            after = self._workers.patience()
            message = f"all {self.most} places of this server are taken. Try again in {after} s."
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(after)})
        visit = Visit(self._workers, monotonic() + self._timeout, self._visits.discard)
        self._visits.add(visit)
        return visit

    def give_up(self) -> None:
        """End every request that is still here, with an error."""
        for visit in set(self._visits):
            visit.give_up(ending())


class Visit:
    """One accepted request: when it must be answered, its job, and what is to be closed behind it."""

    def __init__(self, workers: Workers, deadline: float, leave: Callable[["Visit"], None]) -> None:
        self.deadline = deadline
        self.job: Job | None = None
        self._workers = workers
        self._leave = leave
        self._behind = AsyncExitStack()
        self._why: ApiError | None = None

    def start(self, work: Work) -> Job:
        """Queue this request's work."""
        if self._why is not None:
            raise self._why
        self.job = Job(work, self.deadline)
        self._workers.submit(self.job)
        return self.job

    def close_behind(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Have this called when the request is over."""
        self._behind.push_async_callback(close)

    def give_up(self, reason: ApiError) -> None:
        """End the request with this error."""
        self._why = reason
        if self.job is not None:
            self.job.give_up(reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.job is not None:
                self.job.give_up(ApiError(GONE, "the client went away.", "cancelled"))
                self._workers.forget(self.job)
                await self.job.left.wait()
            await self._behind.aclose()
        except asyncio.CancelledError:
            LOG.debug("the server ended, and a thread still reads a request")  # whose file goes with the process
        finally:
            self._leave(self)


def ending() -> ApiError:
    """What is said to who comes too late."""
    return ApiError(503, "this server is ending. Try another, or again later.", "shutting_down", headers=_LATER)


_LATER = {"Retry-After": "10", "Connection": "close"}
