"""Recordings as lists that `ossicle` reads: `python recordings.py --split train --out build/demo/calibration`.

One WAV for each utterance, 16 kHz, 16 bits, and `speech.jsonl` beside them. Debian's versions of the synthesizers and a seed
give the same bytes again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import soundfile
from grammar import Split
from speech import SAMPLE_RATE, Utterance
from synthesize import speak

ENGINES = "espeak", "flite"  # those with voices on both sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=get_args(Split), required=True)
    parser.add_argument("--espeak", type=int, default=170, help="so many by espeak-ng (default: %(default)s)")
    parser.add_argument("--flite", type=int, default=90, help="so many by flite (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    lines = []
    for engine in ENGINES:
        spoken = speak(engine, random.Random(f"{options.seed}{engine}"), getattr(options, engine), options.split)
        lines += _written(options.out, engine, spoken)
    (options.out / "speech.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} recordings in {options.out}")


def _written(folder: Path, engine: str, spoken: Sequence[Utterance]) -> list[str]:
    """Write utterances' samples; their lines of the list."""
    lines = []
    for number, one in enumerate(spoken):
        file = f"{engine}-{number:03}.wav"
        soundfile.write(folder / file, one.samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(
            json.dumps({"file": file, "text": one.text, "kind": one.kind, "voice": one.voice, "language": "en"})
        )
    return lines


if __name__ == "__main__":
    main()
