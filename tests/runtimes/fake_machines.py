# ruff: noqa: N802 - functions are named as the libraries name them
"""Machines that are not here: the files, commands and libraries that facts are read from, in the layouts of real ones."""

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossicle.runtimes.machine import Machine

SAPPHIRE_RAPIDS = (
    "fpu vme sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c avx2 bmi2 avx512f avx512dq avx512bw avx512vl "
    "avx_vnni avx512_bf16 avx512vbmi avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8"
)
ZEN5 = "fpu sse2 fma f16c avx avx2 avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni"
METEOR_LAKE = "fpu sse2 fma f16c avx avx2 avx_vnni"
CORTEX_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
NEOVERSE_V2 = f"{CORTEX_A76} sve sve2 svebf16 i8mm bf16 sb paca"
ORYON = f"{CORTEX_A76} i8mm bf16 sb paca"

PCI_IDS = """# names of devices
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t74a1  Aqua Vanjaram [Instinct MI300X]
8086  Intel Corporation
\t7d1d  Meteor Lake NPU
\t7d55  Meteor Lake-P [Intel Arc Graphics]
\t\t1043 1ef3  Zenbook 14
10de  NVIDIA Corporation
\t2204  GA102 [GeForce RTX 3090]
C 03  Display controller
"""


def x86(model: str, flags: str, threads: int, *, per_core: int = 1) -> dict[str, str]:
    """The files of an x86 processor under Linux."""
    blocks = [
        f"processor\t: {cpu}\nvendor_id\t: x\nmodel name\t: {model}\nflags\t\t: {flags}\nbugs\t\t: amx_int8\n"
        for cpu in range(threads)
    ]
    return {"proc/cpuinfo": "\n".join(blocks), **topology(threads, per_core), **memory(threads)}


def arm(features: str, cores: Sequence[tuple[int, int]], **files: str) -> dict[str, str]:
    """The files of an ARM processor under Linux; of each core the implementer and the part."""
    blocks = [
        f"processor\t: {cpu}\nFeatures\t: {features}\nCPU implementer\t: {implementer:#04x}\nCPU part\t: {part:#05x}\n"
        for cpu, (implementer, part) in enumerate(cores)
    ]
    return {"proc/cpuinfo": "\n".join(blocks), **topology(len(cores), 1), **memory(len(cores)), **files}


def topology(threads: int, per_core: int) -> dict[str, str]:
    """Threads of a core are numbered one after the other; every core has caches of its own."""
    cpus = "sys/devices/system/cpu/cpu"
    shared = [f"{cpu - cpu % per_core}-{cpu - cpu % per_core + per_core - 1}" for cpu in range(threads)]
    files = {f"{cpus}{cpu}/topology/thread_siblings_list": f"{text}\n" for cpu, text in enumerate(shared)}
    caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "32M")]
    for index, cache in enumerate(caches):
        for name, text in zip(("level", "type", "size"), cache, strict=True):
            files[f"{cpus}0/cache/index{index}/{name}"] = f"{text}\n"
    return {**files, "proc/self/status": f"Name:\tpython\nCpus_allowed_list:\t0-{threads - 1}\n"}


def memory(gigabytes: int) -> dict[str, str]:
    return {"proc/meminfo": f"MemTotal:  {gigabytes << 20} kB\nMemFree: 1 kB\nMemAvailable: {gigabytes << 19} kB\n"}


def pci(slot: str, identity: str, device_class: str, driver: str = "", **files: str) -> dict[str, str]:
    """A device on the bus, by vendor:device."""
    vendor, device = identity.split(":")
    folder = f"sys/bus/pci/devices/0000:{slot}"
    bound = f"DRIVER={driver}\n" if driver else ""
    uevent = f"{bound}PCI_CLASS={device_class}\nPCI_ID={identity.upper()}\nMODALIAS=pci:v0000{vendor}\n"
    held = {"vendor": f"0x{vendor}\n", "device": f"0x{device}\n", "class": f"0x{device_class}\n", "uevent": uevent}
    return {f"{folder}/{name}": text for name, text in (held | files).items()}


