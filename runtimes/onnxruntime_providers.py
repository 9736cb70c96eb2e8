"""ONNX Runtime's execution providers: what each is told, where its memory is, and which package brings it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..targets.contract import EngineError
from . import onnxruntime_plugins as plugins
from .refusal import Device, Refusal, lacking


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    name: str  # the word the user types: "cuda"
    engine: str  # what ONNX Runtime calls it
    install: str  # the command that brings it
    device: Device = ""  # what it needs here
    memory: str = "cpu"  # the device that keys and values stay on, as OrtValue names it
    options: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)  # of the session's configuration
    session: Mapping[str, Any] = field(default_factory=dict)  # what its SessionOptions are set to
    package: str = ""  # the module of a package that brings it to any build of ONNX Runtime
    hardware: str = ""  # the kind of device that such a package has to find: "GPU", "NPU"; any


CPU = Provider("cpu", "CPUExecutionProvider", 'pip install "ossicle[onnx]"')

# Options as https://onnxruntime.ai/docs/execution-providers/ has them.
PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        CPU,
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            "pip install onnxruntime-gpu",
            "nvidia",
            memory="cuda",
            # grown by what is asked for, not doubled; a cache that grows would otherwise take twice its size
            options={"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
        ),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            "pip install onnxruntime-gpu tensorrt",
            "nvidia",
            memory="cuda",
            options={"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        ),
        Provider(
            "nvtensorrtrtx",
            "NvTensorRTRTXExecutionProvider",
            "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13",
            "nvidia",
            memory="cuda",
            options={"enable_cuda_graph": "0"},  # shapes change from token to token
            package="onnxruntime_ep_nv_tensorrt_rtx",
        ),
        Provider(
            "coreml",
            "CoreMLExecutionProvider",
            "pip install onnxruntime",
            "Darwin",
            options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "0"},
        ),
        Provider(
            "directml",
            "DmlExecutionProvider",
            "pip install onnxruntime-directml",
            "Windows",
            memory="dml",
            # it runs neither patterns of memory nor nodes side by side
            session={"enable_mem_pattern": False},
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            "pip install onnxruntime-qnn",
            "qualcomm",
            options={"backend_type": "htp", "enable_htp_fp16_precision": "1", "htp_performance_mode": "burst"},
            package="onnxruntime_qnn",
            hardware="NPU",
        ),
        Provider(
            "webgpu",
            "WebGpuExecutionProvider",
            "pip install onnxruntime-ep-webgpu",
            "gpu",
            package="onnxruntime_ep_webgpu",
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "pip install onnxruntime-openvino",
            options={"device_type": "AUTO"},
        ),
    )
}


def provider(name: str) -> Provider:
    """The provider of this name, its device seen here or not: who names it may know better.

    Raises:
        EngineError: there is none, or it is not in the ONNX Runtime that is installed.
    """
    if name not in PROVIDERS:
        raise EngineError(
            f"engine 'onnxruntime' has no provider '{name}' (it can have: {', '.join(PROVIDERS)}). "
            "See what this machine has: ossicle doctor"
        )
    one = PROVIDERS[name]
    if reason := refusal(one):
        told = ", and ".join(filter(None, (lacking(one.device), reason)))
        raise EngineError(f"provider '{name}' of engine 'onnxruntime' cannot be used: {told}")
    # Where a package brings the provider, keys and values stay in this process: every build of ONNX Runtime can do that.
    return replace(one, memory=CPU.memory) if plugins.is_installed(one.package) else one


def refusal(one: Provider) -> str | None:
    """Why a provider cannot be used with the ONNX Runtime and the packages that are installed; None where it can."""
    import onnxruntime

    if plugins.is_installed(one.package):
        return plugins.refusal(one.package, one.engine, one.hardware)
    if one.engine in onnxruntime.get_available_providers():
        return None
    where = "a package that brings it" if one.package else "one that has it, in place of this one"
    reason = f"onnxruntime {onnxruntime.__version__} is built without {one.engine}. Install {where}"
    return Refusal(reason, "package", one.install)


def states() -> dict[str, str | None]:
    """What speaks against each provider here, by name; None: nothing."""
    return {name: _state(one) for name, one in PROVIDERS.items()}


def _state(one: Provider) -> str | None:
    """What speaks against a provider, a missing device before a missing package: no package helps where there is none."""
    if plugins.is_installed(one.package):
        return refusal(one)  # its library has looked for the device itself
    return lacking(one.device) or refusal(one)
