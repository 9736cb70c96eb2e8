"""OpenVINO's devices: which of them it has here, and what is missing for the others."""

from functools import cache
from types import ModuleType
from typing import Any

from .machine import HERE, Machine
from .refusal import Device, Refusal, lacking, undriven
from .refusal import present as matching

DEVICES = ("cpu", "gpu", "npu", "auto")
_NEEDED: dict[str, Device] = {"gpu": "intel gpu", "npu": "intel npu"}


def present(core: Any) -> list[str]:
    """Those of DEVICES that OpenVINO has here; "auto" takes the best of them."""
    found = {device.split(".")[0].lower() for device in core.available_devices}
    return [device for device in DEVICES if device in found | {"auto"}]


def states() -> dict[str, str | None]:
    """What speaks against each device here, by name; None: nothing."""
    import openvino

    found = _asked(openvino)
    return {device: None if device in found else refusal(device) for device in DEVICES}


@cache
def _asked(openvino: ModuleType) -> tuple[str, ...]:
    """Those that OpenVINO has, asked once in a process."""
    return tuple(present(openvino.Core()))


def refusal(device: str, machine: Machine = HERE) -> Refusal:
    """Why OpenVINO does not have a device on this machine."""
    needed = _NEEDED.get(device, "")
    if not needed:
        return Refusal(f"this build of OpenVINO has no {device.upper()}", "package", "pip install --upgrade openvino")
    return lacking(needed, machine) or undriven(needed, matching(needed, machine))
