"""What memory this machine has left for a build, and what a process has held."""

import ctypes
import os
import sys
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 62  # bytes that a control group without a limit gives as its limit


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still use, or None where the system does not say."""
    limits = [limit for limit in (_line(root, "MemAvailable"), *_rooms(root)) if limit is not None]
    return min(limits, default=_installed() if root == Path("/") else None)


def total(root: Path = Path("/")) -> int | None:
    """Bytes that this machine, or the container that this process runs in, has; None where the system does not say."""
    installed = _line(root, "MemTotal")
    limits = [*([installed] if installed else []), *(limit for limit, _ in _control_groups(root))]
    return min(limits, default=_installed() if root == Path("/") else None)


def give_back() -> None:
    """Hand what was freed to the system: glibc keeps it, in pieces that what comes next often does not fit into."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def peak_memory(process: int | None = None) -> int:
    """The most memory that this process has held so far, or on Linux another: resident, in bytes; 0 where it is not told."""
    if sys.platform == "win32":
        return 0
    status = Path(f"/proc/{process or 'self'}/status")
    if status.exists():  # ru_maxrss would count what the parent held when it started this process
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def peak_memory_of_all() -> int:
    """As `peak_memory`, of this process and those that it started and that still run, where the system tells of both."""
    children = [pid for path in Path("/proc/self/task").glob("*/children") for pid in _text(path).split()]
    lines = [line for pid in children for line in _text(Path(f"/proc/{pid}/status")).splitlines()]
    return peak_memory() + sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _line(root: Path, name: str) -> int | None:
    lines = _text(root / "proc/meminfo").splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:") and len(line.split()) > 1]
    held = _number(found[0]) if found else None
    return None if held is None else held * 1024


def _installed() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _rooms(root: Path) -> list[int]:
    return [max(limit - used, 0) for limit, used in _control_groups(root)]


def _control_groups(root: Path) -> list[tuple[int, int]]:
    """The memory limit of every control group that this process is in (versions 1 and 2), and what is used of it."""
    inside = [line.split(":", 2)[2] for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") > 1]
    above = {
        str(folder).strip("/") for path in inside for folder in (PurePosixPath(path), *PurePosixPath(path).parents)
    }
    tops = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory")
    folders = {*tops, *(top / folder for top in tops for folder in above if ".." not in folder)}
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = [[_number(_text(folder / name)) for name in pair] for folder in folders for pair in names]
    # Without a limit version 2 says "max", and version 1 the largest number of pages.
    return [(limit, used) for limit, used in found if limit is not None and used is not None and limit < _UNLIMITED]


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):  # a path with a zero in it is a ValueError
        return ""
