"""Bundle -> session: the engine that runs it here, opened as it was asked for."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

from ..targets import manifest as manifests
from ..targets.contract import BundleError, EngineError
from ..targets.manifest import Manifest
from .base import Engine, Runtime
from .choose import Choices, Ranked, by_measurement, by_rank, consider, distinct
from .fallback import FallbackEngine, Way
from .llamacpp_widened import widened_bytes
from .measured import measured
from .measured import wanted as wanted_here
from .mixed import open_plan
from .options import Options, adapter_faults, refuse_unheard_of
from .plans import Plan
from .prefixes import MEMORY, with_prefixes
from .select import CONTEXT, Wanted, failed_verification
from .session import TOKENIZER, Session
from .tokens import Tokenizer

MOST_THREADS = 64  # on a machine of few cores, which each thread more makes slower


def load(
    bundle: str | Path,
    *,
    engine: str | Mapping[str, str] | Runtime = "auto",
    threads: int = 0,
    provider: str = "cpu",
    kv_cache: str = "",
    flash_attention: bool | None = None,
    adapters: Mapping[str, float] | None = None,
    compute: str = "",
    context: int | None = None,
    measure: bool | None = None,
    prefixes: int = MEMORY,
    check: bool = True,
    allow_failed: bool = False,
) -> Session:
    """A session on a bundle. What its engine cannot do is refused.

    With "auto", what several engines could run is measured on this device, once and for some seconds (docs/selection.md), and
    an engine that fails gives way to the next.

    Args:
        engine: "auto"; a name such as "openvino" or "openvino:gpu"; or one for each stage, such as {"encoder": "openvino",
            "decoder": "onnxruntime"}, with "prefill" as the decoder and the encoder "auto" where they are not named.
        threads: 0 is as many as there are cores.
        provider: what the engine computes on.
        kv_cache: what keys and values are kept in: "float32", "float16", "int8" or "int4"; "" is the engine's exact default.
        flash_attention: None is the engine's exact default.
        adapters: those that the bundle keeps for run time, by name, and how much of each is added: 1.0 as it was trained.
        compute: "float32" has llama.cpp widen all weights as it loads them and round nothing; "" is the engine's default.
        context: tokens that a prompt and its answer may take; by default the model's, with memory reckoned for fewer.
        measure: whether to measure where it was not done before; None: unless OSSICLE_MEASURE is 0.
        prefixes: bytes of keys and values kept of earlier prompts, for those that begin as they did; 0: none.
        check: compare every file with its sha256; without it, sizes alone.
        allow_failed: open artifacts that verification found to differ from the original.

    Raises:
        BundleError: there is no bundle, it is damaged, or what would run has failed verification.
        EngineError: no engine can run it here as asked.
    """
    if not isinstance(adapters or {}, Mapping):
        raise EngineError(f'adapters {adapters!r:.60} are not possible (they can be, for example: {{"name": 0.8}}).')
    options = Options(threads, provider, kv_cache, flash_attention, dict(adapters or {}), compute)
    _refuse_impossible(options, context, prefixes)
    folder = Path(bundle)
    manifest = manifests.read(folder)
    manifests.check_files(folder, manifest, hashes=check)
    if not (folder / TOKENIZER).is_file():
        raise BundleError(f"bundle '{folder}' has no {TOKENIZER}. Build it again: ossicle build")
    _check_adapters(folder, manifest, adapters or {})
    wanted = Wanted(context or CONTEXT, kv_cache, allow_failed, compute, widened_bytes(folder, manifest, compute))
    choices = consider(manifest, engine, provider, wanted)
    if choices.facts is not None:
        refuse_unheard_of(options)
    ranked = _ranked(folder, choices, options, measure, allow_failed)
    tokenizer = Tokenizer(folder / TOKENIZER)
    return Session(manifest, tokenizer, _opened(folder, choices, ranked, options, prefixes), context)


def _refuse_impossible(options: Options, context: int | None, prefixes: int) -> None:
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if not isinstance(options.threads, Integral) or not 0 <= options.threads <= most:
        raise EngineError(f"threads {options.threads!r} is not possible (it can be: 0 for all cores, to {most}).")
    if context is not None and not (isinstance(context, Integral) and context > 0):
        raise EngineError(f"context {context!r} is not possible (it can be: a whole number above 0, in tokens).")
    if not isinstance(prefixes, Integral):
        raise EngineError(f"prefixes {prefixes!r} is not possible (it can be: a whole number of bytes, 0 for none).")


def _check_adapters(folder: Path, manifest: Manifest, adapters: Mapping[str, float]) -> None:
    """Refuse those that the bundle keeps for no engine, before one is looked for."""
    if faults := adapter_faults(adapters, sorted({one.name for one in manifest.runtime_adapters})):
        raise EngineError(f"bundle '{folder}' cannot be opened so: {'; '.join(faults)}.")


def _opened(folder: Path, choices: Choices, ranked: Sequence[Ranked], options: Options, prefixes: int) -> Engine:
    """The first plan, with the others to give way to."""

    def opened(plan: Plan) -> Engine:
        engine = open_plan(folder, choices.manifest, plan, options, choices.runtime)
        target = choices.runtime(plan.decoder.runtime).target
        return with_prefixes(engine, _token_bytes(choices.manifest, target), prefixes)

    ways = [Way(str(one.plan), partial(opened, one.plan)) for one in distinct(ranked)]
    return FallbackEngine(ways) if len(ways) > 1 else ways[0].open()


def _token_bytes(manifest: Manifest, target: str) -> int:
    """Keys and values of a token, by the manifest."""
    return max((one.memory.kv_per_token for one in manifest.artifacts if one.target == target), default=0)


def _ranked(
    folder: Path, choices: Choices, options: Options, measure: bool | None, allow_failed: bool
) -> tuple[Ranked, ...]:
    """The plans that a bundle can be opened by, best first; what is named and has failed verification is refused."""
    try:
        known = measured(folder, choices, options) if choices.is_open and wanted_here(measure) else None
        ranked = by_measurement(choices, known) if known else by_rank(choices)
    except EngineError:
        if not allow_failed:
            _refuse_failed(folder, choices.manifest, {artifact.target for artifact in choices.manifest.artifacts})
        raise
    if not allow_failed:
        placed = ranked[0].plan.stages
        _refuse_failed(folder, choices.manifest, {choices.runtime(one.runtime).target for one in placed})
    return ranked


def _refuse_failed(folder: Path, manifest: Manifest, targets: Iterable[str]) -> None:
    for target in sorted(targets):
        if failed := failed_verification(manifest, target):
            raise BundleError(
                f"bundle '{folder}' failed verification for target {target} ({failed}), so it does not compute what its "
                "original does. See its verification.md; build it anew with another --quant, or open it all the same with "
                "allow_failed=True"
            )
