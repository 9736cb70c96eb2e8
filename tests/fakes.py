"""A bundle and a runtime of numpy alone: what a session does is tested on them in milliseconds.

The fake model is a real one in every respect that a session can see: each embedding counts, state grows token by token,
rows of a batch are independent, and what comes next depends on all that came before.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ossicle.compiler.families._mistral_tools import tool_format
from ossicle.compiler.tokenizer import write_tokenizer
from ossicle.runtimes.base import Engine, Sequences
from ossicle.runtimes.options import Options
from ossicle.runtimes.tokens import Tokenizer
from ossicle.targets import manifest
from ossicle.targets.contract import Artifact, EngineError, Float32, Int64, Memory

DEMO = Path(__file__).parents[1] / "demo" / "model"
HIDDEN, VOCABULARY = 16, 512

AUDIO = manifest.AudioFormat(
    sample_rate=16000, mel_bins=128, fft=400, hop=160, window_frames=3000, tokens_per_window=375
)
TEXT = manifest.TextFormat(
    hidden=HIDDEN,
    layers=1,
    kv_heads=1,
    head_dim=HIDDEN,
    vocabulary=VOCABULARY,
    context=4096,
    audio_token=24,
    stop_tokens=(2,),
    pad_token=11,
    begin="<s>",
    audio="[BEGIN_AUDIO]{audio}",
    transcribe="[INST]{audio}[/INST][TRANSCRIBE]",
    transcribe_language="[INST]{audio}[/INST]lang:{language}[TRANSCRIBE]",
    system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]",
    user="[INST]{content}[/INST]",
    assistant="{content}</s>",
    tools=tool_format(7),
)


def demo_tokenizer(folder: Path) -> Tokenizer:
    """The demo model's tokenizer, converted into `folder`."""
    return Tokenizer(write_tokenizer(DEMO, folder / "tokenizer.json"))


def write_bundle(folder: Path) -> manifest.Manifest:
    """Write a bundle for the fake runtime: a tokenizer, and an artifact that is one empty file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(DEMO, folder / "tokenizer.json")
    (folder / "model.fake").write_bytes(b"fake")
    stages = ("audio_encoder", "embed_tokens", "decoder")
    model = manifest.file_entry(folder, folder / "model.fake")
    written = manifest.Manifest(
        family="voxtral",
        name="fake",
        recipe={"name": "fp32"},
        source=manifest.Source("fake", ()),
        adapters=(),
        audio=AUDIO,
        text=TEXT,
        artifacts=tuple(Artifact("fake", s, "fp32", "float32", (model,), (), (), {}, Memory(4)) for s in stages),
        files=(manifest.file_entry(folder, folder / "tokenizer.json"),),
        tools={},
    )
    manifest.write(folder, written)
    return written


class FakeEngine:
    """A model whose state is a decaying sum of what it was given, and whose logits are a fixed projection of it."""

    name = "fake-cpu"

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._embedding = random.normal(0, 1, (VOCABULARY, HIDDEN)).astype(np.float32)
        self._head = random.normal(0, 1, (HIDDEN, VOCABULARY)).astype(np.float32)
        self._head[:, :40] *= 0.5  # special tokens are rare, </s> among them
        self.closed = False
        self.batches: list[int] = []

    def encode(self, mel: Float32) -> Float32:
        pooled = mel.reshape(len(mel), HIDDEN, 8, AUDIO.tokens_per_window, 8).mean(axis=(2, 4)).swapaxes(1, 2)
        return np.asarray(pooled - pooled.mean(), np.float32)

    def embed(self, ids: Int64) -> Float32:
        return np.asarray(self._embedding[ids], np.float32)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        states = [self._run(np.zeros(HIDDEN, np.float32), prompt)[-1] for prompt in prompts]
        return self._logits(np.stack(states)), Sequences([len(p) for p in prompts], np.stack(states))

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        states = self._run(state.cache[0], prompt)[-1:]
        return self._logits(states), Sequences([state.lengths[0] + len(prompt)], states)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        self.batches.append(len(tokens))
        states = np.stack([self._run(c, e[None])[-1] for c, e in zip(state.cache, self.embed(tokens), strict=True)])
        return self._logits(states), Sequences([length + 1 for length in state.lengths], states)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return Sequences([state.lengths[row] for row in rows], state.cache[list(rows)])

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self._logits(self._run(np.zeros(HIDDEN, np.float32), prompt)[-last:])

    def close(self) -> None:
        self.closed = True

    def _logits(self, states: Float32) -> Float32:
        return np.stack([np.tanh(state * np.float32(0.2)) @ self._head for state in states])

    @staticmethod
    def _run(state: Float32, embeddings: Float32) -> Float32:
        states = []
        for embedding in embeddings:
            state = np.roll(state, 1) * np.float32(0.999) + embedding
            states.append(state)
        return np.stack(states)


class FakeRuntime:
    """The fake engine as a kind; `reason` makes it unusable."""

    name = "fake"
    target = "fake"
    package = "numpy"
    engine = FakeEngine

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self.opened: list[FakeEngine] = []

    def usable(self) -> str | None:
        return self.reason

    def open(self, folder: Path, manifest: manifest.Manifest, options: Options) -> Engine:
        if not (folder / "model.fake").exists():
            raise EngineError(f"fake: '{folder}' has no model.fake for {manifest.name} on {options.provider}")
        self.opened.append(self.engine())
        return self.opened[-1]
