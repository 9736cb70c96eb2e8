"""Synthesized speech on disk: shards of int16 samples beside a line of JSON per utterance."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Utterance:
    """One sentence as one voice says it: 16 kHz mono samples, trimmed, peak 0.9."""

    samples: Samples
    text: str
    kind: str
    voice: str

    @property
    def family(self) -> str:
        return self.voice.split("/")[0]


@dataclass(frozen=True)
class _Entry:
    start: int
    length: int
    text: str
    kind: str
    voice: str


def write_shard(path: Path, utterances: list[Utterance]) -> None:
    """Write `path`.npy and then `path`.jsonl; a shard without its index does not exist for readers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), np.concatenate([u.samples for u in utterances]))
    start, lines = 0, []
    for u in utterances:
        lines.append(json.dumps(asdict(_Entry(start, len(u.samples), u.text, u.kind, u.voice))))
        start += len(u.samples)
    unfinished = path.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n")
    os.replace(unfinished, path.with_suffix(".jsonl"))


def read_shard(index: Path) -> list[Utterance]:
    """The utterances of one shard, their samples mapped from disk."""
    samples = np.load(index.with_suffix(".npy"), mmap_mode="r")
    entries = (_Entry(**json.loads(line)) for line in index.read_text().splitlines())
    return [Utterance(samples[e.start : e.start + e.length], e.text, e.kind, e.voice) for e in entries]


def read_speech(folder: Path, split: str) -> list[Utterance]:
    """Every utterance of a split, in the order of the shards' names."""
    return [u for index in sorted(folder.glob(f"{split}-*.jsonl")) for u in read_shard(index)]
