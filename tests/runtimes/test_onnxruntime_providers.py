"""Execution providers: what each is told, why one cannot be had, and caches on a device.

No device is here. A provider is stood in for by an onnxruntime whose sessions run on the CPU and whose device memory is this
machine's, so that every binding, address and copy is real.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real
import pytest
from ossicle.runtimes import onnxruntime
from ossicle.runtimes import refusal as refusals
from ossicle.runtimes.accelerators import Accelerator
from ossicle.runtimes.base import Engine
from ossicle.runtimes.onnxruntime_providers import PROVIDERS
from ossicle.runtimes.options import Options
from ossicle.runtimes.refusal import Refusal
from ossicle.targets.contract import EngineError
from ossicle.tests.runtimes.tiny_onnx import VOCABULARY, Form, Weights, reference, weights, write_onnx_bundle

ELSEWHERE = [name for name in PROVIDERS if name != "cpu"]


class Session:
    """A session that says it is on a provider and runs on the CPU."""

    started: bool = True
    opened: list[tuple[Any, Any]] = []  # noqa: RUF012 - what the last test opened

    def __init__(
        self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]] | None, enable_fallback: int
    ) -> None:
        assert not enable_fallback
        type(self).opened.append((options, providers))
        named = [name for name, _ in providers or ()] + [device.ep_name for device in getattr(options, "devices", ())]
        self._providers = [name for name in named if self.started or name == "CPUExecutionProvider"]
        self._session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> "Binding":
        return Binding(self._session.io_binding())

    def run_with_iobinding(self, binding: "Binding") -> None:
        self._session.run_with_iobinding(binding.held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class Binding:
    """A binding whose devices are all this machine's memory."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def bind_input(self, name: str, device: str, number: int, *rest: Any) -> None:
        Values.seen.add(device)
        self.held.bind_input(name, "cpu", number, *rest)

    def bind_output(self, name: str, device: str = "cpu", number: int = 0, *rest: Any) -> None:
        Values.seen.add(device)
        self.held.bind_output(name, "cpu", number, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)


