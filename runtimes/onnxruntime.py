"""ONNX Runtime: runs the bundle's `onnx` artifacts, on the CPU or on another of its execution providers.

The decoder comes in two forms, told apart by its inputs. Fused (GroupQueryAttention, no `position_ids`) keeps its keys
and values at the left of buffers that outlive a step, and writes new ones in place. Standard (with `position_ids`) gives
back longer keys and values at every step; rows are padded on the left. Keys and values stay in the provider's memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from . import onnxruntime_providers as providers
from .artifacts import stage_file
from .base import Encoder, Engine, Options, Sequences, check_options
from .onnxruntime_cache import Cache, empty_cache, on_device, run_bound
from .onnxruntime_providers import CPU, PROVIDERS, Provider
from .onnxruntime_session import engine_call, open_session

ROOM = 256  # tokens that a fused cache is longer than what it holds, so that it seldom grows


class OnnxRuntime:
    """ONNX Runtime on one of its execution providers."""

    name = "onnxruntime"
    target = "onnx"
    package = "onnxruntime"

    def usable(self) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as reason:
            return f'package onnxruntime cannot be imported: {reason}. Install it with: pip install "ossicle[onnx]"'
        return None

    def providers(self) -> Mapping[str, str | None]:
        """What speaks against each execution provider here, by name; None: nothing."""
        return {} if self.usable() else providers.states()

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        provider = self._provider(options)
        encoder, embedding, decoder = (
            open_session(stage_file(folder, manifest, self, stage, ".onnx"), threads, one)
            for stage, threads, one in (
                ("audio_encoder", options.threads, provider),
                ("embed_tokens", 1, CPU),  # a look-up, whose rows are wanted here
                ("decoder", options.threads, provider),
            )
        )
        return OnnxEngine(encoder, embedding, decoder, provider)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        provider = self._provider(options)
        path = stage_file(folder, manifest, self, "audio_encoder", ".onnx")
        return OnnxEncoder(open_session(path, options.threads, provider), provider)

    def _provider(self, options: Options) -> Provider:
        if reason := self.usable():
            raise EngineError(f"engine 'onnxruntime' cannot be used: {reason}")
        known = options.provider in PROVIDERS
        here = [name for name, reason in self.providers().items() if reason is None]
        check_options(self.name, options, providers=tuple(PROVIDERS) if known else here)
        return providers.provider(options.provider)


class OnnxEncoder:
    """An opened audio encoder."""

    def __init__(self, session: Any, provider: Provider) -> None:
        self.name = f"onnxruntime-{provider.name}"
        self._session = session

    def encode(self, mel: Float32) -> Float32:
        # One window at a time: a batch is no faster, and takes the memory of all its windows at once.
        windows = [_run(self._session, {"audio_values": mel[i : i + 1]})[0] for i in range(len(mel))]
        return np.asarray(np.concatenate(windows), np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class OnnxEngine:
    """An opened bundle."""

    def __init__(self, encoder: Any, embedding: Any, decoder: Any, provider: Provider) -> None:
        self.name = f"onnxruntime-{provider.name}"
        self._encoder = OnnxEncoder(encoder, provider)
        self._embedding = embedding
        self._graph = _Graph(decoder, provider.memory)
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
        empty = {name: graph.cache_array(1, 0) for name in graph.past}
        logits = _run(graph.session, inputs | empty, ["logits"])[0][0]
        return np.asarray(logits[-last:], np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class _Graph:
    """The decoder's graph: what it takes besides embeddings, and the inputs of one run."""

    def __init__(self, session: Any, memory: str) -> None:
        self.session = session
        self.memory = memory  # the device that keys and values stay on
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


class _FusedDecoder:
    """GroupQueryAttention: past and present are one buffer, to which a run adds its tokens."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        width = max(map(len, prompts)) + ROOM
        arrays = [self._graph.cache_array(len(prompts), width) for _ in self._graph.past]
        cache = empty_cache(arrays, self._graph.memory)
        logits = [self._run(cache.row(i), prompt[None], [0]) for i, prompt in enumerate(prompts)]
        return np.concatenate(logits), Sequences([len(prompt) for prompt in prompts], cache)

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        cache = self._with_room(state.cache, max(lengths))
        return self._run(cache, embeddings, state.lengths), Sequences(lengths, cache)

    def keep(self, state: Sequences, rows: list[int]) -> Sequences:
        return Sequences([state.lengths[row] for row in rows], state.cache.kept(rows))

    def _with_room(self, cache: Cache, width: int) -> Cache:
        return cache if width <= cache.width else cache.longer(width + width // 4 + ROOM)

    def _run(self, cache: Cache, embeddings: Float32, past: Sequence[int]) -> Float32:
        binding = self._graph.session.io_binding()
        total = max(past) + embeddings.shape[1]
        binding.bind_output("logits")
        cache.bind(binding, self._graph.past, self._graph.present)
        inputs = self._graph.inputs(embeddings, past, total, keep=1)
        logits = run_bound(self._graph.session, binding, inputs)[0]
        return np.asarray(logits.numpy()[:, -1], np.float32)


class _StandardDecoder:
    """ONNX's own attention: every run gives back the whole cache, which stays with the engine between runs."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        empty = {name: self._graph.cache_array(1, 0) for name in self._graph.past}
        runs = [self.advance(Sequences([0], self._values(empty)), prompt[None]) for prompt in prompts]
        state = runs[0][1] if len(runs) == 1 else self._stacked([state for _, state in runs])
        return np.concatenate([logits for logits, _ in runs]), state

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        binding = self._graph.session.io_binding()
        binding.bind_output("logits")
        for name, present in zip(self._graph.past, self._graph.present, strict=True):
            binding.bind_ortvalue_input(name, state.cache[name])
            binding.bind_output(present, self._graph.memory)
        inputs = self._graph.inputs(embeddings, state.lengths, max(lengths), keep=1)
        logits, *values = run_bound(self._graph.session, binding, inputs)
        cache = dict(zip(self._graph.past, values, strict=True))
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

    def _values(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: on_device(array, self._graph.memory) for name, array in arrays.items()}


def _run(session: Any, inputs: Mapping[str, NDArray[Any]], outputs: list[str] | None = None) -> Any:
    return engine_call(session.run, outputs, dict(inputs))


RUNTIME = OnnxRuntime()
