"""Sessions of ONNX Runtime: one graph opened on a provider, and its failures as ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..targets.contract import EngineError
from . import onnxruntime_plugins as plugins
from .onnxruntime_providers import CPU, Provider


def open_session(path: Path, threads: int, provider: Provider = CPU, entries: Mapping[str, str] | None = None) -> Any:
    """The session of a graph on a provider; what that has no kernel for runs on the CPU. `entries`: of its configuration.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or the provider did not start.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings tell of harmless choices of the graph's making
    for name, value in {**provider.entries, **(entries or {})}.items():
        options.add_session_config_entry(name, value)
    for name, value in provider.session.items():
        setattr(options, name, value)
    session = _created(onnxruntime, path, options, provider)
    if provider.engine not in session.get_providers():
        raise EngineError(
            f"provider '{provider.name}' of engine 'onnxruntime' did not start for '{path}': its libraries or its device are "
            "missing (ONNX Runtime said which, on standard error). See what this machine has: ossicle doctor"
        )
    return session


def engine_call(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of ONNX Runtime gives back.

    Raises:
        EngineError: it failed, with the reason.
    """
    # The exceptions of onnxruntime have no base of their own but Exception.
    try:
        return call(*arguments)
    except Exception as reason:
        raise EngineError(f"engine 'onnxruntime' failed: {reason}") from reason


def _created(onnxruntime: Any, path: Path, options: Any, provider: Provider) -> Any:
    chosen: list[tuple[str, dict[str, str]]] = [(provider.engine, dict(provider.options))]
    if provider is not CPU:
        chosen.append((CPU.engine, {}))
    try:
        if plugins.is_installed(provider.package):
            device = plugins.devices(provider.engine, provider.hardware)[:1]  # WebGPU takes one, and one is all we feed
            options.add_provider_for_devices(device, dict(provider.options))
            chosen = []
        # The fall back to the CPU would print the reason and go on without the provider.
        return onnxruntime.InferenceSession(str(path), options, providers=chosen or None, enable_fallback=0)
    except Exception as reason:
        raise EngineError(
            f"engine 'onnxruntime' {onnxruntime.__version__} refuses '{path}'{_on(provider)}: {reason}. "
            "Check the bundle with: ossicle inspect BUNDLE"
        ) from reason


def _on(provider: Provider) -> str:
    return "" if provider is CPU else f" on provider '{provider.name}'"
