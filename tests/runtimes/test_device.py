"""Facts of this machine, against psutil."""

import psutil
import pytest
from ossicle.runtimes import llamacpp
from ossicle.runtimes.device import doctor
from ossicle.runtimes.processor import physical_cores, usable_cores
from ossicle.targets.memory import peak_memory


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
