"""What this machine has: facts only, for `ossicle doctor` and for choosing an engine."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..targets.probe import Proof
from .base import InexactRuntime, ProviderRuntime, ProvingRuntime, Runtime, proof
from .select import installed, runtimes

# Of these instruction sets engines make use; names as Linux and macOS give them.
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True)
class Processor:
    """The CPU: its name, the cores this process may use, and those of INSTRUCTION_SETS that it has."""

    name: str
    architecture: str
    cores: int
    instruction_sets: tuple[str, ...]


@dataclass(frozen=True)
class RuntimeFacts:
    """One runtime here: its package's version, why it cannot be used (None: it can), what is inexact in it (None: nothing).

    `proof` is "executed" where the engine itself runs, and says what stands in for it where it does not, `absent` why.
    `providers` are those that it computes on, each with what speaks against it.
    """

    name: str
    target: str
    version: str | None
    reason: str | None
    inexact: str | None
    proof: Proof
    absent: str | None = None
    providers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceFacts:
    """What this machine has. Memory in bytes; None where the system does not tell."""

    system: str
    python: str
    processor: Processor
    memory: int | None
    memory_available: int | None
    runtimes: tuple[RuntimeFacts, ...]


def doctor() -> DeviceFacts:
    """The facts of this machine and of every runtime on it."""
    total, available = _memory()
    return DeviceFacts(
        system=platform.platform(),
        python=platform.python_version(),
        processor=processor(),
        memory=total,
        memory_available=available,
        runtimes=tuple(map(_runtime_facts, runtimes())),
    )


def _runtime_facts(runtime: Runtime) -> RuntimeFacts:
    inexact = runtime.inexact if isinstance(runtime, InexactRuntime) else None
    return RuntimeFacts(
        runtime.name,
        runtime.target,
        installed(runtime.package),
        runtime.usable(),
        inexact,
        proof(runtime),
        runtime.absent() if isinstance(runtime, ProvingRuntime) else None,
        runtime.providers() if isinstance(runtime, ProviderRuntime) else {},
    )


def processor() -> Processor:
    """The CPU that this process runs on."""
    information = _processor_information()
    flags = set(information.get("flags", information.get("Features", "")).split())
    return Processor(
        name=information.get("model name", platform.processor() or platform.machine()),
        architecture=platform.machine(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may run on, each counted once however many threads it runs side by side."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    topology = (Path(f"/sys/devices/system/cpu/cpu{number}/topology") for number in os.sched_getaffinity(0))
    siblings = {path / "thread_siblings_list" for path in topology}
    if not all(path.is_file() for path in siblings):
        return usable_cores()
    return len({path.read_text(encoding="utf-8") for path in siblings})


def _processor_information() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return _fields(text.partition("\n\n")[0])


def _memory() -> tuple[int | None, int | None]:
    path = Path("/proc/meminfo")
    if path.exists():
        held = _fields(path.read_text(encoding="utf-8"))
        total, available = (int(held[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, available
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
