"""A corpus run that is killed again and again, and the speed of its ways to share a machine.

    python benchmarks/corpus.py BUNDLE kill [--files 200] [--kills 6] [--executor processes] [--seed 0]
    python benchmarks/corpus.py BUNDLE speed [--files 60] [--crews 1x2,2x1] [--rounds 2] [--engine onnxruntime]

The corpus is made of the shipped recordings: cut, joined, named with spaces and letters of many scripts; five files are broken.
`kill` ends the whole process group by SIGKILL at random moments, every third time before it has begun, and goes on. Then every
file has to be there once, with the text that a session by itself gives.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ossicle
import soundfile
from ossicle.benchmarks.process import machine
from ossicle.runtimes.corpus_run import Crew, Loading, transcribe_corpus

SPEECH = Path(__file__).parents[1] / "demo" / "speech"
RATE = 16000
WORDS = ("call", "über uns", "réunion", "会議", "встреча", "a b  c", "100% #1", "x'y\"z", "مكالمة", "-dash")
BROKEN = {
    "empty.wav": b"",
    "text.mp3": b"no sound",
    "head.wav": b"RIFF",
    "cut.flac": b"fLaC\0\0",
    "zéro.ogg": b"\0" * 4096,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("what", choices=["kill", "speed"])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--executor", default="processes")
    parser.add_argument("--crews", default="1x2,2x1", help="workers x threads, separated by commas")
    parser.add_argument("--engine", default="onnxruntime", help="what runs the bundle where speed is measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="ossicle-corpus-") as scratch:
        source = make_corpus(Path(scratch) / "in", options.files, random.Random(options.seed))
        if options.what == "kill":
            killed(options.bundle, source, Path(scratch) / "out", options)
        else:
            speeds(options.bundle, source, Path(scratch), options)


def make_corpus(folder: Path, count: int, choose: random.Random) -> Path:
    """A folder of `count` files, five of them broken."""
    clips = [soundfile.read(path, dtype="int16")[0] for path in sorted(SPEECH.glob("[0-9]*.wav"))]
    for number in range(count - len(BROKEN)):
        samples = np.concatenate(choose.sample(clips, choose.choice((1, 1, 1, 2, 3, 12))))
        samples = samples[choose.randrange(len(samples) // 2) :]
        suffix = choose.choice((".wav", ".flac", ".ogg"))
        path = folder / f"part {number % 7}" / f"{choose.choice(WORDS)} {number:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE)
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    return folder


def killed(bundle: Path, source: Path, out: Path, options: argparse.Namespace) -> None:
    """Kill a run so many times, let it end, and check what it left."""
    choose, state = random.Random(options.seed), []
    for number in range(options.kills):
        process, before = begin(bundle, source, out, options.executor), len(entries(out / "results.jsonl"))
        while number % 3 < 2 and process.poll() is None and len(entries(out / "results.jsonl")) == before:
            time.sleep(0.05)
        try:
            process.wait(choose.uniform(0, 8))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state.append(f"{len(entries(out / 'results.jsonl'))}{'' if process.returncode < 0 else ' (ended)'}")
    code = begin(bundle, source, out, options.executor).wait()
    print(f"files settled when it was killed: {', '.join(state)}; exit code of the last run {code}")
    check(bundle, source, out)


def begin(bundle: Path, source: Path, out: Path, executor: str) -> subprocess.Popen[bytes]:
    command = ["transcribe-corpus", bundle, source, out, "--language", "en", "--executor", executor]
    return subprocess.Popen(
        [sys.executable, "-m", "ossicle.cli", *map(str, command)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def check(bundle: Path, source: Path, out: Path) -> None:
    """Compare what a run left with what there is to transcribe, and with what a session by itself says."""
    files = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*") if path.is_file())
    good = [name for name in files if name not in BROKEN]
    found, failed = entries(out / "transcripts.jsonl"), entries(out / "failed.jsonl")
    assert [entry["id"] for entry in found] == good, "a file is lost, done twice or out of order"
    assert sorted(entry["id"] for entry in failed) == sorted(BROKEN), failed
    often = Counter(entry["id"] for entry in entries(out / "results.jsonl"))
    assert set(often) == set(files)
    assert set(often.values()) == {1}, often.most_common(3)
    with ossicle.load(bundle) as session:
        other = [
            one["id"] for one in found if session.transcribe(source / one["id"], language="en").text != one["text"]
        ]
    assert other == [], other
    print(f"{len(found)} files once each, all with the text of a session by itself; {len(failed)} broken ones listed")


def entries(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def speeds(bundle: Path, source: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Print how fast crews are, in turns, so that whatever else the machine does falls on all."""
    for number in range(options.rounds):
        for crew in options.crews.split(","):
            workers, threads = map(int, crew.split("x"))
            out, started = scratch / f"{crew}-{number}", time.perf_counter()
            summary = transcribe_corpus(
                bundle,
                source,
                out,
                language="en",
                loading=Loading(options.engine),
                crew=Crew("processes", workers, threads),
            )
            seconds = time.perf_counter() - started
            print(
                f"{crew}: {summary.times_real_time:.1f} times real time; {summary.run_seconds:.1f} s of {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
