"""What a bundle is asked, and what it answered, when it is run in a process of its own.

`verify` builds with torch; the runtime that is being verified must not share a process with it. So questions go to disk
as JSON, `python -m ossicle.runtimes.probe BUNDLE REQUESTS.json ANSWERS.npz` runs them on the bundle, and the answers
come back as one npz archive: arrays as they are, all else in a JSON document beside them. Nothing is pickled.

    write_requests(path, requests) -> command(...) in a subprocess -> read_report(path)
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .contract import EngineError, Float32

Kind = Literal["logmel", "audio", "score", "transcribe", "ask"]

# What answers say of an artifact: its own engine ran it, another program read it and computed what it says, or another engine
# ran the graph that it was made of.
Proof = Literal["executed", "interpreted", "same graph"]


@dataclass(frozen=True)
class Request:
    """One question about one recording (a path that soundfile reads).

    - logmel: array float32 [windows, mel bins, frames]
    - audio: array float32 [windows, tokens per window, hidden], the audio embeddings
    - score: array float32 [len(tokens), vocabulary]: row i holds the logits from which tokens[i] would be chosen, given
      the transcription prompt and tokens[:i]
    - transcribe: text and tokens, greedy
    - ask: text and tokens, greedy, of the chat prompt holding the recording and then `question`
    """

    kind: Kind
    audio: str
    language: str | None = None
    question: str = ""
    tokens: tuple[int, ...] = ()
    max_tokens: int = 256
    adapters: Mapping[str, float] = field(default_factory=dict)  # added at run time, to what `score` asks


@dataclass(frozen=True)
class Answer:
    """What came back for the request of the same place. `tokens` are without the stop token that ended them.

    `timings` are a text's: seconds of "audio", and of work on it: "encode", "prefill" and "decode" of so many "tokens".
    """

    kind: Kind
    seconds: float
    array: Float32 | None = None
    text: str | None = None
    tokens: tuple[int, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All answers in the order of the requests, and what gave them."""

    engine: str  # for example "onnxruntime-cpu"
    proof: Proof
    versions: dict[str, str] = field(repr=False)  # of the packages that were imported
    modules: tuple[str, ...] = field(repr=False)  # top-level modules imported; never torch or transformers
    load_seconds: float
    peak_memory: int  # bytes, resident, of the processes that the engine started too
    answers: tuple[Answer, ...]


def command(bundle: Path, requests: Path, answers: Path, *, engine: str = "auto", threads: int = 0) -> list[str]:
    """Arguments of the subprocess that answers; exit status 0, or 1 with the reason on its standard error."""
    paths = [str(path) for path in (bundle, requests, answers)]
    options = ["--engine", engine, "--threads", str(threads)]
    return [sys.executable, "-m", "ossicle.runtimes.probe", *paths, *options]


def write_requests(path: Path, requests: Sequence[Request]) -> None:
    """Write the questions as a JSON list."""
    path.write_text(json.dumps([asdict(request) for request in requests], indent=1), encoding="utf-8")


def read_requests(path: Path) -> tuple[Request, ...]:
    """The questions of a file written by `write_requests`.

    Raises:
        EngineError: the file is not a list of requests.
    """
    try:
        return tuple(_request(entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as reason:
        raise EngineError(
            f"'{path}' is not a list of probe requests: {reason}. Write it with write_requests."
        ) from reason


def write_report(path: Path, report: Report) -> None:
    """Write the answers as one npz archive."""
    arrays = {f"array{i}": answer.array for i, answer in enumerate(report.answers) if answer.array is not None}
    document = _document(report)
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, document=np.frombuffer(document, np.uint8), **arrays)


def read_report(path: Path) -> Report:
    """The answers of a file written by `write_report`.

    Raises:
        EngineError: the file is not a report.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            document = json.loads(archive["document"].tobytes())
            arrays = {name: archive[name] for name in archive.files}
        answers = tuple(_answer(entry, arrays.get(f"array{i}")) for i, entry in enumerate(document.pop("answers")))
        return Report(**(document | {"modules": tuple(document["modules"]), "answers": answers}))
    except (OSError, ValueError, TypeError, KeyError) as reason:
        raise EngineError(f"'{path}' is not a probe report: {reason}. Write it with write_report.") from reason


def _request(entry: dict[str, Any]) -> Request:
    if entry["kind"] not in get_args(Kind):
        raise ValueError(f"kind '{entry['kind']}' is not one of {', '.join(get_args(Kind))}")
    return Request(**(entry | {"tokens": tuple(entry["tokens"])}))


def _document(report: Report) -> bytes:
    fields = {name: value for name, value in vars(report).items() if name != "answers"}
    answers = [{name: value for name, value in vars(a).items() if name != "array"} for a in report.answers]
    return json.dumps(fields | {"answers": answers}).encode()


def _answer(entry: dict[str, Any], array: Float32 | None) -> Answer:
    return Answer(**(entry | {"tokens": tuple(entry["tokens"]), "array": array}))
