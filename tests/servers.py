"""Servers on free ports, in this process or in one of their own, for tests."""

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import numpy as np
import soundfile
import uvicorn
from ossicle.runtimes.opening import load
from ossicle.runtimes.server import running
from ossicle.runtimes.server.app import application
from ossicle.runtimes.server.options import ServerOptions
from ossicle.runtimes.server.service import Service, service
from ossicle.runtimes.session import Session
from ossicle.tests.fakes import FakeEngine, FakeRuntime

# A server of the fake runtime as `ossicle serve` runs it, in a process of its own.
PROCESS = """
import sys
from ossicle.runtimes.server import running
from ossicle.runtimes.server.options import ServerOptions
from ossicle.tests.servers import slow_session
options = ServerOptions(port=0, grace=float(sys.argv[3]))
session = slow_session(sys.argv[1], float(sys.argv[2]))
running.serve(session, options, running.listen(options), "fake", lambda url: print(url, flush=True))
"""


class SlowEngine(FakeEngine):
    """A fake engine that takes its time for every token."""

    seconds = 0.01

    def step(self, state: Any, tokens: Any) -> Any:
        sleep(self.seconds)
        return super().step(state, tokens)


def slow_session(bundle: str | Path, seconds: float = 0.01) -> Session:
    """A session whose tokens take so many seconds each."""

    class Engine(SlowEngine):
        pass

    class Runtime(FakeRuntime):
        engine = Engine

    Engine.seconds = seconds
    return load(bundle, engine=Runtime())


def wav(seconds: float = 1.0, seed: int = 0) -> bytes:
    """A file of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds)).astype(np.float32)
    soundfile.write(file, noise, 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@contextmanager
def served(session: Session, **options: Any) -> Iterator[tuple[str, Service]]:
    """The address of a server in a thread of this process, and what is behind it."""
    chosen = ServerOptions(port=0, **options)
    bound = running.listen(chosen)
    behind = service(session, chosen, "bundle")
    config = uvicorn.Config(application(behind), ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        while not server.started:
            sleep(0.01)
        yield running.url(bound), behind
    finally:
        end = monotonic() + 5
        while behind.places.taken and monotonic() < end:
            sleep(0.01)  # a thread may still read what a client sent that went away
        server.should_exit = server.force_exit = True
        thread.join()
        behind.workers.close()


@contextmanager
def process(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that prints its address in its first line, and that address; it is killed where it still runs at the end."""
    command = [sys.executable, "-P", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running_process:
        try:
            assert running_process.stdout is not None
            line = running_process.stdout.readline().split()
            assert line, running_process.communicate()[1]
            yield running_process, line[-1]
        finally:
            running_process.kill()
