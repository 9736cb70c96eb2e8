"""Facts of machines that are not here, from their files, their commands and their libraries, and of broken ones."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ossicle.runtimes.accelerators import Accelerator, accelerators
from ossicle.runtimes.machine import Machine
from ossicle.runtimes.processor import processor, ranges
from ossicle.runtimes.refusal import Device, lacking
from ossicle.runtimes.working_memory import working_memory
from ossicle.tests.runtimes import fake_machines as fake
from ossicle.tests.runtimes.fake_machines import Kernel32, Nvml, asked, linux

L40S = ("NVIDIA L40S", 48 << 30, (8, 9))
GB10 = ("NVIDIA GB10", None, (12, 1))


def mac(answers: dict[str, str], architecture: str = "arm64") -> Machine:
    return Machine("Darwin", architecture, Path("/nowhere"), asked(answers), lambda _: None)


def windows(answers: dict[str, str], features: set[int], architecture: str = "ARM64") -> Machine:
    libraries = {"kernel32.dll": Kernel32(features)}
    return Machine("Windows", architecture, Path("/nowhere"), asked(answers), libraries.get)


def test_a_xeon_in_a_container(tmp_path: Path) -> None:
    machine = linux(tmp_path, fake.XEON)
    found = processor(machine)
    assert found.name == "Intel(R) Xeon(R) Platinum 8480+"
    assert (found.quota, found.cores, found.physical_cores) == (3.5, 4, 4)
    assert {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"} <= set(found.instruction_sets)
    assert found.caches == {"L1d": 48 << 10, "L2": 2 << 20, "L3": 32 << 20}
    assert working_memory(machine) == (3 << 30, 2 << 30)


def test_affinity_counts_each_core_once(tmp_path: Path) -> None:
    files = {name: text for name, text in fake.XEON.items() if not name.endswith("cpu.max")}
    found = processor(linux(tmp_path, files | {"proc/self/status": "Cpus_allowed_list:\t0-4,8\n"}))
    assert (found.cores, found.physical_cores, found.quota) == (6, 4, None)


def test_nvidia_gpus_are_told_by_their_driver(tmp_path: Path) -> None:
    library = Nvml([L40S, GB10])
    expected = (
        Accelerator("gpu", "nvidia", "NVIDIA L40S", "580.65.06", 48 << 30, "8.9"),
        Accelerator("gpu", "nvidia", "NVIDIA GB10", "580.65.06", None, "12.1"),
    )
    assert accelerators(linux(tmp_path, fake.XEON, nvml=library)) == expected
    assert library.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize("name", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"])
@pytest.mark.parametrize("how", ["fails", "lacks"])
def test_a_library_of_nvidia_that_does_not_answer_leaves_what_the_bus_says(tmp_path: Path, name: str, how: str) -> None:
    (found,) = accelerators(linux(tmp_path, fake.XEON, nvml=Nvml([L40S], **{how: frozenset({name})})))
    assert found == Accelerator("gpu", "nvidia", "NVIDIA 26b9", "nvidia")


@pytest.mark.parametrize("name", ["nvmlSystemGetDriverVersion", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"])
def test_one_fact_of_nvidia_that_is_missing_leaves_the_others(tmp_path: Path, name: str) -> None:
    (found,) = accelerators(linux(tmp_path, fake.XEON, nvml=Nvml([L40S], fails=frozenset({name}))))
    assert (found.vendor, found.capability) == ("nvidia", "8.9")
    assert found.driver


def test_an_epyc_with_an_accelerator_and_a_gpu_without_its_driver(tmp_path: Path) -> None:
    machine = linux(tmp_path, fake.EPYC)
    found = processor(machine)
    assert (found.quota, found.cores) == (2.5, 3)
    assert "avx512_bf16" in found.instruction_sets
    assert not {"amx_int8", "avx512_fp16"} & set(found.instruction_sets)
    assert working_memory(machine) == (8 << 30, 4 << 30)
    assert accelerators(machine) == (
        Accelerator("gpu", "amd", "AMD Aqua Vanjaram [Instinct MI300X]", "amdgpu", 192 << 30),
        Accelerator("gpu", "nvidia", "NVIDIA GA102 [GeForce RTX 3090]", "nouveau"),
    )


def test_a_core_ultra_has_a_gpu_and_an_npu(tmp_path: Path) -> None:
    machine = linux(tmp_path, fake.CORE_ULTRA)
    assert processor(machine).instruction_sets == ("f16c", "fma", "avx2", "avx_vnni")
    assert accelerators(machine) == (
        Accelerator("gpu", "intel", "Intel Meteor Lake-P [Intel Arc Graphics]", "i915"),
        Accelerator("npu", "intel", "Intel Meteor Lake NPU", "intel_vpu 1.0.0"),
    )


def test_a_raspberry_pi(tmp_path: Path) -> None:
    machine = linux(tmp_path, fake.RASPBERRY_PI_5, "aarch64")
    found = processor(machine)
    assert found.name == "Raspberry Pi 5 Model B Rev 1.0, 4 x Cortex-A76"
    assert found.instruction_sets == ("neon", "fp16", "dotprod")
    assert accelerators(machine) == (Accelerator("gpu", "broadcom", "brcm,2712-v3d", "v3d"),)


def test_a_grace(tmp_path: Path) -> None:
    found = processor(linux(tmp_path, fake.GRACE, "aarch64"))
    assert (found.name, found.cores) == ("72 x Neoverse-V2", 72)
    assert found.instruction_sets == ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2")


def test_a_snapdragon(tmp_path: Path) -> None:
    machine = linux(tmp_path, fake.SNAPDRAGON_X, "aarch64")
    assert processor(machine).name == "ThinkPad T14s Gen 6, 12 x Oryon"
    assert [(one.kind, one.vendor) for one in accelerators(machine)] == [("gpu", "qualcomm"), ("npu", "qualcomm")]
    assert lacking("qualcomm", machine) is None


def test_a_mac() -> None:
    machine = mac(fake.MAC)
    found = processor(machine)
    assert (found.name, found.cores, found.physical_cores) == ("Apple M4 Pro", 14, 14)
    assert found.instruction_sets == ("neon", "fp16", "dotprod", "i8mm", "bf16", "sme", "sme2")
    assert found.caches == {"L1d": 131072, "L2": 16777216}
    assert working_memory(machine) == (48 << 30, 330000 * 16384)
    assert [(one.kind, one.name) for one in accelerators(machine)] == [
        ("gpu", "Apple M4 Pro"),
        ("npu", "Apple Neural Engine"),
    ]


def test_a_mac_of_intel() -> None:
    told = "machdep.cpu.features: SSE4.2 AVX1.0 FMA F16C\nmachdep.cpu.leaf7_features: BMI2 AVX2 AVX512F\n"
    found = processor(mac({"sysctl machdep.cpu hw": told}, "x86_64"))
    assert found.instruction_sets == ("f16c", "fma", "avx2", "avx512f")


def test_windows() -> None:
    answers = {"reg": fake.REGISTRY, "powershell": json.dumps(fake.SEEN_BY_WINDOWS)}
    machine = windows(answers, {19, 43, 66, 67, 68})
    found = processor(machine)
    assert found.name.startswith("Snapdragon(R) X Elite")
    assert found.instruction_sets == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    assert working_memory(machine) == (32 << 30, 20 << 30)
    assert [(one.kind, one.vendor, one.driver, one.memory) for one in accelerators(machine)] == [
        ("gpu", "nvidia", "32.0.15.8142", None),
        ("gpu", "qualcomm", "31.0.96", None),
        ("npu", "intel", "32.0.100", None),
    ]


@pytest.mark.parametrize(
    ("files", "device", "missing"),
    [
        (fake.EPYC, "nvidia", "driver"),
        (fake.EPYC, "intel gpu", "device"),
        (fake.EPYC, "gpu", None),
        (fake.CORE_ULTRA, "intel npu", None),
        (fake.CORE_ULTRA, "nvidia", "device"),
        (fake.CORE_ULTRA, "Darwin", "system"),
        (fake.GRACE, "gpu", "device"),
        (fake.GRACE, "", None),
    ],
)
def test_what_is_missing(tmp_path: Path, files: dict[str, str], device: Device, missing: str | None) -> None:
    assert getattr(lacking(device, linux(tmp_path, files)), "missing", None) == missing


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-2,8", [0, 1, 2, 8]), ("3", [3]), ("", []), ("x-2,4-,5-3", []), ("0-99999999", [])]
)
def test_a_list_of_numbers(text: str, numbers: list[int]) -> None:
    assert ranges(text) == numbers


ALL = {**fake.XEON, **fake.EPYC, **fake.CORE_ULTRA, **fake.RASPBERRY_PI_5, **fake.SNAPDRAGON_X}
PATHS = sorted(path for path in ALL if "cpu1" not in path)
BINARY = st.binary(max_size=64).map(lambda held: held.decode("utf-8", "surrogateescape"))
NONE = ("", "-1", "0", "0-", "9" * 40, "9" * 5000, "0x", "²", "max max", "0 0", "K", ":", "\0")
NUMBERS = st.sampled_from([*NONE, "DRIVER=a\0b", "0::/a\0b", "1:2:/../.."])
WRONG = st.one_of(NUMBERS, BINARY, st.text(max_size=64))


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_garbage_in_files_never_raises(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    broken = data.draw(st.dictionaries(st.sampled_from(PATHS), WRONG, min_size=1, max_size=12))
    cut = {path: text[: data.draw(st.integers(0, 40))] for path, text in ALL.items() if path in PATHS[::7]}
    machine = linux(tmp_path_factory.mktemp("root"), ALL | cut | broken, nvml=Nvml([]))
    assert processor(machine).cores >= 1
    assert all(one.name for one in accelerators(machine))
    total, available = working_memory(machine)
    assert (total or 0) >= 0 <= (available or 0)


@given(st.one_of(WRONG, st.recursive(st.none() | st.integers() | WRONG, st.lists).map(json.dumps)), st.data())
def test_garbage_from_commands_never_raises(text: str, data: st.DataObject) -> None:
    listed = st.dictionaries(st.sampled_from(["Name", "PNPDeviceID", "AdapterRAM", "sppci_model"]), st.none() | WRONG)
    rows = json.dumps({name: [data.draw(listed)] for name in ("gpu", "npu", "SPDisplaysDataType")})
    for answer in (text, rows):
        for machine in (mac(dict.fromkeys(fake.MAC, answer)), windows({"reg": answer, "powershell": answer}, set())):
            assert processor(machine).cores >= 1
            assert all(one.name for one in accelerators(machine))
            working_memory(machine)


def test_folders_where_files_should_be_and_nothing_at_all(tmp_path: Path) -> None:
    for path in (
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/self/status",
        "sys/bus/pci/devices/x/vendor",
        "usr/share/pci.ids",
    ):
        (tmp_path / path).mkdir(parents=True)
    for root in (tmp_path, tmp_path / "empty"):
        machine = Machine("Linux", "riscv64", root, lambda _: "", lambda _: None)
        assert (processor(machine).name, processor(machine).cores) == ("riscv64", 1)
        assert accelerators(machine) == ()
        assert working_memory(machine) == (None, None)


def test_a_system_that_nobody_knows() -> None:
    machine = Machine("Plan9", "amd64", Path("/nowhere"), lambda _: "", lambda _: None)
    assert processor(machine).cores == os.cpu_count()
    assert accelerators(machine) == ()


@pytest.mark.parametrize("text", ["DRIVER=a\0b\n", "3:cpu:/a\0b\n", "9" * 40, "-3", "²"])
def test_what_looks_like_a_fact_and_is_none(tmp_path: Path, text: str) -> None:
    device = "sys/bus/pci/devices/0000:41:00.0"
    broken = {f"{device}/uevent": text, f"{device}/mem_info_vram_total": text, "proc/self/cgroup": text}
    limits = dict.fromkeys(("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"), text)
    machine = linux(tmp_path, fake.EPYC | broken | limits)
    assert processor(machine).cores == 3
    assert accelerators(machine)[0] == Accelerator("gpu", "amd", accelerators(machine)[0].name, driver_of(text))
    assert working_memory(machine) == (8 << 30, 4 << 30)


def driver_of(text: str) -> str | None:
    return text.removeprefix("DRIVER=").strip() if text.startswith("DRIVER=") else None
