"""GPUs and NPUs of this machine, each with its driver, whether or not an engine can use it."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .machine import HERE, Machine, fields

# Who made it, by PCI's number; displays of servers and of virtual machines compute nothing and are left out.
PCI_VENDORS = {"10de": "nvidia", "8086": "intel", "1002": "amd", "1022": "amd", "17cb": "qualcomm"}
TITLES = {"nvidia": "NVIDIA", "intel": "Intel", "amd": "AMD", "apple": "Apple", "qualcomm": "Qualcomm", "arm": "ARM"}
PCI_NAMES = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids", "usr/share/pci.ids")
NPU_DRIVERS = {"intel_vpu", "amdxdna"}
# NPUs by vendor and device, known though no driver is loaded: Meteor, Arrow, Lunar and Panther Lake; Phoenix and Strix.
NPUS = {*(("8086", device) for device in ("7d1d", "ad1d", "643e", "b03e")), ("1022", "1502"), ("1022", "17f0")}
# Drivers in /sys/class/drm of GPUs that are part of a chip and on no bus.
CHIP_DRIVERS = {
    "msm": "qualcomm",
    "msm_dpu": "qualcomm",
    "adreno": "qualcomm",
    "v3d": "broadcom",
    "panfrost": "arm",
    "panthor": "arm",
    "lima": "arm",
    "nvgpu": "nvidia",
    "tegra-drm": "nvidia",
    "asahi": "apple",
}


@dataclass(frozen=True)
class Accelerator:
    """A GPU or an NPU.

    `vendor` is "nvidia", "intel", "amd", "apple", "qualcomm", "arm" or "broadcom". `driver` is the driver's version or name,
    None where none is loaded. `memory` is its own, in bytes; None where it shares the machine's or does not tell.
    `capability` is CUDA's compute capability: "8.9".
    """

    kind: Literal["gpu", "npu"]
    vendor: str
    name: str
    driver: str | None = None
    memory: int | None = None
    capability: str | None = None


def accelerators(machine: Machine = HERE) -> tuple[Accelerator, ...]:
    """Every GPU and NPU that the system knows of. This machine's are looked for once in a process."""
    return _here() if machine is HERE else _found(machine)


@cache
def _here() -> tuple[Accelerator, ...]:
    return _found(HERE)


def _found(machine: Machine) -> tuple[Accelerator, ...]:
    from .nvml import nvidia_gpus  # knows what an accelerator is

    listed = tuple(_SYSTEMS.get(machine.system, _none)(machine))
    told = nvidia_gpus(machine)
    others = [one for one in listed if not (told and (one.kind, one.vendor) == ("gpu", "nvidia"))]
    return (*told, *others)


def _none(machine: Machine) -> Iterable[Accelerator]:
    del machine
    return ()


def _linux(machine: Machine) -> Iterable[Accelerator]:
    on_bus = [_on_bus(machine, folder) for folder in machine.folders("sys/bus/pci/devices")]
    yield from (one for one in on_bus if one)
    yield from {one: None for folder in machine.folders("sys/class/drm", "*") if (one := _in_chip(machine, folder))}
    if _hexagon(machine):
        yield Accelerator("npu", "qualcomm", "Qualcomm Hexagon NPU", driver="fastrpc")


def _on_bus(machine: Machine, folder: Path) -> Accelerator | None:
    """The GPU or NPU that a device of PCI is; None where it is something else."""
    number, device = (machine.text(folder / name).removeprefix("0x").lower() for name in ("vendor", "device"))
    driver = _uevent(machine, folder).get("DRIVER", "")
    vendor = PCI_VENDORS.get(number)
    if vendor is None:
        return None
    name = f"{TITLES[vendor]} {machine.text(folder / 'product_name') or pci_name(machine, number, device) or device}"
    version = " ".join(filter(None, (driver, machine.text(f"sys/module/{driver}/version") if driver else ""))) or None
    if driver in NPU_DRIVERS or (number, device) in NPUS:
        return Accelerator("npu", vendor, name, version)
    displays = ("0x03", "0x12") if vendor == "amd" else ("0x03",)  # AMD's accelerators have no display, and say so
    if not machine.text(folder / "class").startswith(displays):
        return None
    return Accelerator("gpu", vendor, name, version, machine.number(folder / "mem_info_vram_total"))


