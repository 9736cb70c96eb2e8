"""Time to the first token of another question about a recording, with and without what the first question left.

    python benchmarks/prefixes.py BUNDLE [--audio FILE] [--turns 12] [--engines onnxruntime,openvino,llamacpp]

Both sessions of an engine keep the recording's embeddings, take turns, and are asked the same questions; medians count.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter

import ossicle
from ossicle.runtimes.session import Session

RECORDING = Path(__file__).parents[1] / "demo" / "speech" / "long-30s.wav"
QUESTIONS = ("Which room?", "What is done?", "Who is it for?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--audio", type=Path, default=RECORDING)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--engines", default="onnxruntime,openvino,llamacpp")
    asked = parser.parse_args()
    print("engine           read whole   from the prefix   ratio")
    for engine in asked.engines.split(","):
        whole, kept = medians(asked.bundle, engine, asked.audio, asked.turns)
        print(f"{engine:15s} {whole * 1e3:8.1f} ms {kept * 1e3:14.1f} ms {whole / kept:7.1f}")


def medians(bundle: Path, engine: str, audio: Path, turns: int) -> tuple[float, float]:
    """Median seconds of every turn but the first, of a session that keeps no prompts, and of one that does."""
    with ossicle.load(bundle, engine=engine, prefixes=0) as whole, ossicle.load(bundle, engine=engine) as kept:
        sessions: tuple[Session, Session] = (whole, kept)
        taken: tuple[list[float], list[float]] = ([], [])
        for turn in range(turns + 1):
            for session, seconds in zip(sessions, taken, strict=True):
                seconds.append(first_token(session, audio, QUESTIONS[turn % len(QUESTIONS)]))
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def first_token(session: Session, audio: Path, question: str) -> float:
    """Seconds from the question to the first piece of its answer."""
    content = [{"type": "audio", "audio": str(audio)}, {"type": "text", "text": question}]
    started = perf_counter()
    stream = session.stream([{"role": "user", "content": content}], max_tokens=2)
    next(iter(stream))
    seconds = perf_counter() - started
    stream.close()
    return seconds


if __name__ == "__main__":
    main()
