"""Facts of this machine, against psutil."""

import psutil
import pytest
from ossicle.runtimes.device import doctor, usable_cores
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


def test_peak_memory_is_at_least_what_is_held_now() -> None:
    assert peak_memory() >= psutil.Process().memory_info().rss * 0.9
