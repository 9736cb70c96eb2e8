"""TensorRT: runs a bundle's engines on an NVIDIA GPU; where there is none, its graphs on ONNX Runtime's CPU.

The graphs of a bundle are what its engines are built of. So what they compute on the CPU, in the same steps and over the same
caches, proves them where no engine runs; it is never chosen for a user who has not asked for this engine by name.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import cuda
from ..targets import tensorrt_engine as engines
from ..targets.contract import Artifact, EngineError, Float32, Int64
from ..targets.manifest import Manifest
from ..targets.probe import Proof
from ..targets.tensorrt_engine import PACKAGES, EngineFacts
from .artifacts import stage_artifact
from .base import Encoder, Engine, Sequences, opened_without_encoder
from .options import Options, check_options
from .refusal import Refusal, lacking
from .tensorrt_buffers import Graph, Scratch
from .tensorrt_decoder import Decoder, Limits

_OLDEST = 80  # compute capability that an engine of TensorRT for RTX runs on where none was named


class TensorRt:
    """TensorRT for RTX or classic TensorRT, whichever a bundle's engines are for, or ONNX Runtime in their place."""

    name = "tensorrt"
    target = "tensorrt"
    package = "tensorrt-rtx"

    @property
    def proof(self) -> Proof:
        return "same graph" if gpu_refusal() else "executed"

    def absent(self) -> str | None:
        return gpu_refusal()

    def usable(self) -> str | None:
        reason = gpu_refusal()
        if reason and find_spec("onnxruntime") is None:
            return f'{reason}. Its graphs can be run on the CPU with: pip install "ossicle[onnx]"'
        return None

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._opened(folder, manifest, options, self.open_encoder(folder, manifest, options))

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._opened(folder, manifest, options, None)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        opener = self._opener(options)
        return TensorRtEncoder(
            opener.name, opener.opened(folder, stage_artifact(folder, manifest, self, "audio_encoder"))
        )

    def _opened(self, folder: Path, manifest: Manifest, options: Options, encoder: Encoder | None) -> Engine:
        opener = self._opener(options)
        embedding, decoder = (
            opener.opened(folder, stage_artifact(folder, manifest, self, stage))
            for stage in ("embed_tokens", "decoder")
        )
        return TensorRtEngine(opener.name, encoder, embedding, decoder, manifest.text.vocabulary)

    def _opener(self, options: Options) -> "_OnGpu | _OnCpu":
        if reason := self.usable():
            raise EngineError(f"engine 'tensorrt' cannot be used: {reason}")
        check_options(self.name, options)
        return _OnGpu() if self.proof == "executed" else _OnCpu(options.threads)


class _Stage:
    """An opened graph and its artifact."""

    def __init__(self, artifact: Artifact, graph: Graph) -> None:
        self.artifact = artifact
        self.graph = graph
        self.scratch = Scratch(graph.device)

    def limit(self, name: str) -> int:
        return int(self.artifact.requirements[name])

    def rows(self, source: str, values: Any, result: str) -> Float32:
        """The one output of the graph for its one input, whose varying dimensions it keeps."""
        declared = next(port for port in self.artifact.outputs if port.name == result)
        own = zip(declared.shape, values.shape, strict=False)
        sizes = [size if isinstance(size, int) else given for size, given in own]
        shape = [*sizes, *(int(size) for size in declared.shape[len(sizes) :])]
        output = self.scratch.take(result, shape, np.float32)
        self.graph.run(0, {source: self.scratch.put(source, values)}, {}, {result: output})
        return np.asarray(self.scratch.get(output), np.float32)


class TensorRtEncoder:
    """An opened audio encoder."""

    def __init__(self, name: str, stage: _Stage) -> None:
        self.name = name
        self._stage = stage

    def encode(self, mel: Float32) -> Float32:
        most = self._stage.limit("batch")
        batches = [np.ascontiguousarray(mel[start : start + most]) for start in range(0, len(mel), most)]
        return np.concatenate([self._stage.rows("audio_values", batch, "audio_features") for batch in batches])

    def close(self) -> None:
        self.__dict__.clear()


