"""What is chosen by measurement beside every single engine: a recording and its answer, in turns, in one run, as ratios.

    python benchmarks/selection.py BUNDLE [--audio FILE] [--tokens 100] [--turns 7] [--budget 30]

Each way to run the bundle is opened in a process of its own, and answers one after the other, over and over; the median of
its turns counts. "auto" is what `ossicle.load(bundle)` opens, after `ossicle bench` has measured. It must not be slower than
the best single engine by more than 5 %; the exit code says whether it is.
"""

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import numpy as np
import ossicle
from ossicle.runtimes.audio import load_audio
from ossicle.targets.memory import peak_memory

LIMIT = 1.05
RECORDING = Path(__file__).parents[1] / "demo" / "speech" / "long-30s.wav"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--audio", type=Path, default=RECORDING)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--budget", type=float, default=30.0)
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # in a child: what it opens
    options = parser.parse_args()
    if options.engine:
        answer(options.bundle, options.engine, options.audio, options.tokens)
        return 0
    found = ossicle.bench(options.bundle, budget=options.budget, again=True)
    print(f"chosen: {found.plan} (measured in {found.seconds:.1f} s)")
    plans = [plan.plan for plan in found.plans]
    return report(measured(["auto", *dict.fromkeys(plans)], options), [plan for plan in plans if "=" not in plan])


def measured(ways: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each way took at each turn; the first turn of each is not counted."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with ExitStack() as stack:
        children = {way: stack.enter_context(child(way, options)) for way in ways}
        for turn in range(options.turns + 1):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                process = children[way]
                assert process.stdin is not None
                assert process.stdout is not None
                print(turn, file=process.stdin, flush=True)
                taken[way].append(json.loads(process.stdout.readline()))
        for process in children.values():
            assert process.stdin is not None
            process.stdin.close()
    return {way: turns[1:] for way, turns in taken.items()}


def child(way: str, options: argparse.Namespace) -> "subprocess.Popen[str]":
    """A process that answers whenever it is given a number."""
    told = ["--engine", way, "--audio", str(options.audio), "--tokens", str(options.tokens)]
    return subprocess.Popen(
        [sys.executable, __file__, str(options.bundle), *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def answer(bundle: Path, engine: str, audio: Path, tokens: int) -> None:
    """Hear, read and answer for each line that comes: so many tokens each time, wherever the model itself would stop."""
    samples = load_audio(audio)
    with ossicle.load(bundle, engine=engine, prefixes=0) as session:  # nothing is remembered from turn to turn
        running = session._engine
        for _ in sys.stdin:
            started = perf_counter()
            heard = running.encode(session.log_mel(samples))
            encoded = perf_counter()
            logits, state = running.prefill([np.concatenate([running.embed(np.arange(20)), *heard])])
            read = perf_counter()
            for _ in range(tokens):
                logits, state = running.step(state, logits.argmax(axis=1))
            ended = perf_counter()
            told = {"seconds": ended - started, "encode": encoded - started, "prefill": read - encoded}
            print(json.dumps(told | {"decode": ended - read, "memory": peak_memory()}), flush=True)


def report(taken: dict[str, list[dict[str, float]]], singles: list[str]) -> int:
    """The medians as a table, and whether what was chosen keeps to its limit."""
    names = ("seconds", "encode", "prefill", "decode")
    medians = {
        way: {name: statistics.median(turn[name] for turn in turns) for name in names} for way, turns in taken.items()
    }
    best = min(singles, key=lambda way: medians[way]["seconds"])
    print(f"{'':60} {'in all':>9} {'ratio':>6} {'encode':>9} {'prefill':>9} {'decode':>9} {'peak':>8}")
    for way, found in medians.items():
        times = [f"{found[name] * 1e3:6.0f} ms" for name in names]
        ratio, last = found["seconds"] / medians[best]["seconds"], taken[way][-1]
        rest = f"{ratio:6.2f} {' '.join(times[1:])} {last['memory'] / 1e6:5.0f} MB"
        print(f"{way:60} {times[0]} {rest}")
    ratio = medians["auto"]["seconds"] / medians[best]["seconds"]
    print(f"auto beside {best}, the best single engine: {ratio:.3f} (at most {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
