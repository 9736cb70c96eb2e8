"""The graphs of a TensorRT bundle on ONNX Runtime's CPU: the same nodes and numbers where there is no GPU to run engines on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .onnxruntime_session import engine_call, open_session
from .tensorrt_buffers import Buffer, Host, host_array

# Products with four-bit integers would else be computed with activations of eight bits, which TensorRT does not do.
_EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}


class SameGraph:
    """A graph opened by ONNX Runtime, whatever the profile."""

    def __init__(self, path: Path, threads: int) -> None:
        self.device = Host()
        self._session = open_session(path, threads, entries=_EXACT)

    def run(
        self, profile: int, inputs: Mapping[str, Buffer], numbers: Mapping[str, int], outputs: Mapping[str, Buffer]
    ) -> None:
        del profile
        binding = self._session.io_binding()
        for name, value in numbers.items():
            binding.bind_cpu_input(name, np.array(value, np.int64))
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, _value(buffer))
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, _value(buffer))
        engine_call(self._session.run_with_iobinding, binding)


def _value(buffer: Buffer) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(host_array(buffer))  # shares the array's memory