XEON = {
    **x86("Intel(R) Xeon(R) Platinum 8480+", SAPPHIRE_RAPIDS, 16, per_core=2),
    **pci("02:00.0", "1a03:2000", "030000", "ast"),  # the display of its board controller
    **pci("6a:00.0", "8086:0b25", "088000", "idxd"),
    **pci("ca:00.0", "10de:26b9", "030200", "nvidia"),
    "proc/self/status": "Cpus_allowed_list:\t0-11\n",
    "proc/self/cgroup": "0::/pods/pod7\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
    "sys/fs/cgroup/pods/cpu.max": "350000 100000\n",
    "sys/fs/cgroup/pods/memory.max": f"{3 << 30}\n",
    "sys/fs/cgroup/pods/memory.current": f"{1 << 30}\n",
}
EPYC = {
    **x86("AMD EPYC 9755 128-Core Processor", ZEN5, 8),
    **pci("41:00.0", "1002:74a1", "120000", "amdgpu", mem_info_vram_total=f"{192 << 30}\n"),
    **pci("61:00.0", "10de:2204", "030000", "nouveau"),
    "usr/share/misc/pci.ids": PCI_IDS,
    "proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/job\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4096\n",
}
CORE_ULTRA = {
    **x86("Intel(R) Core(TM) Ultra 7 155H", METEOR_LAKE, 22),
    **pci("00:02.0", "8086:7d55", "030000", "i915"),
    **pci("00:0b.0", "8086:7d1d", "120000", "intel_vpu"),
    "usr/share/hwdata/pci.ids": PCI_IDS,
    "sys/module/intel_vpu/version": "1.0.0\n",
    "sys/class/drm/card1/device/uevent": "DRIVER=i915\nPCI_ID=8086:7D55\n",
}
RASPBERRY_PI_5 = {
    **arm(CORTEX_A76, [(0x41, 0xD0B)] * 4),
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/drm/card0/device/uevent": "DRIVER=v3d\nOF_NAME=v3d\nOF_COMPATIBLE_0=brcm,2712-v3d\n",
    "sys/class/drm/card1/device/uevent": "DRIVER=vc4-drm\nOF_NAME=gpu\n",
}
GRACE = arm(NEOVERSE_V2, [(0x41, 0xD4F)] * 72)
SNAPDRAGON_X = {
    **arm(ORYON, [(0x51, 0x001)] * 12),
    "sys/class/dmi/id/product_name": "ThinkPad T14s Gen 6\n",
    "sys/class/remoteproc/remoteproc0/name": "adsp\n",
    "sys/class/remoteproc/remoteproc1/name": "cdsp\n",
    "sys/class/drm/card0/device/uevent": "DRIVER=msm_dpu\nOF_COMPATIBLE_0=qcom,x1e80100-dpu\n",
}

SYSCTL_M4 = """machdep.cpu.brand_string: Apple M4 Pro
hw.logicalcpu: 14
hw.physicalcpu: 14
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 16777216
hw.l2cachesize: 4194304
hw.optional.arm64: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 1
hw.optional.arm.FEAT_SME2: 1
hw.optional.arm.FEAT_SSBS: 0
"""
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100000.
Pages active:                             900000.
Pages inactive:                           200000.
Pages speculative:                         10000.
Pages purgeable:                           20000.
"""
DISPLAYS = {"SPDisplaysDataType": [{"sppci_model": "Apple M4 Pro", "sppci_cores": "20"}]}
MAC = {
    "sysctl machdep.cpu hw": SYSCTL_M4,
    "sysctl -n hw.memsize": f"{48 << 30}\n",
    "vm_stat": VM_STAT,
    "system_profiler -json SPDisplaysDataType": json.dumps(DISPLAYS),
}
REGISTRY = r"""
HKEY_LOCAL_MACHINE\HARDWARE\DESCRIPTION\System\CentralProcessor\0
    ProcessorNameString    REG_SZ    Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU
    VendorIdentifier    REG_SZ    Qualcomm Technologies Inc
