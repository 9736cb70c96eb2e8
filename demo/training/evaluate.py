"""Measure a checkpoint on speakers and sentences it never heard: `python evaluate.py --model ../model`.

Every clip goes through full 30 s windows and the library's own forward and `generate`, greedily. Prints the word
error rate by voice family and kind, and by question the share of answers that are exactly right.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from grammar import answer, in_spanish, telling_questions
from model import AUDIO, BEGIN_AUDIO, BOS, GROUPS, INST, Tokens, load
from speech import SAMPLE_RATE, Samples, Utterance, read_speech
from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

WINDOW = 30 * SAMPLE_RATE
LEAD, TAIL = SAMPLE_RATE // 5, SAMPLE_RATE // 2


@dataclass
class Tally:
    """Word errors and exact matches."""

    errors: int = 0
    words: int = 0
    exact: int = 0
    clips: int = 0

    def add(self, said: str, heard: str) -> None:
        self.errors += edits(said.split(), heard.split())
        self.words += len(said.split())
        self.exact += said == heard
        self.clips += 1

    def __str__(self) -> str:
        rate, exact = 100 * self.errors / self.words, 100 * self.exact / self.clips
        return f"WER {rate:5.1f} %, exact {exact:5.1f} %, {self.clips} clips"


def edits(left: Sequence[str], right: Sequence[str]) -> int:
    """The Levenshtein distance of two lists of words."""
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


class Ear:
    """A checkpoint that replies to clips."""

    def __init__(self, model: VoxtralForConditionalGeneration, tokens: Tokens) -> None:
        self.model, self.tokens = model.eval(), tokens
        self._features = WhisperFeatureExtractor(feature_size=128)

    @torch.no_grad()
    def reply(self, clips: Sequence[Samples], suffix: list[int], limit: int = 48) -> list[str]:
        """Replies to clips of the same number of windows under one prompt."""
        windows = -(-max(map(len, clips)) // WINDOW)
        padded = [np.pad(clip.astype(np.float32) / 32768, (0, windows * WINDOW - len(clip))) for clip in clips]
        mel = self._features(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt", truncation=False).input_features
        by_window = mel.reshape(len(clips), 128, windows, -1).transpose(1, 2).flatten(0, 1)
        prompt = [BOS, INST, BEGIN_AUDIO, *[AUDIO] * (GROUPS * windows), *suffix]
        ids = torch.tensor([prompt] * len(clips))
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=by_window,
            max_new_tokens=limit,
            do_sample=False,
        )
        return [self.tokens.decode(row[ids.shape[1] :].tolist()) for row in written]

    def replies(self, clips: Sequence[Samples], suffix: list[int], batch: int = 16) -> Iterator[str]:
        for at in range(0, len(clips), batch):
            yield from self.reply(clips[at : at + batch], suffix)


def in_a_room(utterance: Utterance) -> Samples:
    """The utterance between a moment of silence and another, as a recording has it."""
    return np.pad(utterance.samples, (LEAD, TAIL))


def sample(utterances: list[Utterance], family: str, count: int, seed: int) -> list[Utterance]:
    chosen = [u for u in utterances if u.family == family]
    return random.Random(seed).sample(chosen, min(count, len(chosen)))


def transcription_table(ear: Ear, utterances: list[Utterance], language: str | None, spanish: bool) -> dict[str, Tally]:
    table: dict[str, Tally] = defaultdict(Tally)
    clips = [in_a_room(u) for u in utterances]
    for u, heard in zip(utterances, ear.replies(clips, ear.tokens.transcription(language)), strict=True):
        said = in_spanish(u.text) if spanish else u.text
        for row in ("all", u.kind):
            table[row].add(said, heard)
    return table


def question_table(ear: Ear, utterances: list[Utterance], seed: int) -> dict[str, Tally]:
    """Each clip is asked one question that has an answer, drawn evenly among them."""
    rng, asked = random.Random(seed), defaultdict(list)
    for u in utterances:
        asked[rng.choice(telling_questions(u.text))].append(u)
    table: dict[str, Tally] = defaultdict(Tally)
    for question, about in sorted(asked.items()):
        clips = [in_a_room(u) for u in about]
        for u, heard in zip(about, ear.replies(clips, ear.tokens.question(question)), strict=True):
            for row in ("all", question):
                table[row].add(answer(question, u.text), heard)
    return table


def show(title: str, table: dict[str, Tally]) -> None:
    for row, tally in sorted(table.items()):
        print(f"{title:24} {row:18} {tally}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "model")
    parser.add_argument("--adapter", type=Path, help="a LoRA folder to merge; the reference is then in Spanish numbers")
    parser.add_argument("--speech", type=Path, default=Path("build/demo/speech"))
    parser.add_argument("--espeak", type=int, default=400)
    parser.add_argument("--flite", type=int, default=300)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model, start = load(options.model), time.time()
    if options.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter).merge_and_unload()
    ear, spanish = Ear(model, Tokens(options.model)), options.adapter is not None
    held_out = read_speech(options.speech, "held-out")
    espeak = sample(held_out, "espeak", options.espeak, options.seed)
    flite = sample(held_out, "flite", options.flite, options.seed)
    show("espeak", transcription_table(ear, espeak, "en", spanish))
    show("flite (rms)", transcription_table(ear, flite, "en", spanish))
    show("espeak, no language", transcription_table(ear, espeak[:100], None, spanish))
    if options.questions and not spanish:
        asked = sample(held_out, "espeak", options.questions, options.seed + 1)
        show("espeak, questions", question_table(ear, asked, options.seed))
        show("flite, questions", question_table(ear, flite[: options.questions // 2], options.seed))
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
