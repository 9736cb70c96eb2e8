"""Work in threads, each with its own session over one set of weights; what it finds comes to the event loop as it is found."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from threading import Condition, Event, Thread
from time import monotonic
from typing import Any

from ..session import Session
from .errors import ApiError

# What a job does: given a session, and what says that it is not wanted any more, it gives pieces of text and returns the
# whole answer.
Work = Callable[[Session, Callable[[], bool]], Generator[str, None, Any]]

SLOWNESS = 0.2  # weight of the latest job in the mean of their seconds


class Job:
    """One request's work: queued, at work, and at its end once `result` is there. Made and read in the event loop."""

    def __init__(self, work: Work, deadline: float) -> None:
        self.work = work
        self.deadline = deadline  # on the clock of `monotonic`, which is the event loop's
        self.queued = monotonic()
        self.started: float | None = None
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._unwanted = Event()
        self._ended = False
        self.left = asyncio.Event()  # no thread is at it, or will be: what it reads may be closed

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more; asked by its work before every step."""
        return self._unwanted.is_set() or monotonic() > self.deadline

    def give_up(self, reason: ApiError) -> None:
        """End it with this error at once; its work ends at its next step."""
        self._unwanted.set()
        self._found.put_nowait(("error", reason))

    def tell(self, kind: str, value: Any) -> None:
        """Hand over what a thread found."""
        self._call(self._found.put_nowait, (kind, value))

    def leave(self) -> None:
        """Say that no thread is at it any more."""
        self._call(self.left.set)

    def _call(self, told: Callable[..., object], *values: Any) -> None:
        if not self._loop.is_closed():  # closed: the server has ended without waiting for this job
            self._loop.call_soon_threadsafe(told, *values)

    async def pieces(self) -> AsyncIterator[Any]:
        """Pieces of text as they come, and then the answer itself, the only one that is no text.

        Raises:
            ApiError: it was given up, or took too long.
            Exception: whatever its work failed at.
        """
        while not self._ended:
            try:
                async with asyncio.timeout_at(self.deadline):
                    kind, value = await self._found.get()
            except TimeoutError:
                kind, value = "error", ApiError(504, "the request took longer than this server allows.", "timeout")
            if kind == "error":
                self._unwanted.set()
                raise value
            self._ended = kind == "answer"
            yield value

    async def result(self) -> Any:
        """The answer, once it is there; fails as `pieces` does."""
        async for found in self.pieces():
            answer = found
        return answer


class Workers:
    """Threads that take jobs in order, one thread for each session."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self._jobs: deque[Job] = deque()
        self._at_work: list[Job] = []
        self._changed = Condition()
        self._ending = False
        self._mean = 1.0  # seconds of a job
        self._threads = [Thread(target=self._run, args=(one,), daemon=True, name="ossicle-worker") for one in sessions]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait for a thread."""
        with self._changed:
            return sum(not job.unwanted for job in self._jobs)

    @property
    def running(self) -> int:
        """Jobs at work, those that nobody waits for any more among them until they notice."""
        return len(self._at_work)

    def submit(self, job: Job) -> None:
        """Queue a job. How many there may be is not decided here."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def forget(self, job: Job) -> None:
        """Take a job out of the queue, if it is still there."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                job.leave()

    def patience(self) -> int:
        """Seconds after which a place is likely to be free, at least one."""
        ahead = self.waiting + self.running
        return min(60, max(1, round(self._mean * ahead / len(self._sessions))))

    def close(self, seconds: float = 5.0) -> None:
        """End the threads after the jobs they are at, and close their sessions; a thread that does not end is left behind."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        until = monotonic() + seconds
        for thread, session in zip(self._threads, self._sessions, strict=True):
            thread.join(max(0.0, until - monotonic()))
            if not thread.is_alive():
                session.close()

    def _run(self, session: Session) -> None:
        while (job := self._next()) is not None:
            job.started = monotonic()
            _work(job, session)
            job.leave()
            seconds = monotonic() - job.started
            with self._changed:
                self._at_work.remove(job)
                self._mean += SLOWNESS * (seconds - self._mean)

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                while self._jobs:
                    job = self._jobs.popleft()
                    if not job.unwanted:
                        self._at_work.append(job)
                        return job
                    job.leave()
                if self._ending:
                    return None
                self._changed.wait()


def _work(job: Job, session: Session) -> None:
    try:
        work = job.work(session, lambda: job.unwanted)
        while True:
            job.tell("piece", next(work))
    except StopIteration as end:
        told: tuple[str, Any] = ("answer", end.value)
    except Exception as reason:
        told = ("error", reason)
    if not job.unwanted:
        job.tell(*told)
