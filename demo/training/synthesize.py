"""Speak the grammar with espeak-ng, flite and festival: `python synthesize.py --engine flite --count 20000`.

Packages (Debian main): espeak-ng flite festival festvox-kdlpc16k festvox-us-slt-hts
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from grammar import Split, sentence
from speech import SAMPLE_RATE, Utterance, write_shard
from voices import ACCENTS, ESPEAK_HELD_OUT, ESPEAK_TRAIN, FESTIVAL_TRAIN, FLITE_HELD_OUT, FLITE_TRAIN

SHARD = 500
SHORTEST, LONGEST = 0.2, 5.6  # seconds


@dataclass(frozen=True)
class Line:
    """A sentence to be spoken."""

    text: str
    kind: str


def _parse_wav(raw: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """Samples and rate of 16-bit mono WAV bytes, whose length field a pipe leaves unset."""
    body = raw[raw.index(b"data") + 8 :]
    samples = np.frombuffer(body[: len(body) // 2 * 2], dtype="<i2").astype(np.float32) / 32768
    return samples, int.from_bytes(raw[24:28], "little")


def _trimmed(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.int16] | None:
    """The speech alone at 16 kHz with its peak at 0.9; None where nothing fits the length limits."""
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * max(1e-6, float(np.abs(samples).max(initial=0))))
    if len(loud) == 0:
        return None
    samples = samples[max(0, loud[0] - 400) : loud[-1] + 800]
    if not SHORTEST < len(samples) / SAMPLE_RATE < LONGEST:
        return None
    return (samples / np.abs(samples).max() * 0.9 * 32767).astype(np.int16)


def _espeak(rng: random.Random, lines: list[Line], split: Split) -> Iterator[Utterance]:
    variants = ESPEAK_TRAIN if split == "train" else ESPEAK_HELD_OUT
    for line in lines:
        voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
        speed, pitch, gap = rng.randint(130, 235), rng.randint(25, 75), rng.choice([0, 0, 0, 1, 2, 4])
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap), "--stdout", line.text]
        samples = _trimmed(*_parse_wav(subprocess.run(command, capture_output=True, check=True).stdout))
        if samples is not None:
            yield Utterance(samples, line.text, line.kind, f"espeak/{voice}")


def _flite(rng: random.Random, lines: list[Line], split: Split) -> Iterator[Utterance]:
    voices = FLITE_TRAIN if split == "train" else FLITE_HELD_OUT
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "line.wav")
        for line in lines:
            voice = rng.choice(list(voices))
            settings = [
                f"duration_stretch={rng.uniform(0.75, 1.2):.2f}",
                f"int_f0_target_mean={rng.uniform(*voices[voice]):.0f}",
            ]
            command = [
                "flite",
                "-voice",
                voice,
                "--setf",
                settings[0],
                "--setf",
                settings[1],
                "-t",
                line.text,
                "-o",
                str(wav),
            ]
            subprocess.run(command, capture_output=True, check=True)
            samples = _trimmed(*_parse_wav(wav.read_bytes()))
            if samples is not None:
                yield Utterance(samples, line.text, line.kind, f"flite/{voice}")


def _festival(rng: random.Random, lines: list[Line], split: Split) -> Iterator[Utterance]:
    if split != "train":
        raise SystemExit("festival speaks for training only: its voices are not held out. Try --engine flite.")
    voices = [rng.choice(FESTIVAL_TRAIN) for _ in lines]
    with tempfile.TemporaryDirectory() as folder:
        script = []
        for number, (line, voice) in enumerate(zip(lines, voices, strict=True)):
            pitch = rng.randint(80, 150)
            script.append(
                f"(voice_{voice}) (Parameter.set 'Duration_Stretch {rng.uniform(0.7, 1.15):.2f})"
                f"(set! int_lr_params '((target_f0_mean {pitch}) (target_f0_std {rng.randint(8, 24)})"
                " (model_f0_mean 170) (model_f0_std 34)))"
                f'(utt.save.wave (utt.synth (Utterance Text "{line.text}")) "{folder}/{number}.wav" \'riff)'
            )
        Path(folder, "speak.scm").write_text("\n".join(script))
        subprocess.run(["festival", "-b", f"{folder}/speak.scm"], capture_output=True, check=True)
        for number, (line, voice) in enumerate(zip(lines, voices, strict=True)):
            samples = _trimmed(*_parse_wav(Path(folder, f"{number}.wav").read_bytes()))
            if samples is not None:
                yield Utterance(samples, line.text, line.kind, f"festival/{voice}")


ENGINES: dict[str, Callable[[random.Random, list[Line], Split], Iterator[Utterance]]] = {
    "espeak": _espeak,
    "flite": _flite,
    "festival": _festival,
}


def speak(engine: str, rng: random.Random, count: int, split: Split) -> list[Utterance]:
    """Up to `count` utterances by one engine; those too long or too short fall out."""
    lines = [Line(*sentence(rng, split)) for _ in range(count)]
    return list(ENGINES[engine](rng, lines, split))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--split", choices=("train", "held-out"), default="train")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/demo/speech"))
    options = parser.parse_args()
    rng, start, spoken, seconds = random.Random(options.seed), time.time(), 0, 0.0
    for shard in range(-(-options.count // SHARD)):
        utterances = speak(options.engine, rng, min(SHARD, options.count - shard * SHARD), options.split)
        write_shard(options.out / f"{options.split}-{options.engine}-{options.seed}-{shard:03}", utterances)
        spoken += len(utterances)
        seconds += sum(len(u.samples) for u in utterances) / SAMPLE_RATE
        each = (time.time() - start) / spoken * 1000
        print(f"{spoken} utterances, {seconds / 3600:.2f} h of speech, {each:.0f} ms each", flush=True)


if __name__ == "__main__":
    main()
