"""Record the shipped clips by the voices and in the sentences kept back: `python record.py --out ../speech`.

Twenty short clips, drawn by the seed and not by how well the model hears them; four long ones of sparse speech, in
which no word lies on the border of two windows; silence; and one sentence at other rates and in stereo.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from evaluate import WINDOW, in_a_room
from grammar import answer, telling_questions
from speech import SAMPLE_RATE, Samples, Utterance
from synthesize import speak

VERIFY = {("espeak", "digits"): 5, ("espeak", "command"): 5, ("espeak", "pair"): 4,
          ("flite", "digits"): 2, ("flite", "command"): 2, ("flite", "pair"): 2}  # fmt: skip
SHORTEST, LONGEST = 2.0, 6.0  # seconds, with the silence around
LONG_CLIPS = {  # name -> samples, utterances in each window
    "long-30s": (30 * SAMPLE_RATE, [2]),
    "long-45s": (int(47.5 * SAMPLE_RATE), [1, 1]),
    "long-60s": (60 * SAMPLE_RATE, [1, 1]),
    "long-75s": (75 * SAMPLE_RATE, [1, 1, 1]),
}


@dataclass(frozen=True)
class Recording:
    """A file to be written and its line in speech.jsonl."""

    name: str
    samples: npt.NDArray[np.int16]
    text: str
    kind: str
    voice: str
    split: str = "special"
    rate: int = SAMPLE_RATE
    questions: dict[str, str] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        return {
            "file": f"{self.name}.wav",
            "text": self.text,
            "kind": self.kind,
            "voice": self.voice,
            "language": "en",
            "questions": self.questions,
            "split": self.split,
        }


def answers(text: str) -> dict[str, str]:
    return {question: answer(question, text) for question in telling_questions(text)}


def _unlike(utterances: list[Utterance]) -> list[Utterance]:
    """The utterances without those that repeat a text."""
    return list({u.text: u for u in utterances}.values())


def _short(spoken: dict[str, list[Utterance]]) -> Iterator[Recording]:
    number = 0
    for (engine, kind), count in VERIFY.items():
        fitting = [
            u
            for u in spoken[engine]
            if u.kind == kind and SHORTEST <= len(in_a_room(u)) / SAMPLE_RATE <= LONGEST and u.text.count(" ") >= 2
        ]
        for u in fitting[:count]:
            number += 1
            name = f"{number:02}-{kind}-{u.family}"
            yield Recording(name, in_a_room(u), u.text, kind, u.voice, "verify", questions=answers(u.text))


def _long(name: str, length: int, by_window: list[int], source: Iterator[Utterance]) -> Recording:
    samples, said, voices = np.zeros(length, np.int16), [], []
    for window, count in enumerate(by_window):
        at = window * WINDOW + SAMPLE_RATE // 4
        for _ in range(count):
            u = next(source)
            samples[at : at + len(u.samples)] = u.samples
            at += len(u.samples) + SAMPLE_RATE * 3 // 4
            said.append(u.text)
            voices.append(u.voice)
    return Recording(name, samples, " ".join(said), name, " ".join(voices))


def _brief(spoken: list[Utterance]) -> Iterator[Utterance]:
    """Commands and digits in turn, of three to five words, none of them twice: the model loses its place in repetitions."""
    unrepeating = [u for u in reversed(spoken) if 3 <= len(u.text.split()) == len(set(u.text.split())) <= 5]
    commands, digits = ([u for u in unrepeating if u.kind == kind] for kind in ("command", "digits"))
    return chain.from_iterable(zip(commands, digits, strict=False))


def _resampled(u: Utterance, rate: int) -> Samples:
    wave = soxr.resample(in_a_room(u).astype(np.float32), SAMPLE_RATE, rate)
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def _odd(u: Utterance) -> Iterator[Recording]:
    yield Recording("silence-2s", np.zeros(2 * SAMPLE_RATE, np.int16), "", "silence", "nobody")
    at_44100 = _resampled(u, 44_100)
    told = {"text": u.text, "voice": u.voice, "questions": answers(u.text)}
    yield Recording("rate-16000-mono", in_a_room(u), kind="rate-16000-mono", **told)
    yield Recording("rate-8000-mono", _resampled(u, 8_000), kind="rate-8000-mono", rate=8_000, **told)
    yield Recording("rate-44100-mono", at_44100, kind="rate-44100-mono", rate=44_100, **told)
    stereo = np.stack([at_44100, at_44100 // 2], axis=1)
    yield Recording("rate-44100-stereo", stereo, kind="rate-44100-stereo", rate=44_100, **told)


def recordings(seed: int) -> Iterator[Recording]:
    spoken = {e: _unlike(speak(e, random.Random(f"{seed} {e}"), 200, "held-out")) for e in ("espeak", "flite")}
    yield from _short(spoken)
    brief = _brief(spoken["espeak"])
    for name, (length, by_window) in LONG_CLIPS.items():
        yield _long(name, length, by_window, brief)
    yield from _odd(next(u for u in brief if u.kind == "command"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "speech")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for recording in recordings(options.seed):
        soundfile.write(options.out / f"{recording.name}.wav", recording.samples, recording.rate, subtype="PCM_16")
        lines.append(json.dumps(recording.line()))
        print(f"{len(recording.samples) / recording.rate:5.1f} s  {recording.name}: {recording.text}")
    (options.out / "speech.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