class TensorRtEngine:
    """An opened bundle."""

    def __init__(self, name: str, encoder: Encoder | None, embedding: _Stage, decoder: _Stage, vocabulary: int) -> None:
        self.name = name
        self.context = decoder.limit("context")
        self._encoder = encoder
        self._embedding = embedding
        limits = Limits(self.context, decoder.limit("prompt"), decoder.limit("batch"))
        self._decoder = Decoder(name, decoder.graph, decoder.artifact.inputs, vocabulary, limits)

    def encode(self, mel: Float32) -> Float32:
        if self._encoder is None:
            raise opened_without_encoder(self.name)
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        most, rows = self._embedding.limit("prompt"), np.asarray(ids, np.int64)[None]
        pieces = [np.ascontiguousarray(rows[:, start : start + most]) for start in range(0, rows.shape[1], most)]
        found = [self._embedding.rows("input_ids", piece, "inputs_embeds")[0] for piece in pieces]
        return np.concatenate(found)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        return self._decoder.prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        return self._decoder.extend(state, prompt)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._decoder.step(state, self.embed(tokens))

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return self._decoder.keep(state, rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self._decoder.score(prompt, last)

    def close(self) -> None:
        self.__dict__.clear()


class _OnCpu:
    """Opens graphs with ONNX Runtime."""

    name = "tensorrt-onnxruntime"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def opened(self, folder: Path, artifact: Artifact) -> _Stage:
        from .tensorrt_same_graph import SameGraph

        return _Stage(artifact, SameGraph(folder / engines.graph_file(artifact).path, self._threads))


class _OnGpu:
    """Opens engines."""

    name = "tensorrt-gpu"

    def __init__(self) -> None:
        from .tensorrt_cuda import Cuda

        self._gpu = cuda.device()
        self._device = Cuda()

    def opened(self, folder: Path, artifact: Artifact) -> _Stage:
        from .tensorrt_cuda import Engine as Opened

        facts = engines.facts(folder, artifact)
        if reason := misfit(artifact, facts, self._gpu):
            raise EngineError(f"engine 'tensorrt' cannot run '{artifact.stage}' on {self._gpu.name}: {reason}")
        assert facts is not None  # misfit says so
        path = next(file.path for file in artifact.files if file.path.endswith(engines.SUFFIX))
        return _Stage(artifact, Opened(import_module(PACKAGES[facts.kind].module), folder / path, self._device))


def gpu_refusal() -> str | None:
    """Why no engine runs here, with the command that would help; None where one does."""
    try:
        cuda.device()
    except EngineError as reason:
        return lacking("nvidia") or Refusal(str(reason), "driver")
    if any(find_spec(package.module) for package in PACKAGES.values()):
        return None
    missing = "neither TensorRT for RTX nor TensorRT is installed. Install it with"
    return Refusal(missing, "package", PACKAGES["rtx"].install)


def misfit(artifact: Artifact, facts: EngineFacts | None, gpu: cuda.Gpu) -> str | None:
    """Why an artifact's engine does not run on a GPU; None where it does."""
    number = gpu.compute_capability
    if facts is None:
        reason = artifact.requirements.get("no_engine", "it was built elsewhere")
        return f"the bundle has no engine of it ({reason.partition('. ')[0]}). Build it with: ossicle engine BUNDLE"
    package = PACKAGES[facts.kind]
    if find_spec(package.module) is None:
        return f"package {package.name} is not installed. Install it with: {package.install}"
    able = number in facts.compute_capabilities if facts.compute_capabilities else number >= _OLDEST
    if not able:
        built = ", ".join(map(str, facts.compute_capabilities)) or f"{_OLDEST} and above"
        return (
            f"its compute capability is {number}, and the engine is for {built}. "
            f"Build it with: ossicle engine BUNDLE --compute-capability {number}"
        )
    found = import_module(package.module).__version__
    if facts.kind == "trt" and found != facts.version:
        return (
            f"the engine is of TensorRT {facts.version}, and {found} is installed. Build it with: ossicle engine BUNDLE"
        )
    return None


RUNTIME = TensorRt()
