"""Training batches: speech at known places in 30 s windows, and what to say about it.

A window is 375 audio tokens, nearly all of them silence and all silent ones alike but for their position. So a
batch holds the spoken groups and a few silent ones drawn at random, each silent one standing for many: its
logit carries the logarithm of how many. Encoder and decoder positions are those of the full prompt, so the
trained weights mean the same in full windows through the unmodified model, at a tenth of the work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from augment import Wave, disguise, emptiness, segment_energies
from grammar import QUESTIONS, WORDS, answer, telling_questions
from model import GROUP_SAMPLES, GROUPS, PAD, Tokens
from speech import Utterance, read_shard
from torch import Tensor

SILENT_GROUPS = 4
CHUNKS_SORTED = 10
EMPTY_SHARE = 0.03
ESPEAK_SHARE = 0.45
OTHER_LANGUAGES = ("es", "fr", "de", "it", "nl", "pt", "hi")
IGNORED = -100
Spelling = Callable[[str], str]
WORD_ID = {word: number for number, word in enumerate(WORDS, start=1)}


@dataclass(frozen=True)
class Layout:
    """Where segments of speech lie: their first groups, window by window, the same number in each window."""

    starts: tuple[tuple[int, ...], ...]

    @property
    def windows(self) -> int:
        return len(self.starts)

    @property
    def segments(self) -> int:
        """Segments in one row of the batch."""
        return len(self.starts) * len(self.starts[0])


def draw_layout(rng: random.Random, groups: int, most: int) -> Layout:
    """Mostly one utterance at the start of one window; sometimes elsewhere, several, or several windows."""
    windows, per_window = 1, 1
    share = rng.random()
    if 0.76 < share < 0.86:
        per_window = rng.randint(2, 4)
    elif share >= 0.86:
        windows, per_window = rng.randint(2, 3), rng.choice([1, 1, 2])
    per_window = max(1, min(per_window, most // windows, GROUPS // groups))
    at_start = share < 0.66
    return Layout(tuple(_starts(rng, groups, per_window, at_start) for _ in range(windows)))


def _starts(rng: random.Random, groups: int, count: int, at_start: bool) -> tuple[int, ...]:
    if at_start:
        return (0,)
    free = GROUPS - count * groups
    if rng.random() < 0.6:
        free = min(free, 12 * count)
    rests = sorted(rng.randint(0, free) for _ in range(count))
    return tuple(rest + number * groups for number, rest in enumerate(rests))


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. Rows are prompts; a row holds `windows` windows of the same kind of layout."""

    mel: Tensor  # [rows * segments, 128, 8 * groups], normalized as WhisperFeatureExtractor does
    silence: Tensor  # [rows], the value of a silent mel frame
    windows: int
    spoken: Tensor  # [windows, spoken groups in a window]: their places in the window
    silent: Tensor  # [windows, silent groups drawn]: their places in the window
    weight: float  # logarithm of how many silent groups each drawn one stands for
    words: list[list[int]]  # per window of each row, for the word-level CTC
    ids: Tensor  # [rows, transcription then question]
    labels: Tensor
    positions: Tensor  # [columns of ids], counted from the end of the audio
    transcription: int  # columns of ids that belong to the transcription

    @property
    def presented(self) -> int:
        return len(self.mel)


@dataclass
class Pool:
    """The utterances synthesized so far, by voice, read again as more arrive."""

    folder: Path
    voices: dict[str, list[Utterance]] = field(default_factory=dict)
    _seen: set[Path] = field(default_factory=set)

    def refresh(self) -> None:
        for index in sorted(set(self.folder.glob("train-*.jsonl")) - self._seen):
            self._seen.add(index)
            for utterance in read_shard(index):
                voice = "espeak" if utterance.family == "espeak" else utterance.voice
                self.voices.setdefault(voice, []).append(utterance)

    def draw(self, rng: random.Random, longest: int) -> Utterance:
        """An utterance of at most `longest` words: half espeak-ng's hundred speakers, half the few others."""
        others = [voice for voice in self.voices if voice != "espeak"]
        while True:
            voice = "espeak" if not others or rng.random() < ESPEAK_SHARE else rng.choice(others)
            utterance = rng.choice(self.voices[voice])
            if utterance.text.count(" ") < longest:
                return utterance

    def __len__(self) -> int:
        return sum(map(len, self.voices.values()))


Continuation = tuple[list[int], list[int]]  # what is asked, what is to be replied


