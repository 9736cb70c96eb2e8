"""Facts of this machine, against psutil."""

import copy
from pathlib import Path
from time import perf_counter

import psutil
import pytest
from ossicle.runtimes import llamacpp, openvino_devices
from ossicle.runtimes.bandwidth import read_bandwidth
from ossicle.runtimes.device import doctor
from ossicle.runtimes.processor import physical_cores, processor, usable_cores
from ossicle.runtimes.refusal import Refusal
from ossicle.targets import memory
from ossicle.targets.memory import peak_memory
from ossicle.tests.runtimes import fake_machines


def test_facts_of_the_machine() -> None:
    facts = doctor()
    assert facts.memory == psutil.virtual_memory().total
    assert facts.memory_available == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert facts.processor.cores == usable_cores() == len(psutil.Process().cpu_affinity())
    assert facts.processor.name


def test_every_runtime_is_told_of() -> None:
    facts = {runtime.name: runtime for runtime in doctor().runtimes}
    assert facts["onnxruntime"].target == "onnx"
    assert facts["onnxruntime"].reason is None
    assert facts["onnxruntime"].version
    assert facts["llamacpp"].version == llamacpp.PINNED
    assert [name for name, runtime in facts.items() if runtime.inexact] == ["llamacpp-mtmd"]


def test_cores_that_run_two_threads_are_counted_once() -> None:
    assert 1 <= physical_cores() <= usable_cores()
    if len(psutil.Process().cpu_affinity()) == psutil.cpu_count():
        assert physical_cores() == psutil.cpu_count(logical=False)


def test_peak_memory_is_at_least_what_is_held_now() -> None:
    assert peak_memory() >= psutil.Process().memory_info().rss * 0.9


def test_memory_is_read_at_a_speed_that_is_measured_in_no_time() -> None:
    started = perf_counter()
    found = read_bandwidth(processor())
    assert perf_counter() - started < 30  # half a second where nobody else computes
    assert found is not None
    assert 5e8 < found < 5e12
    assert doctor().bandwidth is None


def test_too_little_memory_tells_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    assert read_bandwidth(processor()) is None


def test_openvino_tells_of_each_device() -> None:
    (facts,) = (runtime for runtime in doctor().runtimes if runtime.name == "openvino")
    assert (facts.providers["cpu"], facts.providers["auto"]) == (None, None)
    assert list(facts.providers) == ["cpu", "gpu", "npu", "auto"]


@pytest.mark.parametrize(
    ("files", "device", "missing"),
    [
        (fake_machines.GRACE, "npu", "device"),
        (fake_machines.EPYC, "gpu", "device"),
        (fake_machines.CORE_ULTRA, "gpu", "driver"),  # the kernel's is there, OpenVINO's is not
        (fake_machines.CORE_ULTRA, "npu", "driver"),
        (fake_machines.CORE_ULTRA, "cpu", "package"),
    ],
)
def test_what_openvino_lacks(tmp_path: Path, files: dict[str, str], device: str, missing: str) -> None:
    found = openvino_devices.refusal(device, fake_machines.linux(tmp_path, files))
    assert found.missing == missing
    assert missing != "driver" or "github.com/intel" in found


def test_a_refusal_is_a_text_that_knows_more() -> None:
    found = copy.deepcopy(Refusal("package x is not installed. Install it with", "package", "pip install x"))
    assert found == "package x is not installed. Install it with: pip install x"
    assert (found.missing, found.command) == ("package", "pip install x")
