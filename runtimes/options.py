"""How an engine is to run, and the refusal of what it cannot do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Real

from ..targets.contract import EngineError

KV_CACHES = ("float32", "float16", "int8", "int4")  # of all engines together
COMPUTES = ("float32",)
MOST_SCALE = 100  # of an adapter: far more gives numbers that no engine holds
ADAPTING = "onnxruntime, llamacpp"  # engines that add adapters as they run


@dataclass(frozen=True)
class Options:
    """How an engine is to run; each refuses what it cannot do.

    `kv_cache` is what keys and values are kept in: "float32", "float16", "int8", "int4" where the engine has it, "" its exact
    default. `adapters` are those that a bundle keeps for run time, by name, each with how much of it is added. `compute` is
    what products are computed in where the engine has a choice: "float32", "" its default.
    """

    threads: int = 0  # 0: as many as the machine has cores
    provider: str = "cpu"
    kv_cache: str = ""
    flash_attention: bool | None = None  # None: the engine's exact default
    adapters: Mapping[str, float] = field(default_factory=dict)
    compute: str = ""


def refuse_unheard_of(options: Options) -> None:
    """Refuse what no engine has, before any is tried; one that is named says itself what it has.

    Raises:
        EngineError: with what there is.
    """
    for name, wanted, possible in (("kv_cache", options.kv_cache, KV_CACHES), ("compute", options.compute, COMPUTES)):
        if wanted and wanted not in possible:
            raise EngineError(f"{name} '{wanted}' is not possible (it can be: {', '.join(possible)}).")


def check_options(
    engine: str,
    options: Options,
    *,
    providers: Sequence[str] = ("cpu",),
    kv_caches: Sequence[str] = (),
    flash_attention: bool = False,
    adapters: Sequence[str] | None = None,
    computes: Sequence[str] = (),
) -> None:
    """Refuse what an engine is asked for and cannot do; what it can is said here, `adapters` None: none at run time.

    Raises:
        EngineError: listing everything that it cannot do, and what it can.
    """
    faults = []
    if options.provider not in providers:
        faults.append(f"no provider '{options.provider}' here (it has: {', '.join(providers)})")
    if options.kv_cache and options.kv_cache not in kv_caches:
        faults.append(f"no kv_cache '{options.kv_cache}' (it has: {', '.join(kv_caches) or 'its own alone'})")
    if options.flash_attention is not None and not flash_attention:
        faults.append("no choice of flash_attention")
    faults += compute_faults(options.compute, computes)
    faults += adapter_faults(options.adapters, adapters)
    if faults:
        raise EngineError(f"engine '{engine}' has {'; '.join(faults)}. See what this machine has: ossicle doctor")


def compute_faults(wanted: str, computes: Sequence[str]) -> list[str]:
    """What speaks against computing products in a type, of those that an engine has a choice of."""
    if wanted in ("", *computes):
        return []
    return [f"no compute '{wanted}' (it has: {', '.join(computes) or 'what the bundle says alone'})"]


def adapter_faults(wanted: Mapping[str, float], held: Sequence[str] | None) -> list[str]:
    """What speaks against adding so much of each adapter, of those that are held; None: none are added at run time."""
    if wanted and held is None:
        return [
            f"no adapters at run time (these have: {ADAPTING}; or merge them: ossicle build CHECKPOINT --adapter PATH)"
        ]
    faults = [
        f"no adapter '{name}' in this bundle ({_held(name, held or ())})" for name in wanted if name not in (held or ())
    ]
    return faults + [
        f"no scale {scale} for adapter '{name}' (it can be: from -{MOST_SCALE} to {MOST_SCALE})"
        for name, scale in wanted.items()
        if not isinstance(scale, Real) or not abs(scale) <= MOST_SCALE
    ]


def _held(name: str, held: Sequence[str]) -> str:
    """Which adapters there are, and how there would be this one."""
    if near := get_close_matches(name, held, n=3):
        return f"near it: {', '.join(near)}; it has: {', '.join(held)}"
    build = "keep one in it: ossicle build CHECKPOINT --target onnx,gguf --runtime-adapter PATH"
    return f"it has: {', '.join(held) or 'none'}; {build}"
