"""Facts of a device and a bundle's manifest -> what could run each stage, ranked, each with its reason: pure functions.

What was measured on the device stands above the rank given here: runtimes/choose.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..targets.contract import Artifact, EngineError
from ..targets.manifest import Manifest
from .base import ComputingRuntime, DecoderRuntime, EncoderRuntime, Runtime, encoder_lacking
from .device import DeviceFacts, RuntimeFacts, runtime_facts
from .needs import Need, need, room, size
from .options import compute_faults
from .plans import STAGES, Placement, Stage
from .registry import runtimes, unknown

CONTEXT = (
    4096  # tokens that memory is reckoned for where nobody says how many: five minutes of audio and their transcript
)

# What a provider computes on, the faster kind first. A provider that is not here is only taken by name.
KINDS = ("nvidia", "apple", "gpu", "cpu", "npu")
DEVICES: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {"cpu": "nvidia"},
    "coreml": {"all": "apple", "cpu": "cpu"},
    "openvino": {"gpu": "gpu", "cpu": "cpu", "npu": "npu"},
    "onnxruntime": {
        "cuda": "nvidia",
        "tensorrt": "nvidia",
        "nvtensorrtrtx": "nvidia",
        "coreml": "apple",
        "directml": "gpu",
        "webgpu": "gpu",
        "cpu": "cpu",
        "qnn": "npu",
    },
}
_SAID = {
    "nvidia": "an NVIDIA GPU",
    "apple": "Apple's GPU and neural engine",
    "gpu": "a GPU",
    "cpu": "the CPU",
    "npu": "an NPU",
}
# These have float16 alone, which a recipe of float32 throughout does not allow.
_HALF = {("onnxruntime", "qnn"), ("onnxruntime", "coreml"), ("openvino", "npu")}
# On a CPU, by stage, where nothing was measured: docs/benchmarks.md has figures for x86-64.
_ON_CPU: Mapping[Stage, Sequence[str]] = {
    "encoder": ("openvino", "onnxruntime"),
    "prefill": ("onnxruntime", "openvino", "llamacpp"),
    "decoder": ("onnxruntime", "openvino", "llamacpp"),
}
_ARTIFACTS: Mapping[Stage, str] = {"encoder": "audio_encoder", "prefill": "decoder", "decoder": "decoder"}


@dataclass(frozen=True)
class Wanted:
    """What a choice is for: tokens of context, how it is computed ("": the engine's own ways), and what is tolerated."""

    context: int = CONTEXT
    kv_cache: str = ""  # the precision of keys and values
    allow_failed: bool = False  # artifacts that differ from the original by more than their recipe allows
    compute: str = ""
    widened: int = 0  # bytes that a GGUF decoder's numbers take so; 0: as they are stored


@dataclass(frozen=True)
class Candidate:
    """A placement for a stage: why it cannot be chosen (None: it can), why it ranks as it does, and what memory it takes."""

    stage: Stage
    placement: Placement
    reason: str | None
    rank: str
    need: Need


@dataclass(frozen=True)
class Choice:
    """A runtime and why it cannot run a bundle here; `reason` None: it can."""

    runtime: Runtime
    reason: str | None


def candidates(
    facts: DeviceFacts, manifest: Manifest, wanted: Wanted, known: Sequence[Runtime] | None = None
) -> tuple[Candidate, ...]:
    """What there is for each stage, in the order of stages; of a stage the best first, and what cannot be chosen last.

    Pure: it asks the machine nothing. `known` says which runtimes the facts tell of, by default every one.
    """
    kinds = {runtime.name: runtime for runtime in (runtimes() if known is None else known)}
    found = [
        _candidate(facts, told, kinds[told.name], provider, stage, manifest, wanted)
        for stage in STAGES
        for told in facts.runtimes
        for provider in told.providers or ("cpu",)
    ]
    return tuple(sorted(found, key=_order))


def choices(manifest: Manifest, known: Sequence[Runtime]) -> tuple[Choice, ...]:
    """What speaks against each runtime as a whole for this bundle, in their order."""
    return tuple(Choice(runtime, refusal(runtime_facts(runtime), manifest)) for runtime in known)


def select(manifest: Manifest, engine: str = "auto", known: Sequence[Runtime] | None = None) -> Runtime:
    """The runtime of this name, or with "auto" the first that runs the bundle here exactly and on the engine it is made for.

    Raises:
        EngineError: there is none; every refusal with its reason.
    """
    every = runtimes() if known is None else known
    named = [runtime for runtime in every if engine in ("auto", runtime.name)]
    if not named:
        raise unknown(engine, every)
    ranked = choices(manifest, named)
    if engine == "auto":
        ranked = tuple(Choice(one.runtime, one.reason or unchosen(runtime_facts(one.runtime))) for one in ranked)
    for choice in ranked:
        if choice.reason is None:
            return choice.runtime
    raise none_left(manifest, {choice.runtime.name: choice.reason for choice in ranked})


def none_left(manifest: Manifest, reasons: Mapping[str, Any]) -> EngineError:
    """The error that no engine can run a bundle, with every reason by what it speaks against."""
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return EngineError(f"no engine can run bundle '{manifest.name}' here: {told}. See them with: ossicle doctor")


def refusal(told: RuntimeFacts, manifest: Manifest, stage: Stage = "decoder") -> str | None:
    """Why a runtime cannot run a stage of a bundle here; None where it can."""
    targets = sorted({artifact.target for artifact in manifest.artifacts})
    if told.target not in targets:
        return f"the bundle has no artifacts for target {told.target} (it has: {', '.join(targets) or 'none'})"
    if not any(one.stage == _ARTIFACTS[stage] for one in _artifacts(manifest, told)):
        if stage == "encoder":
            return f"the bundle's artifacts for target {told.target} have no audio encoder"
        return (
            f"the bundle's artifacts for target {told.target} are an audio encoder alone, which serves another engine"
        )
    return told.reason or _too_old(manifest, told)


def unchosen(told: RuntimeFacts) -> str | None:
    """Why nobody gets a runtime who has not asked for it by name; None where it may be chosen."""
    if told.inexact:
        return f"is inexact, and only taken by name: {told.inexact}"
    if told.proof != "executed":
        return f"{told.absent}. What stands in for it here ({told.proof}) is only taken by name"
    return None


def failed_verification(manifest: Manifest, target: str) -> str | None:
    """What of a target's artifacts verification found beyond its thresholds; None where it found nothing or never was."""
    verified = manifest.verification.get(target, {"passed": True})
    return None if verified["passed"] else ", ".join(verified["failed"])


def _candidate(
    facts: DeviceFacts,
    told: RuntimeFacts,
    runtime: Runtime,
    provider: str,
    stage: Stage,
    manifest: Manifest,
    wanted: Wanted,
) -> Candidate:
    kind = DEVICES.get(told.name, {}).get(provider, "cpu" if provider == "cpu" else "")
    takes = need(manifest, told.target, stage, kind, wanted.context, wanted.kv_cache, wanted.widened)
    reasons = (
        refusal(told, manifest, stage),
        unchosen(told),
        _part_refusal(runtime, stage),
        _compute_refusal(runtime, stage, wanted.compute),
        told.providers.get(provider),
        None if kind else f"provider {provider} leaves the choice to its engine, and is only taken by name",
        _half_refusal(told.name, provider, manifest),
        _adapter_refusal(manifest, told.target, stage),
        None if wanted.allow_failed else _failure(manifest, told.target),
        _memory_refusal(takes, facts),
    )
    reason = next((reason for reason in reasons if reason), None)
    return Candidate(stage, Placement(told.name, provider), reason, _rank(told.name, kind, stage), takes)


def _part_refusal(runtime: Runtime, stage: Stage) -> str | None:
    if stage == "encoder":
        return encoder_lacking(runtime) or (None if isinstance(runtime, EncoderRuntime) else _WHOLE)
    return None if isinstance(runtime, DecoderRuntime) else _WHOLE


_WHOLE = "it opens whole bundles alone"


def _compute_refusal(runtime: Runtime, stage: Stage, compute: str) -> str | None:
    """Why a decoder's products are not computed as they are asked for; an audio encoder's are its engine's affair."""
    faults = compute_faults(compute, runtime.computes if isinstance(runtime, ComputingRuntime) else ())
    return f"it has {faults[0]}" if faults and stage != "encoder" else None


def _half_refusal(name: str, provider: str, manifest: Manifest) -> str | None:
    recipe = manifest.recipe
    exact = recipe.get("compute", "float32") == "float32" and not recipe.get("integer_activations", False)
    if (name, provider) in _HALF and exact:
        return f"it computes in float16, and recipe {recipe['name']} is float32 throughout; it is only taken by name"
    return None


def _adapter_refusal(manifest: Manifest, target: str, stage: Stage) -> str | None:
    """Why a bundle that keeps adapters is not chosen for an engine that adds none: a request may ask for them."""
    kept = {one.name for one in manifest.runtime_adapters}
    missing = sorted(kept - {one.name for one in manifest.runtime_adapters if one.target == target})
    if stage == "encoder" or not missing:
        return None
    return f"it does not add the bundle's adapters as it runs ({', '.join(missing)}), and is only taken by name"


def _failure(manifest: Manifest, target: str) -> str | None:
    failed = failed_verification(manifest, target)
    return failed and f"the bundle failed verification for target {target} ({failed})"


def _memory_refusal(takes: Need, facts: DeviceFacts) -> str | None:
    free = room(facts, takes.kind)
    if free is None or takes.total <= free:
        return None
    return f"it takes {takes}, and {_SAID.get(takes.kind, 'this machine')} has {size(free)} free"


def _rank(name: str, kind: str, stage: Stage) -> str:
    order = _ON_CPU[stage]
    place = f", number {order.index(name) + 1} there by rank" if kind == "cpu" and name in order else ""
    return f"computes on {_SAID.get(kind, 'what it chooses itself')}{place}"


def _order(candidate: Candidate) -> tuple[int, bool, int, int]:
    placement, stage = candidate.placement, candidate.stage
    order = _ON_CPU[stage]
    kind = KINDS.index(candidate.need.kind) if candidate.need.kind in KINDS else len(KINDS)
    place = order.index(placement.runtime) if placement.runtime in order else len(order)
    return STAGES.index(stage), candidate.reason is not None, kind, place


def _artifacts(manifest: Manifest, told: RuntimeFacts) -> Iterator[Artifact]:
    return (artifact for artifact in manifest.artifacts if artifact.target == told.target)


def _too_old(manifest: Manifest, told: RuntimeFacts) -> str | None:
    for artifact in _artifacts(manifest, told):
        package, wanted = artifact.requirements.get("engine"), artifact.requirements.get("version", "")
        if not package or not wanted.startswith(">=") or not told.version:
            continue
        if _numbers(told.version) < _numbers(wanted):
            return (
                f"{package} {told.version} is installed and '{artifact.stage}' needs {wanted}. "
                f'Upgrade it with: pip install --upgrade "{package}{wanted}"'
            )
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a release: (1, 24) of ">=1.24"."""
    release = re.search(r"\d+(\.\d+)*", text)
    return tuple(map(int, release.group().split("."))) if release else ()
