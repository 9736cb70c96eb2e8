"""Adapters of an ONNX bundle: what goes into the low-rank inputs of its decoder for each choice of them.

The inputs are described in targets/onnx_adapters.py. Several adapters stand beside each other along the rank, each one's
second factor times its scale, so that one product adds them all.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError
from ..targets.manifest import Manifest
from .adapters import Key, key
from .onnxruntime_cache import on_device
from .onnxruntime_session import engine_call

REMEMBERED = 8  # choices that are held ready
_SECOND = ".lora_B"


def kept(manifest: Manifest) -> dict[str, str]:
    """The file of each adapter that a bundle keeps for ONNX Runtime, by name."""
    return {one.name: one.file.path for one in manifest.runtime_adapters if one.target == "onnx"}


class Adapters:
    """The adapters of a bundle, by name and file, for a decoder's session with `memory` for its values."""

    def __init__(self, files: Mapping[str, Path], session: Any, memory: str) -> None:
        self.files = dict(files)
        self._inputs = {one.name for one in session.get_overridable_initializers()}
        self._memory = memory
        self._ready: OrderedDict[Key, dict[str, Any]] = OrderedDict()

    def values(self, scales: Mapping[str, float]) -> dict[str, Any]:
        """OrtValues of the inputs that so much of each adapter fills; the others are left at rank 0.

        Raises:
            EngineError: a file cannot be read, or is of another decoder.
        """
        chosen = key(scales)
        if chosen not in self._ready:
            self._ready[chosen] = self._joined([(self._read(name), scale) for name, scale in chosen])
        self._ready.move_to_end(chosen)
        while len(self._ready) > REMEMBERED:
            self._ready.popitem(last=False)
        return self._ready[chosen]

    def _joined(self, parts: list[tuple[dict[str, NDArray[Any]], float]]) -> dict[str, Any]:
        values = {}
        for name in dict.fromkeys(name for arrays, _ in parts for name in arrays):
            held = [(arrays[name], scale) for arrays, scale in parts if name in arrays]
            if name.endswith(_SECOND):
                joined = np.concatenate([array * array.dtype.type(scale) for array, scale in held], axis=0)
            else:
                joined = np.concatenate([array for array, _ in held], axis=1)
            values[name] = on_device(joined, self._memory)
        return values

    def _read(self, name: str) -> dict[str, NDArray[Any]]:
        from onnxruntime import AdapterFormat

        path = self.files[name]
        held = engine_call(AdapterFormat.read_adapter, str(path)).get_parameters()
        if strange := sorted(held.keys() - self._inputs):
            raise EngineError(
                f"adapter '{path}' is not of this decoder, which has no input {strange[0]}. "
                "Build the bundle again: ossicle build CHECKPOINT --runtime-adapter PATH"
            )
        return {
            name: np.array(value.numpy()) for name, value in held.items()
        }  # out of the file, which goes with `held`
