"""TensorRT's engines on the GPU: memory by the driver, a context for each profile, graphs captured of what is run again."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError
from ..targets.cuda import call, driver
from .tensorrt_buffers import Allocation, Block, Buffer
from .tensorrt_decoder import STEP

_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_POINTER = ctypes.c_uint64


class _Copy(ctypes.Structure):
    """CUDA_MEMCPY2D"""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("source_x", "source_y")),
        ("source_type", ctypes.c_int),
        ("source_host", ctypes.c_void_p),
        ("source_device", _POINTER),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("target_x", "target_y")),
        ("target_type", ctypes.c_int),
        ("target_host", ctypes.c_void_p),
        ("target_device", _POINTER),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class CudaMemory:
    """Zeros on the GPU, given back with their last owner."""

    def __init__(self, library: Any, size: int) -> None:
        self._library = library
        held = _POINTER()
        call(library.cuMemAlloc_v2, ctypes.byref(held), ctypes.c_size_t(max(size, 1)))
        self.address = held.value
        call(library.cuMemsetD8_v2, held, ctypes.c_ubyte(0), ctypes.c_size_t(max(size, 1)))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._library.cuMemFree_v2(_POINTER(self.address))


class Cuda:
    """The first GPU: its primary context, which TensorRT uses too, and one stream on which all work is done."""

    def __init__(self) -> None:
        self.library = driver()
        handle, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        call(self.library.cuDeviceGet, ctypes.byref(handle), 0)
        call(self.library.cuDevicePrimaryCtxRetain, ctypes.byref(context), handle)
        call(self.library.cuCtxSetCurrent, context)
        call(self.library.cuStreamCreate, ctypes.byref(stream), 1)  # not waiting for the default stream
        self.stream = stream

    def allocate(self, size: int) -> Allocation:
        return CudaMemory(self.library, size)

    def write(self, address: int, values: NDArray[Any]) -> None:
        call(self.library.cuMemcpyHtoD_v2, _POINTER(address), _host(values), ctypes.c_size_t(values.nbytes))

    def read(self, address: int, values: NDArray[Any]) -> None:
        call(self.library.cuMemcpyDtoH_v2, _host(values), _POINTER(address), ctypes.c_size_t(values.nbytes))

    def copy(self, target: Block, source: Block, width: int, rows: int) -> None:
        asked = _Copy(
            source_type=_DEVICE_MEMORY,
            source_device=source.address,
            source_pitch=source.pitch,
            target_type=_DEVICE_MEMORY,
            target_device=target.address,
            target_pitch=target.pitch,
            width=width,
            height=rows,
        )
        call(self.library.cuMemcpy2D_v2, ctypes.byref(asked))

    def wait(self) -> None:
        """Until all work on the stream is done."""
        call(self.library.cuStreamSynchronize, self.stream)


class Captured:
    """Work on a stream, recorded once, launched as one."""

    def __init__(self, device: Cuda, work: Any) -> None:
        self._device = device
        graph, self._launchable = ctypes.c_void_p(), ctypes.c_void_p()
        library = device.library
        call(library.cuStreamBeginCapture_v2, device.stream, _RELAXED)
        work()
        call(library.cuStreamEndCapture, device.stream, ctypes.byref(graph))
        call(library.cuGraphInstantiateWithFlags, ctypes.byref(self._launchable), graph, ctypes.c_ulonglong(0))
        call(library.cuGraphDestroy, graph)

    def launch(self) -> None:
        call(self._device.library.cuGraphLaunch, self._launchable, self._device.stream)

    def __del__(self) -> None:
        if getattr(self, "_launchable", None):
            self._device.library.cuGraphExecDestroy(self._launchable)


class Engine:
    """An engine with a context for each of its profiles."""

    def __init__(self, package: Any, path: Path, device: Cuda) -> None:
        self.device = device
        self._runtime = package.Runtime(package.Logger(package.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"TensorRT {package.__version__} cannot open '{path}'. Build it on this machine: ossicle engine BUNDLE"
            )
        self._package = package
        self._contexts: dict[int, Any] = {}
        self._captures_itself = hasattr(package, "CudaGraphStrategy")
        self._captured: dict[Any, Captured | None] = {}

    def run(
        self, profile: int, inputs: Mapping[str, Buffer], numbers: Mapping[str, int], outputs: Mapping[str, Buffer]
    ) -> None:
        if profile not in self._contexts:
            self._contexts[profile] = self._context(self._package, profile)
        context = self._contexts[profile]
        held = {name: np.array(value, np.int64) for name, value in numbers.items()}
        for name, value in held.items():
            context.set_tensor_address(name, value.ctypes.data)
        for name, buffer in {**inputs, **outputs}.items():
            context.set_tensor_address(name, buffer.address)
        for name, buffer in inputs.items():
            if not context.set_input_shape(name, buffer.shape):
                raise EngineError(
                    f"the engine was not built for {name} of shape {buffer.shape}. See: ossicle inspect BUNDLE"
                )
        self._enqueue(context, profile, _key(inputs, numbers, outputs))
        self.device.wait()

    def _context(self, package: Any, profile: int) -> Any:
        """A context on its profile, or on the one there is.

        TensorRT for RTX captures graphs by itself; classic TensorRT has them captured here.
        """
        if hasattr(package, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            if profile == STEP:
                config.cuda_graph_strategy = package.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        number = min(profile, self._engine.num_optimization_profiles - 1)
        if not context.set_optimization_profile_async(number, self.device.stream.value):
            raise EngineError(f"TensorRT {package.__version__} refuses profile {profile} of its engine")
        self.device.wait()
        return context

    def _enqueue(self, context: Any, profile: int, key: Any) -> None:
        """Run, and from the second time on that steps have the same shapes and addresses, as a captured graph."""
        if self._captures_itself or profile != STEP:
            self._execute(context)
            return
        captured = self._captured.get(key)
        if captured is None and key in self._captured:
            captured = self._captured[key] = Captured(self.device, lambda: self._execute(context))
        if captured is None:
            self._captured = {key: None}
            self._execute(context)
        else:
            captured.launch()

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self.device.stream.value):
            raise EngineError("TensorRT failed to run an engine. See: nvidia-smi")


def _key(inputs: Mapping[str, Buffer], numbers: Mapping[str, int], outputs: Mapping[str, Buffer]) -> Any:
    places = [(name, buffer.address, buffer.shape) for name, buffer in {**inputs, **outputs}.items()]
    return (*places, *numbers.items())


def _host(values: NDArray[Any]) -> Any:
    return ctypes.c_void_p(values.ctypes.data)