def _uevent(machine: Machine, folder: Path) -> dict[str, str]:
    return fields(machine.text(folder / "uevent").replace("=", ": "))


def pci_name(machine: Machine, vendor: str, device: str) -> str:
    """A device's name in the list that distributions ship; "" where there is none."""
    lines = next(filter(None, (machine.text(path) for path in PCI_NAMES)), "").splitlines()
    inside = False
    for line in lines:
        if not line.startswith(("\t", "#")):
            inside = line[:4].lower() == vendor
        elif inside and line[1:5].lower() == device and not line.startswith("\t\t"):
            return line[5:].strip()
    return ""


def _in_chip(machine: Machine, folder: Path) -> Accelerator | None:
    """The GPU of a chip behind a node of /sys/class/drm; None where the node is another's."""
    told = _uevent(machine, folder / "device")
    driver = told.get("DRIVER", "")
    vendor = CHIP_DRIVERS.get(driver)
    if vendor is None or "PCI_ID" in told:
        return None
    return Accelerator("gpu", vendor, told.get("OF_COMPATIBLE_0") or f"{driver} GPU", driver)


def _hexagon(machine: Machine) -> bool:
    cores = [machine.text(folder / "name") for folder in machine.folders("sys/class/remoteproc")]
    return machine.is_there("dev/fastrpc-cdsp") or "cdsp" in cores


def _mac(machine: Machine) -> Iterable[Accelerator]:
    for told in _listed(machine.ask(("system_profiler", "-json", "SPDisplaysDataType")), "SPDisplaysDataType"):
        name = str(told.get("sppci_model") or "GPU")
        vendor = next((vendor for vendor in ("apple", "amd", "intel", "nvidia") if vendor in name.lower()), "apple")
        yield Accelerator("gpu", vendor, name, driver="macOS")
    if machine.architecture == "arm64":
        yield Accelerator("npu", "apple", "Apple Neural Engine", driver="macOS")


# One question to PowerShell, which takes most of a second to start.
WINDOWS = (
    "$g = Get-CimInstance Win32_VideoController | Select-Object Name,DriverVersion,AdapterRAM,PNPDeviceID;"
    "$n = Get-CimInstance Win32_PnPSignedDriver -Filter \"DeviceClass='COMPUTEACCELERATOR'\" | "
    "Select-Object @{n='Name';e={$_.DeviceName}},DriverVersion,@{n='PNPDeviceID';e={$_.DeviceID}};"
    "ConvertTo-Json -Compress @{gpu=@($g);npu=@($n)}"
)
_MOST_RAM = 0xFFF00000  # AdapterRAM has 32 bits: beyond them it says this


def _windows(machine: Machine) -> Iterable[Accelerator]:
    text = machine.ask(("powershell", "-NoProfile", "-NonInteractive", "-Command", WINDOWS))
    kinds: tuple[Literal["gpu", "npu"], ...] = ("gpu", "npu")
    for kind in kinds:
        for told in _listed(text, kind):
            if one := _of_windows(kind, told):
                yield one


def _of_windows(kind: Literal["gpu", "npu"], told: Mapping[str, Any]) -> Accelerator | None:
    identity, name = str(told.get("PNPDeviceID") or "").lower(), str(told.get("Name") or kind.upper())
    vendor = next((vendor for number, vendor in PCI_VENDORS.items() if f"ven_{number}" in identity), None)
    vendor = vendor or ("qualcomm" if "qcom" in identity or "qualcomm" in name.lower() else None)
    if vendor is None:
        return None
    found = Accelerator(kind, vendor, name, str(told.get("DriverVersion") or "") or None)
    own = told.get("AdapterRAM")
    tells = vendor in {"nvidia", "amd"} and isinstance(own, int) and 0 < own < _MOST_RAM
    return replace(found, memory=own) if tells else found


def _listed(text: str, name: str) -> list[Mapping[str, Any]]:
    """The objects that a command lists under a name; none where it answered something else."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = held.get(name) if isinstance(held, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


_SYSTEMS: Mapping[str, Callable[[Machine], Iterable[Accelerator]]] = {
    "Linux": _linux,
    "Darwin": _mac,
    "Windows": _windows,
}
