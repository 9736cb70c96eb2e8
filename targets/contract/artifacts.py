"""A model as it is traced, and what is written of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .weights import Float32


@dataclass(frozen=True)
class Port:
    """An input or output of a stage. A dimension is a number, or the name of one that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class TracedStage:
    """One graph, traced with no weights in memory.

    `program` is a torch.export.ExportedProgram over fake tensors. `weights` says which canonical tensor each of its
    parameters and buffers is; `constants` gives those that no checkpoint holds (rotary tables).
    """

    name: str
    program: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, str]
    constants: Mapping[str, Float32]


@dataclass(frozen=True)
class Traced:
    """A model as its stages: what every target lowers from."""

    family: str
    stages: tuple[TracedStage, ...]

    def stage(self, name: str) -> TracedStage:
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle: path relative to the bundle's folder with forward slashes, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Memory:
    """What running an artifact takes, in bytes: weights, KV cache per token of context, and working space (estimated)."""

    weights: int
    kv_per_token: int = 0
    working: int = 0


@dataclass(frozen=True)
class Artifact:
    """One stage of a model in one target's format: the unit that an engine opens."""

    target: str
    stage: str
    recipe: str
    precision: str
    files: tuple[BundleFile, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    requirements: Mapping[str, str]  # for example {"engine": "onnxruntime", "version": ">=1.24"}
    memory: Memory
