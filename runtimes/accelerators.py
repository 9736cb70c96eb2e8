"""GPUs and NPUs of this machine, each with its driver."""

from dataclasses import dataclass
from typing import Literal

from .machine import HERE, Machine


@dataclass(frozen=True)
class Accelerator:
    """A GPU or an NPU.

    `vendor` is one of "nvidia", "intel", "amd", "apple", "qualcomm", or a PCI vendor's number. `driver` is None where none is
    loaded. `memory` is its own, in bytes; None where it shares the machine's. `capability` is CUDA's compute capability: "8.9".
    """

    kind: Literal["gpu", "npu"]
    vendor: str
    name: str
    driver: str | None = None
    memory: int | None = None
    capability: str | None = None


def accelerators(machine: Machine = HERE) -> tuple[Accelerator, ...]:
    """Every GPU and NPU that the system knows of."""
    del machine
    return ()
