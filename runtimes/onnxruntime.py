"""ONNX Runtime: runs the bundle's `onnx` artifacts, on the CPU or on another of its execution providers."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from . import onnxruntime_providers as providers
from .artifacts import stage_file
from .base import Encoder, Engine, Sequences, opened_without_encoder
from .handing import KeyValues, check_handed
from .onnxruntime_adapters import Adapters, kept
from .onnxruntime_cache import run_bound
from .onnxruntime_decoder import FusedDecoder, Graph, StandardDecoder
from .onnxruntime_providers import CPU, PROVIDERS, Provider
from .onnxruntime_session import engine_call, open_session
from .options import Options, check_options
from .refusal import missing_package


class OnnxRuntime:
    """ONNX Runtime on one of its execution providers."""

    name = "onnxruntime"
    target = "onnx"
    package = "onnxruntime"

    def usable(self) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except Exception as reason:  # a package that is broken raises what it likes
            return missing_package("onnxruntime", "onnx", reason)
        return None

    def providers(self) -> Mapping[str, str | None]:
        """What speaks against each execution provider here, by name; None: nothing."""
        return {} if self.usable() else providers.states()

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        encoder = self.open_encoder(folder, manifest, options)
        return self._opened(folder, manifest, options, encoder)

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._opened(folder, manifest, options, None)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        provider = self._provider(replace(options, adapters={}))  # they are the decoder's
        path = stage_file(folder, manifest, self, "audio_encoder", ".onnx")
        return OnnxEncoder(open_session(path, options.threads, provider), provider)

    def _opened(self, folder: Path, manifest: Manifest, options: Options, encoder: Encoder | None) -> Engine:
        provider = self._provider(options, tuple(kept(manifest)))
        embedding, decoder = (
            open_session(stage_file(folder, manifest, self, stage, ".onnx"), threads, one)
            for stage, threads, one in (
                ("embed_tokens", 1, CPU),  # a look-up, whose rows are wanted here
                ("decoder", options.threads, provider),
            )
        )
        files = {name: folder / path for name, path in kept(manifest).items()}
        engine = OnnxEngine(encoder, embedding, decoder, provider, files)
        return engine.adapted(options.adapters) if options.adapters else engine

    def _provider(self, options: Options, adapters: Sequence[str] = ()) -> Provider:
        if reason := self.usable():
            raise EngineError(f"engine 'onnxruntime' cannot be used: {reason}")
        known = options.provider in PROVIDERS
        here = [name for name, reason in self.providers().items() if reason is None]
        check_options(self.name, options, providers=tuple(PROVIDERS) if known else here, adapters=adapters)
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

    def __init__(
        self,
        encoder: Encoder | None,
        embedding: Any,
        decoder: Any,
        provider: Provider,
        adapters: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.name = f"onnxruntime-{provider.name}"
        self.adapters = tuple(adapters)
        self._encoder = encoder
        self._embedding = embedding
        self._added = Adapters(adapters, decoder, provider.memory)
        self._graph = Graph(decoder, provider.memory)
        self._decoder = _decoder(self._graph)

    def adapted(self, adapters: Mapping[str, float]) -> "OnnxEngine":
        view = copy(self)
        view._graph = self._graph.adapted(self._added.values(adapters))
        view._decoder = _decoder(view._graph)
        return view

    def encode(self, mel: Float32) -> Float32:
        if self._encoder is None:
            raise opened_without_encoder(self.name)
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

    def give(self, state: Sequences) -> list[KeyValues]:
        return self._decoder.give(state)

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        graph = self._graph
        check_handed(self.name, rows, len(graph.past) // 2, graph.heads, graph.head_dim)
        return self._decoder.take(rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        graph = self._graph
        inputs = graph.inputs(prompt[None], past=[0], total=len(prompt), keep=last)
        empty = {name: graph.cache_array(1, 0) for name in graph.past}
        binding = graph.binding()
        binding.bind_output("logits")
        logits = run_bound(graph.session, binding, inputs | empty)[0].numpy()[0]
        return np.asarray(logits[-last:], np.float32)

    def close(self) -> None:
        self.__dict__.clear()


def _decoder(graph: Graph) -> FusedDecoder | StandardDecoder:
    return StandardDecoder(graph) if graph.has_positions else FusedDecoder(graph)


def _run(session: Any, inputs: Mapping[str, NDArray[Any]], outputs: list[str] | None = None) -> Any:
    return engine_call(session.run, outputs, dict(inputs))


RUNTIME = OnnxRuntime()