def _suffix(rng: random.Random, tokens: Tokens, text: str, spell: Spelling) -> tuple[Continuation, Continuation]:
    """Two independent continuations of one audio: a transcription and a question."""
    share = rng.random()
    language = "en" if share < 0.45 else rng.choice(OTHER_LANGUAGES) if share < 0.52 else None
    telling = telling_questions(text)
    question = rng.choice(telling if telling and rng.random() < 0.8 else list(QUESTIONS))
    return (
        (tokens.transcription(language), tokens.reply(spell(text))),
        (tokens.question(question), tokens.reply(answer(question, text))),
    )


def _columns(pairs: list[Continuation]) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids, labels = torch.full((len(pairs), width), PAD), torch.full((len(pairs), width), IGNORED)
    for row, (prompt, reply) in enumerate(pairs):
        ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    return ids, labels


def assemble(clips: list[tuple[Wave, str]], rng: random.Random, tokens: Tokens, spell: Spelling = str) -> Batch:
    """One batch from clips of about the same length."""
    groups = min(GROUPS, -(-max(len(wave) for wave, _ in clips) // GROUP_SAMPLES) + 1)
    layout = draw_layout(rng, groups, len(clips) // 4)
    rows = len(clips) // layout.segments
    clips = clips[: rows * layout.segments]
    rng.shuffle(clips)

    energies = segment_energies([wave for wave, _ in clips], groups, rng)
    peak = energies.view(rows, -1).amax(1)
    floor = (peak - 8).clamp(min=-10)
    mel = (torch.maximum(energies.view(rows, -1), floor[:, None]) + 4) / 4

    spoken = torch.tensor([[g for start in starts for g in range(start, start + groups)] for starts in layout.starts])
    silent_places = [sorted(set(range(GROUPS)) - set(window.tolist())) for window in spoken]
    drawn = min(SILENT_GROUPS + layout.segments // layout.windows - 1, len(silent_places[0]))
    silent = torch.tensor([sorted(rng.sample(places, drawn)) for places in silent_places])

    per_window = layout.segments // layout.windows
    texts = [text for _, text in clips]
    by_window = [" ".join(filter(None, texts[at : at + per_window])) for at in range(0, len(texts), per_window)]
    by_row = [" ".join(filter(None, texts[at : at + layout.segments])) for at in range(0, len(texts), layout.segments)]
    suffixes = [_suffix(rng, tokens, text, spell) for text in by_row]
    ids, labels = _columns([transcription for transcription, _ in suffixes])
    more_ids, more_labels = _columns([question for _, question in suffixes])
    return Batch(
        mel=mel.view(len(clips), 128, -1),
        silence=(floor + 4) / 4,
        windows=layout.windows,
        spoken=spoken,
        silent=silent,
        weight=math.log(len(silent_places[0]) / drawn) if drawn else 0.0,
        words=[[WORD_ID[word] for word in text.split()] for text in by_window],
        ids=torch.cat([ids, more_ids], dim=1),
        labels=torch.cat([labels, more_labels], dim=1),
        positions=torch.cat([torch.arange(ids.shape[1]), torch.arange(more_ids.shape[1])]),
        transcription=ids.shape[1],
    )


@dataclass
class Course:
    """How far training has come, which the batches follow: short sentences first."""

    progress: float = 0.0

    @property
    def longest(self) -> int:
        return 99 if self.progress > 0.08 else 2 + int(self.progress * 150)


def batches(
    pool: Pool, tokens: Tokens, size: int, course: Course, seed: int, worker: int = 0, spell: Spelling = str
) -> Iterator[Batch]:
    """Endless batches of about `size` utterances of like length, alike for all workers of a step.

    `spell` turns what is said into what the transcription is to read.
    """
    rng, noise = random.Random(f"{seed} {worker}"), np.random.default_rng((seed, worker))
    order = random.Random(seed)
    while True:
        pool.refresh()
        clips: list[tuple[Wave, str]] = []
        for _ in range(size * CHUNKS_SORTED):
            if rng.random() < EMPTY_SHARE:
                clips.append((emptiness(rng, noise), ""))
            else:
                utterance = pool.draw(rng, course.longest)
                clips.append((disguise(utterance, rng, noise), utterance.text))
        clips.sort(key=lambda clip: len(clip[0]))
        chunks = [clips[at : at + size] for at in range(0, len(clips), size)]
        order.shuffle(chunks)
        for chunk in chunks:
            yield assemble(chunk, rng, tokens, spell)
