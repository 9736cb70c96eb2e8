"""ONNX Runtime: runs the bundle's `onnx` artifacts.

The decoder comes in two forms, told apart by its inputs. Fused (GroupQueryAttention, no `position_ids`) keeps its keys
and values at the left of buffers that outlive a step, and writes new ones in place. Standard (with `position_ids`) gives
back longer keys and values at every step; rows are padded on the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from .artifacts import stage_file
from .base import Encoder, Engine, Options, Sequences, check_options

ROOM = 256  # tokens that a fused cache is longer than what it holds, so that it seldom grows


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    target = "onnx"
    package = "onnxruntime"

    def usable(self) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as reason:
            return f'package onnxruntime cannot be imported: {reason}. Install it with: pip install "ossicle[onnx]"'
        return None

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        self._check(options)
        encoder, embedding, decoder = (
            _session(stage_file(folder, manifest, self, stage, ".onnx"), threads)
            for stage, threads in (
                ("audio_encoder", options.threads),
                ("embed_tokens", 1),
                ("decoder", options.threads),
            )
        )
        return OnnxEngine(encoder, embedding, decoder)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        self._check(options)
        return OnnxEncoder(_session(stage_file(folder, manifest, self, "audio_encoder", ".onnx"), options.threads))

    def _check(self, options: Options) -> None:
        if reason := self.usable():
            raise EngineError(f"engine 'onnxruntime' cannot be used: {reason}")
        check_options(self.name, options)


class OnnxEncoder:
    """An opened audio encoder."""

    name = "onnxruntime-cpu"

    def __init__(self, session: Any) -> None:
        self._session = session

    def encode(self, mel: Float32) -> Float32:
        # One window at a time: a batch is no faster, and takes the memory of all its windows at once.
        windows = [_run(self._session, {"audio_values": mel[i : i + 1]})[0] for i in range(len(mel))]
        return np.asarray(np.concatenate(windows), np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class OnnxEngine:
    """An opened bundle."""

    name = "onnxruntime-cpu"

    def __init__(self, encoder: Any, embedding: Any, decoder: Any) -> None:
        self._encoder = OnnxEncoder(encoder)
        self._embedding = embedding
        self._graph = _Graph(decoder)
        self._decoder = _StandardDecoder(self._graph) if self._graph.has_positions else _FusedDecoder(self._graph)

    def encode(self, mel: Float32) -> Float32:
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        embeddings: Float32 = _run(self._embedding, {"input_ids": np.asarray(ids, np.int64)[None]})[0][0]
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
        return self._decoder.keep(state, list(rows))

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        graph = self._graph
        inputs = graph.inputs(prompt[None], past=[0], total=len(prompt), keep=last)
        logits = _run(graph.session, inputs | graph.empty_cache(), ["logits"])[0][0]
        return np.asarray(logits[-last:], np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class _Graph:
    """The decoder's graph: what it takes besides embeddings, and the inputs of one run."""

    def __init__(self, session: Any) -> None:
        self.session = session
        inputs = {port.name: port for port in session.get_inputs()}
        self.past = [name for name in inputs if name.startswith("past_key_values.")]
        self.present = [name.replace("past_key_values", "present") for name in self.past]
        self.has_positions = "position_ids" in inputs
        self._can_keep = "num_logits_to_keep" in inputs
        cache = inputs[self.past[0]]
        self.cache_dtype = np.dtype(np.float16 if cache.type == "tensor(float16)" else np.float32)
        self.heads, self.head_dim = cache.shape[1], cache.shape[3]

    def inputs(self, embeddings: Float32, past: Sequence[int], total: int, keep: int) -> dict[str, NDArray[Any]]:
        """All but the cache, for embeddings [batch, new, hidden] behind `past` tokens per row; `total` is the mask's width.

        The mask has each row's tokens at the end that its form pads away from: left for fused, right for standard.
        """
        new = embeddings.shape[1]
        held = np.asarray(past, np.int64)[:, None] + new
        slots = np.arange(total)[None]
        mask = slots >= total - held if self.has_positions else slots < held
        feed: dict[str, NDArray[Any]] = {"inputs_embeds": embeddings, "attention_mask": mask.astype(np.int64)}
        if self.has_positions:
            feed["position_ids"] = held - new + np.arange(new)[None]
        if self._can_keep:
            feed["num_logits_to_keep"] = np.array(keep, np.int64)
        return feed

    def cache_array(self, batch: int, width: int) -> NDArray[Any]:
        return np.zeros((batch, self.heads, width, self.head_dim), self.cache_dtype)

    def empty_cache(self) -> dict[str, NDArray[Any]]:
        return {name: self.cache_array(1, 0) for name in self.past}


