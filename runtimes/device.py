"""What this machine has: facts only, for `ossicle doctor` and for choosing an engine."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ..targets import memory
from ..targets.probe import Proof
from .accelerators import Accelerator, accelerators
from .base import InexactRuntime, ProviderRuntime, ProvingRuntime, Runtime, proof
from .machine import HERE
from .processor import Processor, processor
from .registry import installed, runtimes


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
    """What this machine has. Memory in bytes, that of the container where there is one; None where the system does not tell."""

    system: str
    python: str
    processor: Processor
    memory: int | None
    memory_available: int | None
    runtimes: tuple[RuntimeFacts, ...]
    accelerators: tuple[Accelerator, ...] = ()


def doctor() -> DeviceFacts:
    """The facts of this machine and of every runtime on it."""
    return DeviceFacts(
        system=platform.platform(),
        python=platform.python_version(),
        processor=processor(HERE),
        memory=memory.total(),
        memory_available=memory.available(),
        runtimes=tuple(map(runtime_facts, runtimes())),
        accelerators=accelerators(HERE),
    )


def fingerprint(facts: DeviceFacts) -> str:
    """What these facts have in common with no others, as 32 hexadecimal digits: measurements hold while it stays.

    Counted are the system, the processor, all memory, GPUs and NPUs with their drivers, and each engine's and provider's
    version and whether it can be used. Not counted is what changes by itself, as free memory, nor how a refusal is worded.
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
    return RuntimeFacts(
        runtime.name,
        runtime.target,
        installed(runtime.package),
        runtime.usable(),
        inexact,
        proof(runtime),
        runtime.absent() if isinstance(runtime, ProvingRuntime) else None,
        runtime.providers() if isinstance(runtime, ProviderRuntime) else {},
    )
