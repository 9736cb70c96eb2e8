"""Which runtimes there are, and which of them runs a bundle here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from ..targets.contract import EngineError
from ..targets.manifest import Manifest
from .base import InexactRuntime, ProvingRuntime, Runtime

# Modules beside this one that hold a RUNTIME, best first.
NAMES = ("onnxruntime", "openvino", "llamacpp", "llamacpp_mtmd", "coreml", "tensorrt")


@dataclass(frozen=True)
class Choice:
    """A runtime and why it cannot run a bundle here; `reason` None: it can."""

    runtime: Runtime
    reason: str | None


def runtimes() -> tuple[Runtime, ...]:
    """Every runtime, usable or not."""
    return tuple(import_module(f"{__package__}.{name}").RUNTIME for name in NAMES)


def choices(manifest: Manifest, candidates: Sequence[Runtime]) -> tuple[Choice, ...]:
    """What speaks against each candidate for this bundle, in their order."""
    return tuple(Choice(runtime, _refusal(manifest, runtime)) for runtime in candidates)


def select(manifest: Manifest, engine: str = "auto", candidates: Sequence[Runtime] | None = None) -> Runtime:
    """The runtime of this name, or with "auto" the first that runs the bundle here exactly and on the engine it is made for.

    Raises:
        EngineError: there is none; every refusal with its reason.
    """
    candidates = runtimes() if candidates is None else candidates
    named = [runtime for runtime in candidates if engine in ("auto", runtime.name)]
    if not named:
        possible = ", ".join(["auto", *(runtime.name for runtime in candidates)])
        raise EngineError(f"engine '{engine}' is unknown (it can be: {possible}). See them with: ossicle doctor")
    ranked = choices(manifest, named)
    if engine == "auto":
        ranked = tuple(Choice(choice.runtime, choice.reason or _unchosen(choice.runtime)) for choice in ranked)
    for choice in ranked:
        if choice.reason is None:
            return choice.runtime
    reasons = "; ".join(f"{choice.runtime.name}: {choice.reason}" for choice in ranked)
    raise EngineError(f"no engine can run bundle '{manifest.name}' here: {reasons}. See them with: ossicle doctor")


def _unchosen(runtime: Runtime) -> str | None:
    """Why nobody gets a runtime who has not asked for it by name; None where it may be chosen."""
    if isinstance(runtime, InexactRuntime):
        return f"is inexact, and only taken by name: {runtime.inexact}"
    if isinstance(runtime, ProvingRuntime) and runtime.proof != "executed":
        return f"{runtime.absent()}. What stands in for it here ({runtime.proof}) is only taken by name"
    return None


def installed(package: str) -> str | None:
    """The version of a package; None where none of this name is installed (onnxruntime-gpu brings onnxruntime)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _refusal(manifest: Manifest, runtime: Runtime) -> str | None:
    targets = sorted({artifact.target for artifact in manifest.artifacts})
    if runtime.target not in targets:
        return f"the bundle has no artifacts for target {runtime.target} (it has: {', '.join(targets) or 'none'})"
    if not any((artifact.target, artifact.stage) == (runtime.target, "decoder") for artifact in manifest.artifacts):
        return f"the bundle's artifacts for target {runtime.target} are an audio encoder alone, which serves another engine"
    return runtime.usable() or _too_old(manifest, runtime)


def _too_old(manifest: Manifest, runtime: Runtime) -> str | None:
    for artifact in manifest.artifacts:
        package, wanted = artifact.requirements.get("engine"), artifact.requirements.get("version", "")
        if artifact.target != runtime.target or not package or not wanted.startswith(">="):
            continue
        found = installed(package)
        if found and _numbers(found) < _numbers(wanted):
            return (
                f"{package} {found} is installed and '{artifact.stage}' needs {wanted}. "
                f'Upgrade it with: pip install --upgrade "{package}{wanted}"'
            )
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a release: (1, 24) of ">=1.24"."""
    release = re.search(r"\d+(\.\d+)*", text)
    return tuple(map(int, release.group().split("."))) if release else ()
