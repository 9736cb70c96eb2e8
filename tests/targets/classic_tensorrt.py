"""Stands in for the package `tensorrt` in the process that builds an engine: notes what it is told, as JSON, for an engine."""

import json
from types import SimpleNamespace
from typing import Any

from ossicle.targets import cuda

__version__ = "11.0.0"
cuda.device = lambda: cuda.Gpu("NVIDIA Test", 90, 1 << 30, 13000)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 3


LayerType = SimpleNamespace()


class Network:
    num_layers = 0

    def __init__(self, flags: int) -> None:
        self.flags = flags


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        assert isinstance(network, Network)
        logger.log(ILogger.WARNING, "a warning")
        logger.log(ILogger.INFO, "not of interest")

    def parse_from_file(self, graph: str) -> bool:
        return graph.endswith(".onnx")


class Timings:
    def __init__(self, held: bytes) -> None:
        self.held = held

    def serialize(self) -> bytes:
        return self.held + b"x"


class Config:
    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []

    def add_optimization_profile(self, profile: "Profile") -> None:
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, held: bytes) -> Timings:
        return Timings(held)

    def set_timing_cache(self, timings: Timings, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.timings = timings

    def get_timing_cache(self) -> Timings:
        return self.timings


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes

    set_shape_input = set_shape


class Builder:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, ILogger)

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        told = {"flags": network.flags, "profiles": config.profiles, "timings": config.timings.held.decode()}
        return json.dumps(told).encode()
