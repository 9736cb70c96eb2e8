"""Recordings on which numbers are made, and others by which they are judged: what quality.py and budget.py measure on.

Of the shipped recordings either half is heard by models that were made on the other. With lists of one's own, models are made
on one and heard on the other.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.cli.demo import shipped
from ossicle.compiler import reference, speech
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.readings import Reading, reading_at
from ossicle.compiler.speech import Clip, Speech


@dataclass(frozen=True)
class Part:
    """Lists of recordings: one to make numbers on, one that is heard afterwards, and what the original makes of that."""

    calibration: Path
    heard: Path
    readings: tuple[Reading, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The lists of one's own, given together or not at all."""
    parser.add_argument("--calibration", type=Path, help="make numbers on this list of recordings (see --heard)")
    parser.add_argument(
        "--heard", type=Path, help="and judge them by this one; without both: the shipped, in two halves"
    )


def parts(options: argparse.Namespace, folder: Path) -> list[Part]:
    """The parts that the options ask for; lists and readings are kept in the folder."""
    if bool(options.calibration) != bool(options.heard):
        raise SystemExit("--calibration and --heard go together: one list to make numbers on, another to judge them by")
    readings = _read(options.heard or speech.shipped(), folder)
    if options.calibration:
        return [Part(options.calibration, options.heard, tuple(readings))]
    halves = [tuple(readings[number::2]) for number in range(2)]
    first, second = (_listed(folder / f"half-{number}.jsonl", half) for number, half in enumerate(halves))
    return [Part(second, first, halves[0]), Part(first, second, halves[1])]


def _read(listed: Path, folder: Path) -> Sequence[Reading]:
    """What the original makes of every transcript of a list."""
    heard = speech.load(listed)
    clips = tuple(replace(clip, questions=()) for clip in heard.clips)
    spoken = Speech(heard.name, clips, f"{heard.sha256}, without questions")
    return [reading_at(path, clip) for clip, path in reference.keep(open_checkpoint(shipped("model")), spoken, folder)]


def _listed(path: Path, readings: Sequence[Reading]) -> Path:
    """A list of the recordings that were read."""
    path.write_text("\n".join(_entry(reading.clip) for reading in readings))
    return path


def _entry(clip: Clip) -> str:
    return json.dumps({"file": str(clip.file.resolve()), "text": clip.text, "language": clip.language})
