"""Builds one TensorRT engine, in a process of its own: `python -m ossicle.targets.tensorrt_build REQUEST FACTS`."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from . import cuda
from .contract import BuildError, OssicleError
from .memory import peak_memory


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the engine that a request asks for, and give back what is known of it (`tensorrt_engine.EngineFacts`).

    Raises:
        BuildError: TensorRT refuses the graph, with what it says.
    """
    trt = import_module(request["package"])
    started, messages = time.perf_counter(), _messages(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(_strongly_typed(trt))
    _parse(trt, network, messages, request["graph"])
    _allow_any_attention(trt, network)
    config = _config(trt, builder, request)
    device = cuda.device() if request["kind"] == "trt" else None
    cache = _timing_cache(config, request, trt.__version__, device)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError("; ".join(messages.said) or "TensorRT gives no reason")
    Path(request["engine"]).write_bytes(serialized)
    if cache is not None:
        cache.write_bytes(config.get_timing_cache().serialize())
    return {
        "kind": request["kind"],
        "version": trt.__version__,
        "compute_capabilities": [device.compute_capability] if device else request["compute_capabilities"],
        "device": device.name if device else "",
        "profiles": request["profiles"],
        "size": Path(request["engine"]).stat().st_size,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory": peak_memory(),
        "warnings": sorted(set(messages.said)),
        "timing_cache": cache.name if cache else "",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    asked, told = map(Path, arguments if arguments is not None else sys.argv[1:])
    try:
        facts = build(json.loads(asked.read_text(encoding="utf-8")))
    except OssicleError as reason:
        print(" ".join(str(reason).split()), file=sys.stderr)
        return 1
    told.write_text(json.dumps(facts), encoding="utf-8")
    return 0


def _messages(trt: Any) -> Any:
    """A logger that keeps warnings and what is worse."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.said.append(message)

    return Messages()


def _strongly_typed(trt: Any) -> int:
    """The flag that keeps every type as the graph has it, in versions where that is not the only way."""
    flags: Any = getattr(trt, "NetworkDefinitionCreationFlag", None)
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _parse(trt: Any, network: Any, messages: Any, graph: str) -> None:
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(graph):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError("; ".join(f"{fault.node_name()}: {fault.desc()}" for fault in faults))


def _allow_any_attention(trt: Any, network: Any) -> None:
    """Let TensorRT take attention apart where it has no kernel of its own for its shape and type."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _config(trt: Any, builder: Any, request: Mapping[str, Any]) -> Any:
    config = builder.create_builder_config()
    if numbers := request["compute_capabilities"]:
        config.num_compute_capabilities = len(numbers)
        for index, number in enumerate(numbers):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, greatest) in shapes.items():
            give = profile.set_shape_input if name in request["scalars"] else profile.set_shape
            give(name, least, usual, greatest)
        config.add_optimization_profile(profile)
    return config


def _timing_cache(config: Any, request: Mapping[str, Any], version: str, device: Any) -> Path | None:
    """The file of timings on this GPU, which the builder is told of; None where none is kept."""
    if request["timing_caches"] is None:
        return None
    folder = Path(request["timing_caches"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tensorrt-{version}-sm{device.compute_capability}.cache"
    held = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(held), False)
    return path


if __name__ == "__main__":
    sys.exit(main())
