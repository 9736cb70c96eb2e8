"""TensorRT and NVIDIA's driver on this machine's memory: engines run the graphs they were built of on ONNX Runtime.

What an engine reads and writes are the addresses that it was given, of the shapes that it was told, by functions with the names
and arguments of the real ones; so that a wrong address, pitch, shape or order is a wrong number or a crash, as on a GPU.
"""

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from ossicle.runtimes.tensorrt_buffers import Buffer, host_array
from ossicle.runtimes.tensorrt_cuda import _Copy

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Driver:
    """libcuda with one GPU; every allocation is counted."""

    def __init__(self, compute_capability: int = 89) -> None:
        self.held: dict[int, Any] = {}
        self.recording: list[Any] | None = None
        self.launches = 0
        self._number = compute_capability
        self._graphs: list[list[Any]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *_: 0  # contexts, streams and waiting: everything is done at once here

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:  # noqa: N802, ARG002
        name.value = b"NVIDIA Test"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:  # noqa: N802, ARG002
        value._obj.value = self._number // 10 if attribute == 75 else self._number % 10
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        memory = np.full(size.value, 0xFF, np.uint8)  # NaN in any float: what is not written must not be read
        self.held[memory.ctypes.data] = memory
        address._obj.value = memory.ctypes.data
        return 0

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        del self.held[address.value]
        return 0

    def cuMemsetD8_v2(self, address: Any, value: Any, size: Any) -> int:  # noqa: N802
        ctypes.memset(address.value, value.value, size.value)
        return 0

    def cuMemcpyHtoD_v2(self, address: Any, values: Any, size: Any) -> int:  # noqa: N802
        ctypes.memmove(address.value, values, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, values: Any, address: Any, size: Any) -> int:  # noqa: N802
        ctypes.memmove(values, address.value, size.value)
        return 0

    def cuMemcpy2D_v2(self, asked: Any) -> int:  # noqa: N802
        copy: _Copy = asked._obj
        assert (copy.source_type, copy.target_type) == (2, 2)
        for row in range(copy.height):
            target, source = copy.target_device + row * copy.target_pitch, copy.source_device + row * copy.source_pitch
            ctypes.memmove(target, source, copy.width)
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:  # noqa: N802, ARG002
        self.recording = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802, ARG002
        assert self.recording
        self._graphs.append(self.recording)
        graph._obj.value = len(self._graphs)
        self.recording = None
        return 0

    def cuGraphInstantiateWithFlags(self, launchable: Any, graph: Any, flags: Any) -> int:  # noqa: N802, ARG002
        launchable._obj.value = graph.value
        return 0

    def cuGraphLaunch(self, launchable: Any, stream: Any) -> int:  # noqa: N802, ARG002
        self.launches += 1
        for work in self._graphs[launchable.value - 1]:
            work()
        return 0


def package(driver: Driver, *, rtx: bool) -> Any:
    """A module `tensorrt_rtx` or `tensorrt` whose engines are the path of a graph and its profiles, as JSON."""
    made = SimpleNamespace(
        __version__="1.7.1.116" if rtx else "11.0.0",
        Logger=_Logger,
        Runtime=lambda _logger: SimpleNamespace(deserialize_cuda_engine=lambda data: _Engine(driver, data)),
    )
    if rtx:
        made.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    return made


class _Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        assert level == self.ERROR


class _Engine:
    def __init__(self, driver: Driver, data: bytes) -> None:
        told = json.loads(data)
        self.driver = driver
        self.profiles = told["profiles"]
        self.num_optimization_profiles = len(self.profiles)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(
            str(Path(told["graph"])), options, providers=["CPUExecutionProvider"]
        )

    def create_runtime_config(self) -> Any:
        return SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> "_Context":
        return _Context(self, config)


class _Context:
    def __init__(self, engine: _Engine, config: Any) -> None:
        self._engine = engine
        self.config = config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile: dict[str, Any] = {}

    def set_optimization_profile_async(self, number: int, stream: Any) -> bool:  # noqa: ARG002
        self._profile = self._engine.profiles[number]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self._profile[name]
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: Any) -> bool:  # noqa: ARG002
        numbers = {name: ctypes.c_int64.from_address(self._addresses[name]).value for name in self._scalars()}
        for name, value in numbers.items():
            assert self._profile[name][0][0] <= value <= self._profile[name][2][0], (name, value)
        places, shapes = dict(self._addresses), dict(self._shapes)
        if self._engine.driver.recording is not None:
            self._engine.driver.recording.append(lambda: self._compute(places, shapes, numbers))
        else:
            self._compute(places, shapes, numbers)
        return True

    def _scalars(self) -> list[str]:
        return [port.name for port in self._engine.session.get_inputs() if not port.shape]

    def _compute(self, places: dict[str, int], shapes: dict[str, tuple[int, ...]], numbers: dict[str, int]) -> None:
        """Inputs are copied from where they lie, outputs to where they belong, a cache in its own place."""
        session = self._engine.session
        feed: dict[str, Any] = {name: np.array(value, np.int64) for name, value in numbers.items()}
        for port in session.get_inputs():
            if port.name in shapes:
                feed[port.name] = _array(places[port.name], shapes[port.name], port.type).copy()
        names = [port.name for port in session.get_outputs()]
        for port, value in zip(session.get_outputs(), session.run(names, feed), strict=True):
            aliased = port.name.replace("present", "past_key_values")
            assert places.get(aliased, places[port.name]) == places[port.name], "a cache is updated in place"
            _array(places[port.name], value.shape, port.type)[...] = value


def _array(address: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    return host_array(Buffer(address, shape, np.dtype(_DTYPES[kind]), None))  # type: ignore[arg-type]
