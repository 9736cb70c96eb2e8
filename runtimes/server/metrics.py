"""What the server counts, in Prometheus' form: requests, waiting, stages, tokens, audio."""

from collections.abc import Callable
from time import monotonic

from ..replies import Reply
from .jobs import Job, Workers

REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
REAL_TIME = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TOKEN_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        self._gauge: Callable[[str, str], Gauge] = lambda name, says: Gauge(name, says, **own)
        self._requests = Counter("ossicle_requests", "Requests answered.", ["route", "status"], **own)
        self._seconds = Histogram(
            "ossicle_request_seconds",
            "From arrival to the end of the answer.",
            ["route"],
            buckets=REQUEST_SECONDS,
            **own,
        )
        self._queued = Histogram("ossicle_queue_seconds", "Waiting for a worker.", buckets=REQUEST_SECONDS, **own)
        self._first = Histogram(
            "ossicle_first_text_seconds", "From arrival in the queue to the first text.", buckets=REQUEST_SECONDS, **own
        )
        self._stages = Counter("ossicle_stage_seconds", "Time of the stages.", ["stage"], **own)
        self._tokens = Counter("ossicle_tokens", "Tokens read and written.", ["kind"], **own)
        self._audio = Counter("ossicle_audio_seconds", "Audio heard.", **own)
        self._real_time = Histogram(
            "ossicle_real_time_factor", "Seconds of work per second of audio.", buckets=REAL_TIME, **own
        )
        self._rate = Histogram("ossicle_tokens_per_second", "Of each answer's decoding.", buckets=TOKEN_RATES, **own)

    def watch(self, workers: Workers, taken: Callable[[], int]) -> None:
        """Show what is so at the moment of asking."""
        self._gauge("ossicle_queue_length", "Requests that wait for a worker.").set_function(lambda: workers.waiting)
        self._gauge("ossicle_running", "Requests at work.").set_function(lambda: workers.running)
        self._gauge("ossicle_places_taken", "Requests accepted and not answered yet.").set_function(taken)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is over; status 499: its client had gone."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first(self, job: Job) -> None:
        """Note that a job has given its first text."""
        self._first.observe(monotonic() - job.queued)

    def answered(self, job: Job, reply: Reply) -> None:
        """Count what an answer took."""
        timings = reply.timings
        self._queued.observe((job.started or job.queued) - job.queued)
        for stage in ("encode", "prefill", "decode"):
            self._stages.labels(stage).inc(getattr(timings, stage))
        self._tokens.labels("prompt").inc(reply.prompt_tokens)
        self._tokens.labels("answer").inc(timings.tokens)
        self._audio.inc(timings.audio)
        if timings.audio:
            self._real_time.observe(timings.real_time_factor)
        if timings.decode:
            self._rate.observe(timings.tokens_per_second)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
