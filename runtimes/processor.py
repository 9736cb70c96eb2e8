"""The CPU: its name, the cores that this process may use, and those of its instruction sets that engines make use of."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .arm_cores import PARTS
from .machine import HERE, Machine, fields, number

# Every instruction set that is told of, by one name on every system, and the flag that Linux has for it.
X86 = {
    name: name
    for name in (
        *("f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
    )
}
ARM = {
    "neon": "asimd",
    "fp16": "asimdhp",
    "dotprod": "asimddp",
    **{name: name for name in ("i8mm", "bf16", "sve", "sve2", "sme", "sme2")},
}
INSTRUCTION_SETS = (*X86, *ARM)

# What `sysctl` of macOS calls them: features of Intel's processors, then Apple's.
_INTEL_MAC = {"F16C": "f16c", "FMA": "fma", "AVX2": "avx2", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni"}
_APPLE = {
    "neon": ("hw.optional.AdvSIMD", "hw.optional.neon", "hw.optional.arm64"),
    "fp16": ("hw.optional.arm.FEAT_FP16", "hw.optional.neon_fp16"),
    "dotprod": ("hw.optional.arm.FEAT_DotProd",),
    "i8mm": ("hw.optional.arm.FEAT_I8MM",),
    "bf16": ("hw.optional.arm.FEAT_BF16",),
    "sme": ("hw.optional.arm.FEAT_SME",),
    "sme2": ("hw.optional.arm.FEAT_SME2",),
}
# IsProcessorFeaturePresent's numbers (winnt.h); it tells of no VNNI and no AMX.
_WINDOWS = {
    "avx2": 40,
    "avx512f": 41,
    "neon": 19,
    "dotprod": 43,
    "sve": 46,
    "sve2": 47,
    "i8mm": 66,
    "fp16": 67,
    "bf16": 68,
    "sme": 70,
    "sme2": 71,
}


@dataclass(frozen=True)
class Processor:
    """The CPU.

    `cores` are those that this process may use: its affinity and its container's share of time, rounded up; with several
    threads on a core each counts. `physical_cores` counts each once. `quota` is that share in cores, None without one.
    Caches in bytes, of one core or of the cores that share it: {"L1d": 49152, ...}.
    """

    name: str
    architecture: str
    cores: int
    physical_cores: int
    instruction_sets: tuple[str, ...]
    quota: float | None = None
    caches: Mapping[str, int] = field(default_factory=dict)


def processor(machine: Machine = HERE) -> Processor:
    """The CPU that this process runs on."""
    return _SYSTEMS.get(machine.system, _unknown)(machine)


def usable_cores(machine: Machine = HERE) -> int:
    """Cores that this process may use, never 0."""
    return processor(machine).cores


def physical_cores(machine: Machine = HERE) -> int:
    """Cores that this process may use, each counted once however many threads it runs side by side."""
    return processor(machine).physical_cores


def _unknown(machine: Machine) -> Processor:
    cores = os.cpu_count() or 1
    return Processor(machine.architecture, machine.architecture, cores, cores, ())


def _linux(machine: Machine) -> Processor:
    blocks = [fields(block) for block in machine.text("proc/cpuinfo").split("\n\n")]
    blocks = [block for block in blocks if "processor" in block] or blocks
    allowed = _allowed(machine) or range(max(len(blocks), 1))
    share = quota(machine)
    most = max(1, math.ceil(share)) if share else len(allowed)
    return Processor(
        name=_linux_name(machine, blocks),
        architecture=machine.architecture,
        cores=min(len(allowed), most),
        physical_cores=min(_distinct_cores(machine, allowed), most),
        instruction_sets=_linux_sets(blocks),
        quota=share,
        caches=_linux_caches(machine, allowed[0]),
    )


def _allowed(machine: Machine) -> Sequence[int]:
    """Numbers of the processors that this process may run on."""
    return ranges(fields(machine.text("proc/self/status")).get("Cpus_allowed_list", ""))


def ranges(text: str) -> list[int]:
    """Numbers of a list as the kernel writes it: "0-2,8" is [0, 1, 2, 8]; what is no number is left out."""
    pairs = [part.partition("-") for part in text.split(",")]
    ends = [(number(low), number(high if dash else low)) for low, dash, high in pairs]
    held = [range(low, high + 1) for low, high in ends if low is not None and high is not None and high - low < 1 << 16]
    return [each for one in held for each in one]


def quota(machine: Machine = HERE) -> float | None:
    """The share of time that a container has, in cores; None where nothing limits it (control groups, versions 1 and 2)."""
    paths = [line.split(":", 2) for line in machine.text("proc/self/cgroup").splitlines() if line.count(":") >= 2]
    folders = {"sys/fs/cgroup", "sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"}
    for _, controllers, path in paths:
        above = [str(folder).strip("/") for folder in (PurePosixPath(path), *PurePosixPath(path).parents)]
        top = f"sys/fs/cgroup/{controllers}".rstrip("/")
        folders |= {f"{top}/{folder}".rstrip("/") for folder in above if ".." not in folder}
    shares = [share for folder in folders for share in _shares(machine, folder)]
    return min(shares, default=None)


def _shares(machine: Machine, folder: str) -> list[float]:
    """Microseconds of work in every period, as a share of one core."""
    pairs = [
        [*machine.text(f"{folder}/cpu.max").split(), "", ""][:2],
        [machine.text(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")],
    ]
    held = [(number(work), number(period)) for work, period in pairs]
    return [work / period for work, period in held if work and period and work > 0 and period > 0]


def _distinct_cores(machine: Machine, allowed: Sequence[int]) -> int:
    names = ("core_cpus_list", "thread_siblings_list")
    folders = [f"sys/devices/system/cpu/cpu{each}/topology" for each in allowed]
    cores = [next(filter(None, (machine.text(f"{folder}/{name}") for name in names)), "") for folder in folders]
    return len(set(cores)) if all(cores) else len(allowed)


def _linux_sets(blocks: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The instruction sets that every core has."""
    flags = [set(block.get("flags", block.get("Features", "")).split()) for block in blocks]
    common = set.intersection(*flags) if flags else set()
    known = ARM if any("Features" in block for block in blocks) else X86
    return tuple(name for name, flag in known.items() if flag in common)