"""
SEEN_BY_WINDOWS = {
    "gpu": [
        {"Name": "NVIDIA GeForce RTX 4060", "DriverVersion": "32.0.15.8142", "AdapterRAM": 4293918720}
        | {"PNPDeviceID": r"PCI\VEN_10DE&DEV_2882&SUBSYS_1"},
        {"Name": "Qualcomm(R) Adreno(TM) X1-85 GPU", "DriverVersion": "31.0.96", "PNPDeviceID": r"ACPI\QCOM0C36\0"},
        {"Name": "Microsoft Basic Display Adapter", "DriverVersion": "10", "PNPDeviceID": r"ROOT\BASICDISPLAY\0"},
    ],
    "npu": [{"Name": "Intel(R) AI Boost", "DriverVersion": "32.0.100", "PNPDeviceID": r"PCI\VEN_8086&DEV_643E"}],
}


def planted(root: Path, files: Mapping[str, str]) -> Path:
    """A root folder with these files."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


def linux(root: Path, files: Mapping[str, str], architecture: str = "x86_64", nvml: Any = None) -> Machine:
    """A machine under Linux with these files, and NVIDIA's library where there is one."""
    return Machine("Linux", architecture, planted(root, files), lambda _: "", lambda _: nvml)


def asked(answers: Mapping[str, str]) -> Callable[[Sequence[str]], str]:
    """Answers by command; "" for any other. A command with a script in it is known by its first word."""
    return lambda command: answers.get(" ".join(command)) or answers.get(command[0], "")


@dataclass
class Nvml:
    """NVIDIA's library as ctypes would load it: it writes through the pointers that it is given."""

    gpus: Sequence[tuple[str, int | None, tuple[int, int] | None]]  # name, memory, compute capability
    driver: str = "580.65.06"
    fails: frozenset[str] = frozenset()  # functions that answer with an error
    lacks: frozenset[str] = frozenset()  # functions that an older library has not
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml") or name in self.lacks:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return 999 if name in self.fails else int(getattr(self, f"_{name.removesuffix('_v2')}")(*arguments) or 0)

        return call

    def _nvmlInit(self) -> None: ...

    def _nvmlShutdown(self) -> None: ...

    def _nvmlDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.gpus)

    def _nvmlSystemGetDriverVersion(self, buffer: Any, size: ctypes.c_uint) -> None:
        assert len(self.driver) < size.value
        buffer.value = self.driver.encode()

    def _nvmlDeviceGetHandleByIndex(self, index: ctypes.c_uint, handle: Any) -> None:
        handle._obj.value = index.value + 1

    def _nvmlDeviceGetName(self, handle: ctypes.c_void_p, buffer: Any, size: ctypes.c_uint) -> None:
        del size
        buffer.value = self._of(handle)[0].encode()

    def _nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, held: Any) -> int:
        size = self._of(handle)[1]
        held._obj.total = size or 0
        return 0 if size else 3  # NVML_ERROR_NOT_SUPPORTED

    def _nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p, major: Any, minor: Any) -> int:
        capability = self._of(handle)[2]
        major._obj.value, minor._obj.value = capability or (0, 0)
        return 0 if capability else 3

    def _of(self, handle: ctypes.c_void_p) -> tuple[str, int | None, tuple[int, int] | None]:
        return self.gpus[(handle.value or 0) - 1]


class Kernel32:
    """What Windows answers of its processor and memory."""

    def __init__(self, features: set[int]) -> None:
        self._features = features

    def IsProcessorFeaturePresent(self, number: int) -> int:
        return int(number in self._features)

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert status._obj.length == 64
        status._obj.total, status._obj.available = 32 << 30, 20 << 30
        return 1
