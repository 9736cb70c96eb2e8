"""Memory of this machine: what there is, and what is free."""

import ctypes
import re

from ..targets import memory
from .machine import HERE, Machine, fields, number


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX"""

    _fields_ = (
        *(("length", ctypes.c_uint32), ("load", ctypes.c_uint32)),
        *((name, ctypes.c_uint64) for name in ("total", "available", "total_page", "available_page")),
        *((name, ctypes.c_uint64) for name in ("total_virtual", "available_virtual", "available_extended")),
    )


def working_memory(machine: Machine = HERE) -> tuple[int | None, int | None]:
    """Bytes that there are and that are free, within the container's limit; None where the system does not tell."""
    if machine.system == "Darwin":
        return _mac(machine)
    if machine.system == "Windows":
        return _windows(machine)
    return memory.total(machine.root), memory.available(machine.root)


def _mac(machine: Machine) -> tuple[int | None, int | None]:
    """All memory, and the pages that are free or given up at once when asked for."""
    told = machine.ask(("vm_stat",))
    page = re.search(r"page size of (\d{1,9}) bytes", told)
    names = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    pages = [number(fields(told).get(name, "").rstrip(".")) or 0 for name in names]
    total = number(machine.ask(("sysctl", "-n", "hw.memsize")))
    return total, int(page.group(1)) * sum(pages) if page and sum(pages) else None


def _windows(machine: Machine) -> tuple[int | None, int | None]:
    kernel, status = machine.library("kernel32.dll"), _Status(length=ctypes.sizeof(_Status))
    if kernel is None or not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.total, status.available
