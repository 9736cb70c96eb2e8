"""Core ML: runs the bundle's `coreml` packages, on a Mac by Core ML, elsewhere by an interpreter of their programs.

The interpreter (runtimes/mil) computes what a package says, slowly. It proves a package where there is no Mac, and is never
chosen for a user who has not asked for this engine by name.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import Artifact, EngineError, Float32, Int64
from ..targets.manifest import Manifest
from ..targets.probe import Proof
from .artifacts import stage_artifact
from .base import Encoder, Engine, Sequences, opened_without_encoder
from .coreml_models import UNITS, CachedModel, InterpretedModel, Model, NativeModel, native_refusal
from .options import Options, check_options
from .refusal import Refusal

PACKAGE = ".mlpackage"
_ELSEWHERE = Refusal("Core ML is part of macOS. Run the bundle on a Mac", "system")


class CoreMl:
    """Core ML on one of its compute units, or its interpreter where there is none."""

    name = "coreml"
    target = "coreml"
    package = "coremltools"

    @property
    def proof(self) -> Proof:
        return "executed" if _on_mac() else "interpreted"

    def absent(self) -> str | None:
        return native_refusal() if _on_mac() else _ELSEWHERE

    def usable(self) -> str | None:
        return native_refusal() if _on_mac() else None

    def providers(self) -> Mapping[str, str | None]:
        """What speaks against each of its compute units here, by name; None: nothing, or the interpreter stands in."""
        if self.usable():
            return {}
        return {unit: None if _on_mac() or unit == "cpu" else _ELSEWHERE for unit in UNITS}

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._whole(folder, manifest, options, self.open_encoder(folder, manifest, options))

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._whole(folder, manifest, options, None)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        self._check(options)
        artifact = stage_artifact(folder, manifest, self, "audio_encoder")
        return CoreMlEncoder(self._engine_name(options), _Stage(artifact, _opened(folder, artifact, options.provider)))

    def _whole(self, folder: Path, manifest: Manifest, options: Options, encoder: Encoder | None) -> Engine:
        self._check(options)
        stages = [stage_artifact(folder, manifest, self, stage) for stage in ("embed_tokens", "decoder")]
        models = [_Stage(artifact, _opened(folder, artifact, options.provider)) for artifact in stages]
        return CoreMlEngine(self._engine_name(options), encoder, *models)

    def _check(self, options: Options) -> None:
        if reason := self.usable():
            raise EngineError(f"engine 'coreml' cannot be used: {reason}")
        check_options(self.name, options, providers=tuple(UNITS) if _on_mac() else ("cpu",))

    def _engine_name(self, options: Options) -> str:
        return f"coreml-{options.provider if _on_mac() else 'interpreted'}"


class CoreMlEncoder:
    """An opened audio encoder."""

    def __init__(self, name: str, stage: "_Stage") -> None:
        self.name = name
        self._stage = stage

    def encode(self, mel: Float32) -> Float32:
        windows = [self._stage.run("", {"audio_values": mel[i : i + 1]})["audio_features"] for i in range(len(mel))]
        return np.asarray(np.concatenate(windows), np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class CoreMlEngine:
    """An opened bundle. Rows of a batch run one after the other, each with a state of its own."""

    def __init__(self, name: str, encoder: Encoder | None, embedding: "_Stage", decoder: "_Stage") -> None:
        self.name = name
        self.context = int(decoder.requirements["context"])
        self._encoder = encoder
        self._embedding = embedding
        self._decoder = decoder
        self._chunk = int(decoder.requirements["chunk"])

    def encode(self, mel: Float32) -> Float32:
        if self._encoder is None:
            raise opened_without_encoder(self.name)
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        longest = int(self._embedding.requirements["chunk"])
        chunks = [np.asarray(ids[start : start + longest])[None] for start in range(0, len(ids), longest)]
        rows = [self._embedding.run("", {"input_ids": chunk})["inputs_embeds"][0] for chunk in chunks]
        return np.asarray(np.concatenate(rows), np.float32)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        rows = [self._fed(self._decoder.model.begin(), prompt, 0, 1) for prompt in prompts]
        return np.concatenate([logits for logits, _ in rows]), Sequences(
            [len(prompt) for prompt in prompts], [state for _, state in rows]
        )

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        logits, held = self._fed(state.cache[0], prompt, state.lengths[0], 1)
        return logits, Sequences([state.lengths[0] + len(prompt)], [held])

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        embeddings = self.embed(tokens)
        self._check_room(max(state.lengths) + 1)
        rows = [
            self._decoder.go_on("decode", {"inputs_embeds": one[None, None], "position_ids": [[length]]}, held)
            for one, length, held in zip(embeddings, state.lengths, state.cache, strict=True)
        ]
        logits = np.concatenate([np.asarray(outputs["logits"][0], np.float32) for outputs, _ in rows])
        return logits, Sequences([length + 1 for length in state.lengths], [held for _, held in rows])

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        copies = [self._decoder.model.copied(state.cache[row]) for row in rows]
        return Sequences([state.lengths[row] for row in rows], copies)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        """As `Engine`: the second half of the last positions step by step, for verification to hear of both functions."""
        self._check_room(len(prompt))
        count = last or len(prompt)
        begin = len(prompt) - count // 2
        logits, state = self._fed(self._decoder.model.begin(), prompt[:begin], 0, count - count // 2)
        parts = [logits]
        for position in range(begin, len(prompt)):
            inputs = {"inputs_embeds": prompt[None, position : position + 1], "position_ids": [[position]]}
            outputs, state = self._decoder.go_on("decode", inputs, state)
            parts.append(np.asarray(outputs["logits"][0], np.float32))
        return np.concatenate(parts)

    def close(self) -> None:
        self.__dict__.clear()

    def _fed(self, state: Any, prompt: Float32, begin: int, count: int) -> tuple[Float32, Any]:
        """Logits [count, vocabulary] at the last places of a prompt behind `begin` tokens, chunk by chunk, and the state."""
        self._check_room(begin + len(prompt))
        parts = []
        for start in range(0, len(prompt), self._chunk):
            chunk = prompt[start : start + self._chunk]
            first = max(0, len(prompt) - count - start)  # of the chunk's places, the first whose logits are asked for
            inputs = {
                "inputs_embeds": chunk[None],
                "position_ids": begin + start + np.arange(len(chunk))[None],
                "logit_positions": np.arange(min(first, len(chunk) - 1), len(chunk)),
            }
            outputs, state = self._decoder.go_on("prefill", inputs, state)
            if first < len(chunk):
                parts.append(np.asarray(outputs["logits"][0], np.float32))
        return np.concatenate(parts), state

    def _check_room(self, tokens: int) -> None:
        if tokens > self.context:
            raise EngineError(
                f"engine '{self.name}' has room for {self.context} tokens in this bundle's state, not for {tokens}. "
                "Give it a shorter prompt"
            )


class _Stage:
    """A stage's opened package, and what its artifact says of it."""

    def __init__(self, artifact: Artifact, model: Model) -> None:
        caches = [port for port in artifact.inputs if "_cache_" in port.name]
        self.model = CachedModel(model, caches) if caches else model
        self.requirements = artifact.requirements
        self._types = {port.name: port.dtype for port in artifact.inputs}

    def run(self, function: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name, each input given in the type that the package takes."""
        return self.go_on(function, inputs, self.model.begin())[0]

    def go_on(self, function: str, inputs: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        """The same behind a state, and the state after it."""
        typed = {name: np.asarray(value, self._types[name], order="C") for name, value in inputs.items()}
        outputs, after = self.model.run(function, typed, state)
        return dict(outputs), after


def _opened(folder: Path, artifact: Artifact, provider: str) -> Model:
    path = folder / package_folder(artifact)
    return NativeModel(path, provider) if _on_mac() else InterpretedModel(path)


def package_folder(artifact: Artifact) -> str:
    """The package that an artifact's files are in, relative to the bundle.

    Raises:
        EngineError: they are in none, or in several.
    """
    found = {
        "/".join(parts[: i + 1])
        for parts in (file.path.split("/") for file in artifact.files)
        for i, part in enumerate(parts)
        if part.endswith(PACKAGE)
    }
    if len(found) != 1:
        raise EngineError(
            f"artifact '{artifact.stage}' for target coreml is {len(found)} packages instead of one. "
            "Build the bundle again: ossicle build"
        )
    return found.pop()


def _on_mac() -> bool:
    return sys.platform == "darwin"


RUNTIME = CoreMl()