class Values:
    """OrtValue; what is put on a device is a copy, as it is there."""

    seen: set[str] = set()  # noqa: RUF012 - devices that something was bound on

    @staticmethod
    def ortvalue_from_numpy(array: Any, device: str = "cpu", number: int = 0) -> Any:
        del number
        return real.OrtValue.ortvalue_from_numpy(array if device == "cpu" else array.copy())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An onnxruntime that has every provider."""
    module = ModuleType("onnxruntime")
    module.__dict__.update(
        __version__="9.9",
        InferenceSession=Session,
        OrtValue=Values,
        SessionOptions=real.SessionOptions,
        get_available_providers=lambda: [one.engine for one in PROVIDERS.values()],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(Session, "started", True)
    Session.opened.clear()
    Values.seen.clear()
    return module


class Settings(real.SessionOptions):
    """SessionOptions that remember what devices they were told of, and stay on the CPU."""

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices, self.told = devices, options


class Plugins:
    """What an onnxruntime loads libraries with: those of `devices` are found, on devices of these kinds."""

    def __init__(self, devices: dict[str, list[str]]) -> None:
        self.registered: list[tuple[str, str]] = []
        self._devices = devices

    def register(self, name: str, library: str) -> None:
        if name not in self._devices:
            raise OSError(f"Failed to load\n library {library}")
        self.registered.append((name, library))

    def found(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, device=SimpleNamespace(type=SimpleNamespace(name=kind)))
            for name, _ in self.registered
            for kind in self._devices[name]
        ]


@pytest.fixture
def plugins(fake: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Plugins]]:
    """An onnxruntime with the CPU alone, and beside it the packages of providers with what they find here."""

    def plugged(**devices: list[str]) -> Plugins:
        for one in PROVIDERS.values():
            if one.package:
                (tmp_path / "packages" / one.package).mkdir(parents=True)
                code = f"def get_library_path():\n    return '/lib/{one.name}.so'\n"
                (tmp_path / "packages" / one.package / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        held = Plugins({PROVIDERS[name].engine: kinds for name, kinds in devices.items()})
        fake.__dict__.update(
            SessionOptions=Settings,
            get_available_providers=lambda: ["CPUExecutionProvider"],
            register_execution_provider_library=held.register,
            get_ep_devices=held.found,
        )
        return held

    yield plugged
    for one in PROVIDERS.values():
        sys.modules.pop(one.package, None)


@pytest.fixture(scope="module")
def model() -> Weights:
    return weights()


def opened(folder: Path, model: Weights, provider: str, form: Form = "fused", dtype: type = np.float32) -> Engine:
    return onnxruntime.RUNTIME.open(
        folder, write_onnx_bundle(folder, model, form, dtype=dtype), Options(threads=1, provider=provider)
    )


@pytest.mark.parametrize("form", ["fused", "standard"])
@pytest.mark.parametrize("provider", ["cuda", "directml", "webgpu"])
@pytest.mark.usefixtures("fake")
def test_caches_stay_on_the_device_and_numbers_are_right(
    model: Weights, provider: str, form: Form, tmp_path: Path
) -> None:
    engine = opened(tmp_path, model, provider, form)
    assert engine.name == f"onnxruntime-{provider}"
    random = np.random.default_rng(0)
    ids = [random.integers(0, VOCABULARY, length) for length in (7, 30, 300)]
    sequences = [model.embedding[one] for one in ids]
    _, state = engine.prefill(sequences)
    for rows in ([0, 1, 2], [2, 0], [1]):
        if len(rows) < 3:
            state, sequences = engine.keep(state, rows), [sequences[row] for row in rows]
        tokens = random.integers(0, VOCABULARY, len(rows))
        sequences = [np.vstack([one, model.embedding[[t]]]) for one, t in zip(sequences, tokens, strict=True)]
        logits, state = engine.step(state, tokens)
        expected = np.stack([reference(model, one)[-1] for one in sequences])
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert PROVIDERS[provider].memory in Values.seen


@pytest.mark.usefixtures("fake")
def test_a_cache_on_a_device_grows_and_is_of_the_graphs_type(model: Weights, tmp_path: Path) -> None:
    engine = opened(tmp_path, model, "cuda", dtype=np.float16)
    prompt = model.embedding[np.arange(5)]
    _, state = engine.prefill([prompt])
    assert "float16" in state.cache.values[0].data_type()
    longer = model.embedding[np.arange(400)]
    logits, state = engine.extend(state, longer)
    assert state.cache.width > 405
    expected = reference(model, np.vstack([prompt, longer]))[-1]
    assert np.abs(logits[0] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("provider", ELSEWHERE)
@pytest.mark.usefixtures("fake")
def test_each_provider_is_told_its_options_and_stands_before_the_cpu(
    model: Weights, provider: str, tmp_path: Path
) -> None:
    opened(tmp_path, model, provider)
    told = [providers for _, providers in Session.opened]
    one = PROVIDERS[provider]
    assert told == [[(one.engine, one.options), ("CPUExecutionProvider", {})], [("CPUExecutionProvider", {})], told[0]]
    settings = Session.opened[0][0]
    assert {name: getattr(settings, name) for name in one.session} == one.session


@pytest.mark.usefixtures("fake")
def test_a_provider_that_did_not_start_is_an_error(
    model: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "started", False)
    with pytest.raises(EngineError, match=r"provider 'cuda' of engine 'onnxruntime' did not start .*ossicle doctor"):
        opened(tmp_path, model, "cuda")


@pytest.mark.parametrize("provider", ELSEWHERE)
def test_a_provider_that_is_not_here_says_what_brings_it(model: Weights, provider: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"provider '{provider}' .* built without .*: {PROVIDERS[provider].install}"):
        opened(tmp_path, model, provider)


def test_every_provider_is_told_of_with_its_reason() -> None:
    states = onnxruntime.RUNTIME.providers()
    assert states["cpu"] is None
    assert list(states) == list(PROVIDERS)
    assert all(states[name] for name in ELSEWHERE)


NVIDIA = Accelerator("gpu", "nvidia", "NVIDIA L4", driver="580.65", capability="8.9")
UNDRIVEN = Accelerator("gpu", "nvidia", "NVIDIA GA102", driver="nouveau")


@pytest.mark.parametrize(
    ("device", "cuda"), [((), ("device", "")), ((UNDRIVEN,), ("driver", "")), ((NVIDIA,), ("package", "pip install"))]
)
def test_a_missing_device_is_told_apart_from_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, device: tuple[Accelerator, ...], cuda: tuple[str, str]
) -> None:
    monkeypatch.setattr(refusals, "accelerators", lambda _: device)
    states = onnxruntime.RUNTIME.providers()
    missing, command = cuda
    assert isinstance(states["cuda"], Refusal)
    assert (states["cuda"].missing, states["cuda"].command[:11]) == (missing, command)
    assert getattr(states["openvino"], "command", "") == "pip install onnxruntime-openvino"
    assert getattr(states["directml"], "missing", "") == "system"


def test_a_device_that_is_missing_refuses_a_provider_that_was_not_named(
    fake: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fake.get_available_providers()
    monkeypatch.setattr(refusals, "accelerators", lambda _: ())
    assert "there is no NVIDIA GPU here" in (onnxruntime.RUNTIME.providers()["cuda"] or "")
    monkeypatch.setattr(refusals, "accelerators", lambda _: (NVIDIA,))
    assert onnxruntime.RUNTIME.providers()["cuda"] is None


@pytest.mark.parametrize("provider", ["webgpu", "nvtensorrtrtx"])
def test_a_providers_package_is_registered_once_and_opened_on_its_first_device(
    model: Weights, plugins: Callable[..., Plugins], provider: str, tmp_path: Path
) -> None:
    held = plugins(**{provider: ["GPU", "GPU"]})
    engine = opened(tmp_path, model, provider)
    one = PROVIDERS[provider]
    assert held.registered == [(one.engine, f"/lib/{provider}.so")]
    settings, providers = Session.opened[0]
    assert [device.ep_name for device in settings.devices] == [one.engine]
    assert (providers, settings.told) == (None, one.options)
    assert Session.opened[1][1] == [("CPUExecutionProvider", {})]
    prompt = model.embedding[np.arange(5)]
    logits, _ = engine.prefill([prompt])
    np.testing.assert_allclose(logits[0], reference(model, prompt)[-1], atol=1e-4, rtol=0)


def test_what_a_providers_package_lacks_is_its_reason(plugins: Callable[..., Plugins]) -> None:
    held = plugins(webgpu=[], qnn=["CPU"])
    states = onnxruntime.RUNTIME.providers()
    assert "package onnxruntime_ep_webgpu finds no device here. " in (states["webgpu"] or "")
    assert "package onnxruntime_qnn finds no NPU here (it has: CPU)" in (states["qnn"] or "")
    assert "Failed to load library /lib/nvtensorrtrtx.so" in (states["nvtensorrtrtx"] or "")
    assert onnxruntime.RUNTIME.providers() == states
    assert len(held.registered) == 2


def test_a_package_without_its_library_is_a_reason(plugins: Callable[..., Plugins], tmp_path: Path) -> None:
    plugins(webgpu=["GPU"])
    (tmp_path / "packages" / "onnxruntime_ep_webgpu" / "__init__.py").write_text("raise OSError('no loader')")
    assert (onnxruntime.RUNTIME.providers()["webgpu"] or "").endswith("onnxruntime_ep_webgpu: no loader")


def test_a_session_that_a_package_refuses_names_the_provider(
    model: Weights, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugins(qnn=["NPU"])

    def refuse(*_: Any) -> None:
        raise RuntimeError("soc_model is not specified")

    monkeypatch.setattr(Settings, "add_provider_for_devices", refuse)
    with pytest.raises(EngineError, match=r"refuses '.*' on provider 'qnn': soc_model is not specified"):
        opened(tmp_path, model, "qnn")