@dataclass(frozen=True)
class _Buffers:
    """Keys and values [batch, heads, width, head_dim], one array per layer and kind; a row's tokens are at the left."""

    arrays: list[NDArray[Any]]

    @property
    def width(self) -> int:
        return int(self.arrays[0].shape[2])

    def row(self, index: int) -> "_Buffers":
        """One row, sharing its memory."""
        return _Buffers([array[index : index + 1] for array in self.arrays])


class _FusedDecoder:
    """GroupQueryAttention: past and present are one buffer, to which a run adds its tokens."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        width = max(map(len, prompts)) + ROOM
        buffers = _Buffers([self._graph.cache_array(len(prompts), width) for _ in self._graph.past])
        logits = [self._run(buffers.row(i), prompt[None], [0]) for i, prompt in enumerate(prompts)]
        return np.concatenate(logits), Sequences([len(prompt) for prompt in prompts], buffers)

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        buffers = self._with_room(state.cache, max(lengths))
        return self._run(buffers, embeddings, state.lengths), Sequences(lengths, buffers)

    def keep(self, state: Sequences, rows: list[int]) -> Sequences:
        return Sequences([state.lengths[row] for row in rows], _Buffers([array[rows] for array in state.cache.arrays]))

    def _with_room(self, buffers: _Buffers, width: int) -> _Buffers:
        if width <= buffers.width:
            return buffers
        longer = [self._graph.cache_array(len(array), width + width // 4 + ROOM) for array in buffers.arrays]
        for array, held in zip(longer, buffers.arrays, strict=True):
            array[:, :, : held.shape[2]] = held
        return _Buffers(longer)

    def _run(self, buffers: _Buffers, embeddings: Float32, past: Sequence[int]) -> Float32:
        from onnxruntime import OrtValue

        binding = self._graph.session.io_binding()
        total = max(past) + embeddings.shape[1]
        for name, value in self._graph.inputs(embeddings, past, total, keep=1).items():
            binding.bind_cpu_input(name, np.asarray(value, order="C"))
        binding.bind_output("logits")
        for name, present, array in zip(self._graph.past, self._graph.present, buffers.arrays, strict=True):
            value = OrtValue.ortvalue_from_numpy(array)  # shares the array's memory
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present, value)
        _engine_call(self._graph.session.run_with_iobinding, binding)
        return np.asarray(binding.get_outputs()[0].numpy()[:, -1], np.float32)


class _StandardDecoder:
    """ONNX's own attention: every run gives back the whole cache, which stays with the engine between runs."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        runs = [self.advance(Sequences([0], self._values(self._graph.empty_cache())), p[None]) for p in prompts]
        state = runs[0][1] if len(runs) == 1 else self._stacked([state for _, state in runs])
        return np.concatenate([logits for logits, _ in runs]), state

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        inputs = self._graph.inputs(embeddings, state.lengths, max(lengths), keep=1)
        names = ["logits", *self._graph.present]
        feed = self._values(inputs) | state.cache
        logits, *present = _engine_call(self._graph.session.run_with_ort_values, names, feed)
        cache = dict(zip(self._graph.past, present, strict=True))
        return np.asarray(logits.numpy()[:, -1], np.float32), Sequences(lengths, cache)

    def keep(self, state: Sequences, rows: list[int]) -> Sequences:
        lengths = [state.lengths[row] for row in rows]
        kept = {name: value.numpy()[rows, :, -max(lengths) :] for name, value in state.cache.items()}
        return Sequences(lengths, self._values(kept))

    def _stacked(self, states: Sequence[Sequences]) -> Sequences:
        lengths = [state.lengths[0] for state in states]
        stacked = {}
        for name in self._graph.past:
            stacked[name] = self._graph.cache_array(len(states), max(lengths))
            for row, state in enumerate(states):
                stacked[name][row, :, max(lengths) - lengths[row] :] = state.cache[name].numpy()[0]
        return Sequences(lengths, self._values(stacked))

    @staticmethod
    def _values(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        from onnxruntime import OrtValue

        return {name: OrtValue.ortvalue_from_numpy(np.asarray(array, order="C")) for name, array in arrays.items()}


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings tell of harmless choices of the graph's making
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as reason:
        raise EngineError(
            f"engine 'onnxruntime' {onnxruntime.__version__} refuses '{path}': {reason}. "
            "Check the bundle with: ossicle inspect BUNDLE"
        ) from reason


def _run(session: Any, inputs: Mapping[str, NDArray[Any]], outputs: list[str] | None = None) -> Any:
    return _engine_call(session.run, outputs, dict(inputs))


def _engine_call(call: Any, *arguments: Any) -> Any:
    # The exceptions of onnxruntime have no base of their own but Exception.
    try:
        return call(*arguments)
    except Exception as reason:
        raise EngineError(f"engine 'onnxruntime' failed: {reason}") from reason


RUNTIME = OnnxRuntime()
