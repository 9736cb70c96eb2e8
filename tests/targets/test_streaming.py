"""Numbers on their way into data files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.targets import gguf_blocks, streaming
from ossicle.targets.contract import CheckpointError, Float32


@dataclass(frozen=True)
class Held:
    """A tensor in memory."""

    values: Float32
    name: str = "model.weight"
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Float32:
        return self.values[start:stop]


@pytest.mark.parametrize("write", [streaming.write_floats, streaming.write_turned])
@pytest.mark.parametrize(
    ("value", "kind", "held"),
    [(7e4, "float32", True), (7e4, "float16", False), (np.inf, "float32", False), (np.nan, "float32", False)],
)
def test_what_a_slot_cannot_hold_is_refused_by_its_tensor(
    tmp_path: Path, write: Any, value: float, kind: str, held: bool
) -> None:
    source = Held(np.array([[1, 2], [3, value]], np.float32))
    layout = streaming.Layout()
    slot = layout.add("weight", kind, (2, 2))
    files = streaming.DataFiles([tmp_path / "data"], layout.sizes())
    try:
        if held:
            write(files, slot, source)
        else:
            with pytest.raises(
                CheckpointError, match=rf"'model.weight' cannot be stored as {kind}: rows 0 to 2: a weight"
            ):
                write(files, slot, source)
    finally:
        files.close()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_ggufs_float32_holds_numbers_alone(value: float) -> None:
    with pytest.raises(ValueError, match="infinite or not a number"):
        gguf_blocks.pack_floats(np.array([[1.0, value]], np.float32), gguf_blocks.F32)
