"""Sessions of ONNX Runtime: one graph opened on a provider, and its failures as ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..targets.contract import EngineError
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
    chosen = [(provider.engine, dict(provider.options))]
    if provider is not CPU:
        chosen.append((CPU.engine, {}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as reason:
        raise EngineError(
            f"engine 'onnxruntime' {onnxruntime.__version__} refuses '{path}': {reason}. "
            "Check the bundle with: ossicle inspect BUNDLE"
        ) from reason
