"""Why an engine or a provider cannot be used here, and what would change that."""

from collections.abc import Sequence
from typing import Literal

from .accelerators import TITLES, Accelerator, accelerators
from .machine import HERE, Machine

Missing = Literal["package", "driver", "device", "system", "engine"]
Device = Literal["", "nvidia", "qualcomm", "gpu", "intel gpu", "intel npu", "Darwin", "Windows"]

SYSTEMS = {"Darwin": "a Mac", "Windows": "Windows"}
DRIVERS = {
    "nvidia": "Install NVIDIA's from https://www.nvidia.com/drivers",
    "intel gpu": "Install Intel's compute runtime from https://github.com/intel/compute-runtime",
    "intel npu": "Install Intel's from https://github.com/intel/linux-npu-driver",
}
_IDLE = ("nouveau", "nova", "nova_core", "vfio-pci")  # drivers of Linux that no engine computes through


class Refusal(str):
    """A reason, with what is missing and the command that would help ("" where none does on this machine).

    It is the reason's text wherever a text is wanted. `missing` is "package" where a package is not installed or too old,
    "driver" where the device is here and its driver is not, "device" where there is no such device, "system" where it is
    another system's, and "engine" for all else.
    """

    missing: Missing
    command: str

    def __new__(cls, reason: str, missing: Missing = "engine", command: str = "") -> "Refusal":
        made = super().__new__(cls, f"{reason}: {command}" if command else reason)
        made.missing, made.command = missing, command
        return made


def missing_package(package: str, extra: str, reason: Exception) -> Refusal:
    """That a package cannot be imported, and what brings it: an extra of ossicle, or the package anew where it is broken."""
    told = " ".join(str(reason).split()).rstrip(".") or repr(reason)
    text = f"package {package} cannot be imported: {told}. Install it"
    if isinstance(reason, ModuleNotFoundError) and reason.name == package:
        return Refusal(f"{text} with", "package", f'pip install "ossicle[{extra}]"')
    return Refusal(f"{text} again with", "package", f"pip install --force-reinstall {package}")


def lacking(device: Device, machine: Machine = HERE) -> Refusal | None:
    """Why this machine is none for an engine that needs such a device; None where it is, or where none is needed."""
    if not device:
        return None
    if device in SYSTEMS:
        right = machine.system == device
        return None if right else Refusal(f"it needs {SYSTEMS[device]}, and this is {machine.system}", "system")
    found = [one for one in accelerators(machine) if _is(device, one)]
    if not found:
        return Refusal(f"there is no {_title(device)} here", "device")
    return None if any(map(_driven, found)) else undriven(device, found)


def undriven(device: Device, found: Sequence[Accelerator]) -> Refusal:
    """That a device is here, and its driver is not."""
    names = ", ".join(f"{one.name} ({one.driver or 'no driver'})" for one in found)
    help_ = DRIVERS.get(device, "Install its driver")
    return Refusal(f"there is a {_title(device)} without the driver that engines need: {names}. {help_}", "driver")


def present(device: Device, machine: Machine = HERE) -> tuple[Accelerator, ...]:
    """The devices of this machine that are such a device."""
    return tuple(one for one in accelerators(machine) if _is(device, one))


def _is(device: Device, one: Accelerator) -> bool:
    if device == "gpu":
        return one.kind == "gpu"
    vendor, _, kind = device.partition(" ")
    wanted = kind or {"nvidia": "gpu", "qualcomm": "npu"}[vendor]
    return (one.vendor, one.kind) == (vendor, wanted)


def _title(device: Device) -> str:
    if device == "gpu":
        return "GPU"
    vendor, _, kind = device.partition(" ")
    return f"{TITLES[vendor]} {kind.upper() or {'nvidia': 'GPU', 'qualcomm': 'NPU (a Snapdragon)'}[vendor]}"


def _driven(one: Accelerator) -> bool:
    driver = (one.driver or "").split()
    return bool(driver) and driver[0] not in _IDLE