def _linux_name(machine: Machine, blocks: Sequence[Mapping[str, str]]) -> str:
    """The model's name, or on ARM the board's and how many there are of each core."""
    if name := next((block["model name"] for block in blocks if block.get("model name")), ""):
        return name
    board = machine.text("proc/device-tree/model") or machine.text("sys/class/dmi/id/product_name")
    found = [_part(block) for block in blocks if "CPU part" in block]
    counted = [f"{found.count(part)} x {part}" for part in dict.fromkeys(found)]
    return ", ".join(filter(None, (board, *counted))) or machine.architecture


def _part(block: Mapping[str, str]) -> str:
    implementer, part = (number(block.get(name, "")) for name in ("CPU implementer", "CPU part"))
    known = PARTS.get(implementer or 0, {}).get(part or 0)
    return known or f"ARM {block.get('CPU implementer', '?')}:{block.get('CPU part', '?')}"


def _linux_caches(machine: Machine, cpu: int) -> dict[str, int]:
    caches = {}
    for folder in machine.folders(f"sys/devices/system/cpu/cpu{cpu}/cache", "index*"):
        level, kind, size = (machine.text(folder / name) for name in ("level", "type", "size"))
        scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        held = number(size.rstrip("KM"))
        if held and level in {"1", "2", "3", "4"} and kind in {"Data", "Unified"}:
            caches[f"L{level}{'d' if kind == 'Data' else ''}"] = held * scale
    return caches


def _mac(machine: Machine) -> Processor:
    told = fields(machine.ask(("sysctl", "machdep.cpu", "hw")))
    sets = _apple_sets(told) if machine.architecture == "arm64" else _intel_mac_sets(told)
    cores = number(told.get("hw.logicalcpu", "")) or os.cpu_count() or 1
    names = {"L1d": ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize"), "L3": ("hw.l3cachesize",)}
    names["L2"] = ("hw.perflevel0.l2cachesize", "hw.l2cachesize")
    caches = {level: next(filter(None, (number(told.get(name, "")) for name in of)), 0) for level, of in names.items()}
    return Processor(
        name=told.get("machdep.cpu.brand_string") or machine.architecture,
        architecture=machine.architecture,
        cores=cores,
        physical_cores=number(told.get("hw.physicalcpu", "")) or cores,
        instruction_sets=sets,
        caches={level: size for level, size in sorted(caches.items()) if size},
    )


def _apple_sets(told: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, keys in _APPLE.items() if any(told.get(key) == "1" for key in keys))


def _intel_mac_sets(told: Mapping[str, str]) -> tuple[str, ...]:
    names = set(" ".join(told.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features")).split())
    held = {ours for theirs, ours in _INTEL_MAC.items() if theirs in names}
    return tuple(name for name in X86 if name in held)


def _windows(machine: Machine) -> Processor:
    key = r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    lines = [line.split("REG_SZ", 1) for line in machine.ask(("reg", "query", key)).splitlines() if "REG_SZ" in line]
    told = {name.strip(): value.strip() for name, value in lines}
    kernel = machine.library("kernel32.dll")
    sets = [name for name, index in _WINDOWS.items() if kernel and kernel.IsProcessorFeaturePresent(index)]
    cores = os.cpu_count() or 1
    return Processor(
        name=told.get("ProcessorNameString") or machine.architecture,
        architecture=machine.architecture,
        cores=cores,
        physical_cores=cores,
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in sets),
    )


_SYSTEMS: Mapping[str, Callable[[Machine], Processor]] = {"Linux": _linux, "Darwin": _mac, "Windows": _windows}
