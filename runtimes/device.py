"""What this machine has: facts only, for `ossicle doctor` and for choosing an engine."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ..targets.probe import Proof
from .accelerators import Accelerator, accelerators
from .bandwidth import read_bandwidth
from .base import InexactRuntime, ProviderRuntime, ProvingRuntime, Runtime, proof
from .machine import HERE
from .processor import Processor, processor
from .registry import installed, runtimes
from .working_memory import working_memory


@dataclass(frozen=True)
class RuntimeFacts:
    """One runtime here: its package's version, why it cannot be used (None: it can), what is inexact in it (None: nothing).

    `proof` is "executed" where the engine itself runs, and says what stands in for it where it does not, `absent` why.
    `providers` are those that it computes on, each with what speaks against it.
    """

    name: str
    target: str
    version: str | None
    reason: str | None
    inexact: str | None
    proof: Proof
    absent: str | None = None
    providers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceFacts:
    """What this machine has. Memory in bytes, that of the container where there is one; None where the system does not tell.

    `bandwidth` is bytes a second that all usable cores together read from memory; None where nobody asked to measure it.
    """

    system: str
    python: str
    processor: Processor
    memory: int | None
    memory_available: int | None
    runtimes: tuple[RuntimeFacts, ...]
    accelerators: tuple[Accelerator, ...] = ()
    bandwidth: float | None = None


def doctor(*, measure: bool = False) -> DeviceFacts:
    """The facts of this machine and of every runtime on it; `measure` adds its bandwidth, in about half a second."""
    found, (total, available) = processor(HERE), working_memory(HERE)
    return DeviceFacts(
        system=platform.platform(),
        python=platform.python_version(),
        processor=found,
        memory=total,
        memory_available=available,
        runtimes=tuple(map(runtime_facts, runtimes())),
        accelerators=accelerators(HERE),
        bandwidth=read_bandwidth(found) if measure else None,
    )


def fingerprint(facts: DeviceFacts) -> str:
    """What these facts have in common with no others, as 32 hexadecimal digits: measurements hold while it stays.

    Counted are the system, the processor, all memory, GPUs and NPUs with their drivers, and each engine's and provider's
    version and whether it can be used. Not counted is what changes by itself, as free memory and bandwidth do, nor how a
    refusal is worded.
    """
    counted = {
        "system": facts.system,
        "processor": asdict(facts.processor),
        "memory": facts.memory,
        "accelerators": [asdict(one) for one in facts.accelerators],
        "runtimes": [_counted(one) for one in facts.runtimes],
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:32]


def _counted(runtime: RuntimeFacts) -> dict[str, object]:
    usable = {name: reason is None for name, reason in runtime.providers.items()}
    named = {name: getattr(runtime, name) for name in ("name", "target", "version", "proof")}
    return {**named, "usable": runtime.reason is None, "exact": runtime.inexact is None, "providers": usable}


def runtime_facts(runtime: Runtime) -> RuntimeFacts:
    """The facts of one runtime here."""
    inexact = runtime.inexact if isinstance(runtime, InexactRuntime) else None
    reason = runtime.usable()
    return RuntimeFacts(
        runtime.name,
        runtime.target,
        installed(runtime.package) or _imported(runtime.package),
        reason,
        inexact,
        proof(runtime),
        runtime.absent() if isinstance(runtime, ProvingRuntime) else None,
        runtime.providers() if isinstance(runtime, ProviderRuntime) else {},
    )


def _imported(package: str) -> str | None:
    """The version that a module of this name says it has: another package may have brought it."""
    told = getattr(sys.modules.get(package), "__version__", None)
    return told if isinstance(told, str) else None
