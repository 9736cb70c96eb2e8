"""OpenVINO: runs the bundle's `openvino` artifacts.

The decoder takes keys and values and gives back longer ones at every step; rows are padded on the left. Compiled models
are kept in the folder that the environment variable OSSICLE_OPENVINO_CACHE names, where it is set.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import Artifact, EngineError, Float32, Int64
from ..targets.manifest import Manifest
from .base import Encoder, Engine, Options, Sequences

DEVICES = ("cpu", "gpu", "npu", "auto")
CACHE = "OSSICLE_OPENVINO_CACHE"
GROUP = 128  # neighbours that share a scale where activations are quantized on the fly


class OpenVino:
    """OpenVINO on a CPU, a GPU, an NPU, or what it chooses itself."""

    name = "openvino"
    target = "openvino"
    package = "openvino"

    def usable(self) -> str | None:
        try:
            import openvino  # noqa: F401
        except ImportError as reason:
            return f'package openvino cannot be imported: {reason}. Install it with: pip install "ossicle[openvino]"'
        return None

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        core = self._core(options)
        encoder, embedding, decoder = (
            _compiled(core, folder, manifest, stage, options) for stage in ("audio_encoder", "embed_tokens", "decoder")
        )
        return OpenVinoEngine(encoder, embedding, decoder, options.provider)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        core = self._core(options)
        return OpenVinoEncoder(_compiled(core, folder, manifest, "audio_encoder", options), options.provider)

    def _core(self, options: Options) -> Any:
        if reason := self.usable():
            raise EngineError(f"engine 'openvino' cannot be used: {reason}")
        import openvino

        core = openvino.Core()
        present = {device.split(".")[0].lower() for device in core.available_devices} | {"auto"}
        if options.provider not in present:
            possible = ", ".join(device for device in DEVICES if device in present)
            raise EngineError(f"engine 'openvino' has no provider '{options.provider}' here (it has: {possible}).")
        return core


class OpenVinoEncoder:
    """An opened audio encoder."""

    def __init__(self, model: Any, device: str) -> None:
        self.name = f"openvino-{device}"
        self._model = model

    def encode(self, mel: Float32) -> Float32:
        # One window at a time: a batch takes the memory of all its windows at once.
        windows = [_run(self._model, {"audio_values": mel[i : i + 1]})["audio_features"] for i in range(len(mel))]
        return np.asarray(np.concatenate(windows), np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class OpenVinoEngine:
    """An opened bundle."""

    def __init__(self, encoder: Any, embedding: Any, decoder: Any, device: str) -> None:
        self.name = f"openvino-{device}"
        self._encoder = OpenVinoEncoder(encoder, device)
        self._embedding = embedding
        self._decoder = _Decoder(decoder)

    def encode(self, mel: Float32) -> Float32:
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        embeddings: Float32 = _run(self._embedding, {"input_ids": np.asarray(ids, np.int64)[None]})["inputs_embeds"][0]
        return embeddings

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        return self._decoder.prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        return self._decoder.advance(state, prompt[None])

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._decoder.advance(state, self.embed(tokens)[:, None])

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        lengths = [state.lengths[row] for row in rows]
        return Sequences(lengths, [array[list(rows), :, -max(lengths) :] for array in state.cache])

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        logits, _ = self._decoder.run(Sequences([0], self._decoder.empty()), prompt[None], keep=last)
        return np.asarray(logits[0, -last:], np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class _Decoder:
    """Keys and values [batch, heads, width, head_dim], one array per layer and kind; a row's tokens are at the right."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past = [port for port in _names(model.inputs) if port.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        shape = model.input(self._past[0]).get_partial_shape()
        self._heads, self._head_dim = shape[1].get_length(), shape[3].get_length()

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        runs = [self.advance(Sequences([0], self.empty()), prompt[None]) for prompt in prompts]
        state = runs[0][1] if len(runs) == 1 else self._stacked([state for _, state in runs])
        return np.concatenate([logits for logits, _ in runs]), state

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        logits, grown = self.run(state, embeddings, keep=1)
        return np.asarray(logits[:, -1], np.float32), grown

    def run(self, state: Sequences, embeddings: Float32, keep: int) -> tuple[Float32, Sequences]:
        """Logits [batch, keep, vocabulary] of the last positions (0: of all) and the state after `embeddings`."""
        new = embeddings.shape[1]
        held = np.asarray(state.lengths, np.int64)[:, None] + new
        total = int(held.max())
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeddings,
            "attention_mask": (np.arange(total)[None] >= total - held).astype(np.int64),
            "position_ids": held - new + np.arange(new)[None],
            "num_logits_to_keep": np.array(keep, np.int64),
        }
        results = _run(self._model, inputs | dict(zip(self._past, state.cache, strict=True)))
        return results["logits"], Sequences(held[:, 0].tolist(), [results[name] for name in self._present])

    def empty(self, batch: int = 1, width: int = 0) -> list[Float32]:
        shape = (batch, self._heads, width, self._head_dim)
        return [np.zeros(shape, np.float32) for _ in self._past]

    def _stacked(self, states: Sequence[Sequences]) -> Sequences:
        lengths = [state.lengths[0] for state in states]
        cache = self.empty(len(states), max(lengths))
        for row, state in enumerate(states):
            for array, held in zip(cache, state.cache, strict=True):
                array[row, :, max(lengths) - lengths[row] :] = held[0]
        return Sequences(lengths, cache)


