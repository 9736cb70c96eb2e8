"""Forecasts: each number of docs/plan.md, and what this machine is taken for."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ossicle
import pytest
from ossicle.benchmarks.checkpoints import MINI_3B
from ossicle.cli import here
from ossicle.compiler.families import family
from ossicle.compiler.forecast import encoder_seconds, forecast, prompt_seconds, step_seconds
from ossicle.compiler.plan import Model, plan, size
from ossicle.targets.contract import OssicleError
from ossicle.targets.devices import REACHED, USABLE, Device, device
from ossicle.targets.recipes import RECIPES

MINI = Model("mini", family("voxtral"), MINI_3B, False)
INT4 = size(MINI, "tensorrt", RECIPES["int4"], 8192)
CPU = Device("here", "a test's", "here", 64e9, 40e9, 2e11, ("onnx", "openvino", "gguf"))


def test_a_window_is_heard_and_a_hundred_tokens_are_written() -> None:
    h100 = device("h100")
    told = forecast(MINI, INT4, h100, 8192)
    prompt = 375 + 16
    assert told.encoder == encoder_seconds(MINI, INT4, h100)
    assert told.prefill == prompt_seconds(INT4, h100, prompt)
    assert told.tokens_per_second == 1 / step_seconds(INT4, h100, prompt + 50)
    assert told.first_token == told.encoder + told.prefill
    assert told.real_time_factor == pytest.approx((told.first_token + 100 / told.tokens_per_second) / 30)


def test_a_prompt_takes_as_long_as_reading_or_multiplying() -> None:
    h100 = device("h100")
    numbers = sum(one.numbers for one in INT4.matrices if one.part == "decoder")
    assert prompt_seconds(INT4, h100, 400) == pytest.approx(400 * 2 * numbers / (989e12 * 0.35))
    assert prompt_seconds(INT4, replace(h100, bandwidth=1e9), 400) == pytest.approx(INT4.decoder / 0.7e9)


@pytest.mark.parametrize(("target", "times"), [("onnx", 2.0), ("openvino", 3.9), ("gguf", 2.0)])
def test_engines_multiply_integers_faster_than_floats_on_a_cpu(target: str, times: float) -> None:
    floats, integers = (size(MINI, target, RECIPES[name], 8192) for name in ("fp32", "int8"))
    ratio = encoder_seconds(MINI, floats, CPU) / encoder_seconds(MINI, integers, CPU)
    assert ratio == pytest.approx(times)


def test_engines_reach_a_share_of_what_is_published() -> None:
    assert REACHED == {
        "gpu": (0.7, 0.35),
        "board": (0.7, 0.35),
        "cpu": (0.8, 0.4),
        "apple": (0.75, 0.45),
        "phone": (0.6, 0.3),
        "here": (1.0, 1.0),
    }
    assert USABLE == {"gpu": 0.92, "board": 0.85, "cpu": 0.85, "apple": 0.7, "phone": 0.5, "here": 0.85}
    one = device("m2-16")
    assert (one.achieved_bandwidth, one.achieved_operations) == (0.75 * one.bandwidth, 0.45 * one.operations)


def test_what_a_device_keeps_for_itself_is_not_lent() -> None:
    built = replace(device("m2-16"), memory=INT4.memory(8192) / 0.8, targets=("tensorrt",))
    assert "a model may take" in str(forecast(MINI, INT4, built, 8192).reason)
    assert forecast(MINI, INT4, replace(built, memory=INT4.memory(8192) / 0.69), 8192).reason is None


@pytest.mark.parametrize(
    ("target", "recipe", "width"),
    [("onnx", "int4", 4), ("onnx", "fp16", 2), ("openvino", "fp16", 4), ("coreml", "int4", 2), ("gguf", "fp16", 0)],
)
def test_tables_of_positions_are_as_wide_as_a_target_stores_them(target: str, recipe: str, width: int) -> None:
    short, long = (size(MINI, target, RECIPES[recipe], context) for context in (1000, 2000))
    assert long.decoder - short.decoder == 1000 * 128 * width


@pytest.mark.parametrize(
    ("target", "recipe", "width"),
    [("onnx", "fp16", 2), ("onnx", "int4", 4), ("gguf", "fp16", 4), ("coreml", "fp16", 0)],
)
def test_adapters_for_run_time_count_in_files_and_in_memory(target: str, recipe: str, width: int) -> None:
    ((without,), (held,)) = (plan(MINI, [target], [RECIPES[recipe]], numbers) for numbers in (0, 1000))
    assert held.total - without.total == held.memory(99) - without.memory(99) == 1000 * width


def _facts(bandwidth: float | None) -> Any:
    runtimes = [
        SimpleNamespace(target="onnx", reason=None, proof="executed"),
        SimpleNamespace(target="coreml", reason=None, proof="interpreted"),
        SimpleNamespace(target="openvino", reason="it is not installed", proof="executed"),
    ]
    processor = SimpleNamespace(name="a test's", cores=3)
    return SimpleNamespace(bandwidth=bandwidth, memory_available=2**30, processor=processor, runtimes=runtimes)


def test_this_machine_is_the_fastest_of_its_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, clock = iter([2e9, 7e9, 3e9, 4e9]), _clock()
    monkeypatch.setattr(ossicle, "doctor", lambda **_: _facts(next(moments)), raising=False)
    monkeypatch.setattr(here, "sleep", lambda _: None)
    monkeypatch.setattr(here, "perf_counter", lambda: next(clock))
    found = here.here()
    assert (found.bandwidth, found.memory, found.targets) == (7e9, 2**30, ("onnx",))
    assert found.operations == pytest.approx(2 * 1024**3 / 0.1)
    monkeypatch.setattr(ossicle, "doctor", lambda **_: _facts(None), raising=False)
    with pytest.raises(OssicleError, match="'here' cannot be measured"):
        here.here()


def _clock() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 0.1
