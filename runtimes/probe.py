"""A bundle questioned in a process of its own: `python -m ossicle.runtimes.probe BUNDLE REQUESTS.json ANSWERS.npz`.

Questions and answers are those of targets/probe.py. Exit status 0, or 1 with the reason on standard error and nothing
written.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import packages_distributions, version
from pathlib import Path
from time import perf_counter
from typing import Any

from ..targets import manifest as manifests
from ..targets.contract import Float32, OssicleError
from ..targets.memory import peak_memory_of_all
from ..targets.probe import Answer, Kind, Report, Request, read_requests, write_report
from .base import proof
from .opening import load
from .replies import Reply
from .select import select
from .session import Session

FORBIDDEN = ("torch", "transformers")


def answer(session: Session, request: Request) -> Answer:
    """What the bundle answers to one request."""
    started = perf_counter()
    result = _ANSWERS[request.kind](session, request)
    seconds = perf_counter() - started
    if isinstance(result, Reply):
        return Answer(request.kind, seconds, text=result.text, tokens=result.tokens, timings=asdict(result.timings))
    return Answer(request.kind, seconds, array=result)


def report(bundle: Path, requests: Sequence[Request], *, engine: str = "auto", threads: int = 0) -> Report:
    """All answers of a bundle, and what gave them."""
    started = perf_counter()
    runtime = select(manifests.read(bundle), engine)
    with load(bundle, engine=runtime, threads=threads, allow_failed=True) as session:
        loaded = perf_counter() - started
        answers = tuple(answer(session, request) for request in requests)
        modules = tuple(sorted({name.partition(".")[0] for name in sys.modules}))
        memory = peak_memory_of_all()
        return Report(session.engine, proof(runtime), _versions(modules), modules, loaded, memory, answers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ossicle.runtimes.probe", description="Question a bundle.")
    for name in ("bundle", "requests", "answers"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        requests = read_requests(options.requests)
        found = report(options.bundle, requests, engine=options.engine, threads=options.threads)
    except OssicleError as reason:
        print(reason, file=sys.stderr)
        return 1
    if strangers := [name for name in FORBIDDEN if name in found.modules]:
        print(f"running a bundle must not import {', '.join(strangers)}, and did.", file=sys.stderr)
        return 1
    write_report(options.answers, found)
    return 0


def _ask(session: Session, request: Request) -> Reply:
    content = [{"type": "audio", "audio": request.audio}, {"type": "text", "text": request.question}]
    return session.chat([{"role": "user", "content": content}], max_tokens=request.max_tokens)


def _score(session: Session, request: Request) -> Float32:
    added = request.adapters or None
    return session.score(request.audio, request.tokens, language=request.language, adapters=added)


def _transcribe(session: Session, request: Request) -> Reply:
    return session.transcribe(request.audio, language=request.language, max_tokens=request.max_tokens)


_ANSWERS: dict[Kind, Callable[[Session, Request], Any]] = {
    "logmel": lambda session, request: session.log_mel(request.audio),
    "audio": lambda session, request: session.embed_audio(request.audio),
    "score": _score,
    "transcribe": _transcribe,
    "ask": _ask,
}


def _versions(modules: Sequence[str]) -> dict[str, str]:
    packages = {package for name, found in packages_distributions().items() if name in modules for package in found}
    return {package: version(package) for package in sorted(packages)}


if __name__ == "__main__":
    sys.exit(main())