def settings(recipe: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What the engine is told: float32 wherever the recipe computes in it, int8 activations only where it allows them."""
    chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.provider == "cpu":
        group = GROUP if recipe["integer_activations"] else 0
        chosen |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
        chosen |= {"INFERENCE_NUM_THREADS": options.threads} if options.threads else {}
    if cache := os.environ.get(CACHE):
        chosen["CACHE_DIR"] = cache
    return chosen


def _compiled(core: Any, folder: Path, manifest: Manifest, stage: str, options: Options) -> Any:
    import openvino

    path = folder / _model_path(_artifact(folder, manifest, stage))
    try:
        return core.compile_model(path, options.provider.upper(), settings(manifest.recipe, options))
    except RuntimeError as reason:
        raise EngineError(
            f"engine 'openvino' {openvino.__version__} refuses '{path}': {reason}. "
            "Check the bundle with: ossicle inspect BUNDLE"
        ) from reason


def _artifact(folder: Path, manifest: Manifest, stage: str) -> Artifact:
    artifact = next((a for a in manifest.artifacts if (a.target, a.stage) == ("openvino", stage)), None)
    if artifact is None:
        held = ", ".join(f"{a.stage} for {a.target}" for a in manifest.artifacts) or "nothing"
        raise EngineError(
            f"engine 'openvino' needs '{stage}' for target openvino, and bundle '{folder}' has: {held}. "
            "Build it with: ossicle build CHECKPOINT --target openvino"
        )
    return artifact


def _model_path(artifact: Artifact) -> str:
    models = [file.path for file in artifact.files if file.path.endswith(".xml")]
    if len(models) != 1:
        raise EngineError(
            f"artifact '{artifact.stage}' for target openvino has {len(models)} .xml files instead of one. "
            "Build the bundle again: ossicle build"
        )
    return models[0]


def _run(model: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Outputs by name, each an array of its own."""
    try:
        results = model({name: np.asarray(value, order="C") for name, value in inputs.items()})
    except RuntimeError as reason:
        raise EngineError(f"engine 'openvino' failed: {reason}") from reason
    return {port.get_any_name(): results[port] for port in model.outputs}


def _names(ports: Sequence[Any]) -> list[str]:
    return [port.get_any_name() for port in ports]


RUNTIME = OpenVino()
