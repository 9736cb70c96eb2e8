"""What `ossicle serve` does under load: many clients at once, some of which go away and some of which send nonsense.

    python benchmarks/load.py BUNDLE [--clients 64] [--requests 500] [--engine auto] [--workers 1] [--queue 32]

Every answer is compared with what a session says beside the server. At the end the server is filled again and asked to end
in the middle; what it had accepted has to come.
"""

import argparse
import asyncio
import base64
import json
import random
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import psutil
from ossicle.compiler import speech
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session

TRANSCRIBE, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"
QUESTION = "last word?"
RECORDINGS = 8
WARM = 50  # requests before the memory is first read
RETRY = 0.05  # of the seconds that Retry-After says: the server answers this model sooner than it would a large one
SECONDS = 300.0  # of one request


@dataclass(frozen=True)
class Asked:
    """One request: what kind it is, how it is sent, and what must come back; `leaves`: the client goes after so many s."""

    kind: str
    route: str
    request: Mapping[str, Any]
    expected: str = ""
    status: int = 200
    leaves: float | None = None


@dataclass
class Outcome:
    """What became of the requests: how many of each kind ended how, seconds of those answered, and every fault."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refused: int = 0  # times that a client was told to come again


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds, children included."""
        parent = psutil.Process(self.process.pid)
        return sum(int(one.memory_info().rss) for one in (parent, *parent.children(recursive=True)))

    def taken(self) -> int:
        """Requests accepted and not answered yet."""
        return int(httpx.get(self.url + "/health").json()["queue"]["taken"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--queue", type=int, default=32)
    options = parser.parse_args()
    with load(options.bundle, engine=options.engine) as session:
        asked = requests(session, options.requests)
    with serving(options.bundle, options.engine, options.workers, options.queue) as server:
        started = perf_counter()
        outcome, resident = asyncio.run(under_load(server, asked, options.clients))
        show(outcome, perf_counter() - started, resident)
        faults = outcome.faults + ending(server, asked, 1 + options.queue // 2)
    sys.exit("\n".join(faults) or None)


@contextmanager
def serving(bundle: Path, engine: str, workers: int, queue: int) -> Iterator[Server]:
    """`ossicle serve` on a bundle, on a port of its own."""
    options = ["--port", "0", "--engine", engine, "--workers", str(workers), "--queue", str(queue)]
    command = [sys.executable, "-P", "-m", "ossicle.cli", "serve", str(bundle), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process, process.stdout.readline().split()[-1])
        finally:
            process.kill()


def requests(session: Session, count: int) -> list[Asked]:
    """So many requests in a fixed order: seven in ten are whole, one in ten is left, two in ten are nonsense."""
    draw = random.Random(0)
    good = list(good_requests(session))
    made = []
    for _ in range(count):
        one, fate = draw.choice(good), draw.random()
        if fate < 0.1:
            one = Asked(f"{one.kind}, left", one.route, one.request, leaves=draw.uniform(0.0, 0.5))
        made.append(one if fate < 0.8 else draw.choice(BAD))
    return made


def good_requests(session: Session) -> Iterator[Asked]:
    """Requests of every kind on several recordings, each with the session's own answer."""
    for clip in speech.load(speech.shipped()).clips[:RECORDINGS]:
        content = Path(clip.file).read_bytes()
        text = session.transcribe(content, language="en").text
        files = {"files": {"file": ("a.wav", content)}}
        yield Asked("transcription", TRANSCRIBE, {**files, "data": {"language": "en"}}, text)
        yield Asked(
            "transcription, streamed", TRANSCRIBE, {**files, "data": {"language": "en", "stream": "true"}}, text
        )
        question = {"type": "text", "text": QUESTION}
        answer = session.chat([{"role": "user", "content": [{"type": "audio", "audio": content}, question]}]).text
        audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}
        asked = {"messages": [{"role": "user", "content": [audio, question]}]}
        yield Asked("chat", CHAT, {"json": asked}, answer)
        yield Asked("chat, streamed", CHAT, {"json": {**asked, "stream": True}}, answer)


_JSON = {"content-type": "application/json"}
BAD = (
    Asked("no JSON", CHAT, {"content": b"{", "headers": _JSON}, status=400),
    Asked("no messages", CHAT, {"json": {"model": "whisper-1"}}, status=400),
    Asked("no recording", TRANSCRIBE, {"files": {"language": (None, "en")}}, status=400),
    Asked("no audio", TRANSCRIBE, {"files": {"file": ("a.wav", b"RIFF" * 1000)}}, status=400),
    Asked("wrong type", TRANSCRIBE, {"json": {}}, status=415),
    Asked("unknown model", CHAT, {"json": {"messages": [], "model": "gpt-4o"}}, status=404),
)


async def under_load(server: Server, asked: Sequence[Asked], clients: int) -> tuple[Outcome, tuple[int, int]]:
    """What becomes of the requests, and the server's memory after the first of them and at the end, in bytes."""
    outcome = Outcome()
    await all_of(server.url, asked[:WARM], clients, outcome)
    warm = server.resident
    await all_of(server.url, asked[WARM:], clients, outcome)
    for _ in range(100):  # of clients that left, the work ends at its next step
        if not server.taken():
            break
        await asyncio.sleep(0.1)
    if taken := server.taken():
        outcome.faults.append(f"{taken} places are still taken after all clients are gone")
    return outcome, (warm, server.resident)


async def all_of(url: str, asked: Sequence[Asked], clients: int, outcome: Outcome) -> None:
    """Let so many clients send the requests, each its next one when the one before is answered."""
    waiting = iter(asked)
    async with connected(url) as http:

        async def client() -> None:
            for one in waiting:
                await ask(http, one, outcome)

        await asyncio.gather(*(client() for _ in range(clients)))


def connected(url: str) -> httpx.AsyncClient:
    """A client with a connection for every request at a time."""
    limits = httpx.Limits(max_connections=None)
    # No certificates are needed on this machine, and reading them takes longer than a request.
    return httpx.AsyncClient(base_url=url, timeout=SECONDS, limits=limits, verify=False)


async def ask(http: httpx.AsyncClient, one: Asked, outcome: Outcome) -> None:
    """Send a request until it is taken, and note how it ends."""
    started = perf_counter()
    while True:
        try:
            async with asyncio.timeout(one.leaves):
                found = await http.post(one.route, **one.request)
        except TimeoutError:
            outcome.ends[one.kind, "left"] += 1
            return
        except httpx.HTTPError as reason:
            outcome.ends[one.kind, "lost"] += 1
            outcome.faults.append(f"{one.kind}: lost by {type(reason).__name__} {reason}")
            return
        if found.status_code != 429:
            break
        outcome.refused += 1
        await asyncio.sleep(RETRY * float(found.headers["retry-after"]))
    judge(one, found, outcome)
    outcome.seconds.append(perf_counter() - started)


def judge(one: Asked, found: httpx.Response, outcome: Outcome) -> None:
    """Note whether a response is what it has to be."""
    if found.status_code != one.status:
        fault = f"status {found.status_code} and not {one.status}: {found.text[:200]}"
    elif one.status != 200:
        fault = "" if set(found.json()["error"]) == {"message", "type", "param", "code"} else f"said {found.text[:200]}"
    else:
        fault = (
            ""
            if one.leaves is not None or said(found) == one.expected
            else f"said {said(found)!r}, not {one.expected!r}"
        )
    end = "wrong" if fault else "right" if one.status == 200 else "refused"
    outcome.ends[one.kind, end] += 1
    if fault:
        outcome.faults.append(f"{one.kind}: {fault}")


def said(found: httpx.Response) -> str:
    """The text of an answer that came whole or piece by piece."""
    if found.headers["content-type"] == "application/json":
        document = found.json()
        return str(document["text"] if "text" in document else document["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in found.text.splitlines() if line.startswith("data: {")]
    if "type" in events[-1]:
        return "".join(event.get("delta", "") for event in events)
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def ending(server: Server, asked: Sequence[Asked], count: int) -> list[str]:
    """Ask the server to end once it has accepted so many requests; whatever of them is not answered right."""
    return asyncio.run(_ending(server, [one for one in asked if one.expected][:count]))


async def _ending(server: Server, asked: Sequence[Asked]) -> list[str]:
    outcome, late = Outcome(), Outcome()
    async with connected(server.url) as http:
        waiting = asyncio.create_task(all_of(server.url, asked, len(asked), outcome))
        while (await http.get("/health")).json()["queue"]["taken"] < len(asked) and not outcome.ends:
            await asyncio.sleep(0.005)
        accepted = server.taken() + outcome.ends.total()
        server.process.send_signal(signal.SIGTERM)
        while (await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.001)
        await ask(http, Asked("too late", TRANSCRIBE, asked[0].request, status=503), late)
        await waiting
    code = await asyncio.to_thread(server.process.wait, 60)
    print(f"asked to end with {accepted} accepted: {describe(outcome)}; too late: {describe(late)}; exit code {code}")
    return outcome.faults + late.faults + ([] if code == 0 else [f"exit code {code}"])


def show(outcome: Outcome, seconds: float, resident: tuple[int, int]) -> None:
    """The table."""
    kinds = sorted({kind for kind, _ in outcome.ends})
    ends = ("right", "refused", "left", "wrong", "lost")
    print("| request | " + " | ".join(ends) + " |\n|---|" + "---|" * len(ends))
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(str(outcome.ends[kind, end] or "") for end in ends) + " |")
    warm, end = (one / (1 << 20) for one in resident)
    quantiles = statistics.quantiles(outcome.seconds, n=100)
    print(
        f"{outcome.ends.total()} requests in {seconds:.1f} s, {outcome.ends.total() / seconds:.1f} a second; answered after "
        f"{quantiles[49]:.2f} s (median), {quantiles[94]:.2f} s (95 of 100); told to come again {outcome.refused} times; "
        f"memory {warm:.0f} MiB after {WARM} requests, {end:.0f} MiB at the end"
    )


def describe(outcome: Outcome) -> str:
    """How requests ended, in a line."""
    ends: Counter[str] = Counter()
    for (_, end), count in outcome.ends.items():
        ends[end] += count
    return ", ".join(f"{count} {end}" for end, count in ends.items())


if __name__ == "__main__":
    main()
