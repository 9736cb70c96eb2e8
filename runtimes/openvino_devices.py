"""OpenVINO's devices: which of them it has here, and what is missing for the others."""

from functools import cache
from typing import Any

from ..targets.openvino_core import core
from .machine import HERE, Machine
from .refusal import Device, Refusal, lacking, undriven
from .refusal import present as matching

DEVICES = ("cpu", "gpu", "npu", "auto")
_NEEDED: dict[str, Device] = {"gpu": "intel gpu", "npu": "intel npu"}


def present(openvino: Any) -> list[str]:
    """Those of DEVICES that OpenVINO has here; "auto" takes the best of them."""
    found = {device.split(".")[0].lower() for device in openvino.available_devices}
    return [device for device in DEVICES if device in found | {"auto"}]


def states() -> dict[str, str | None]:
    """What speaks against each device here, by name; None: nothing."""
    found = _asked()
    return {device: None if device in found else refusal(device) for device in DEVICES}


@cache
def _asked() -> tuple[str, ...]:
    """Those that OpenVINO has, asked once in a process."""
    return tuple(present(core()))


def refusal(device: str, machine: Machine = HERE) -> Refusal:
    """Why OpenVINO does not have a device on this machine."""
    needed = _NEEDED.get(device, "")
    if not needed:
        return Refusal(f"this build of OpenVINO has no {device.upper()}", "package", "pip install --upgrade openvino")
    return lacking(needed, machine) or undriven(needed, matching(needed, machine))
