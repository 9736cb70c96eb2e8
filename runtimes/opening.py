"""Bundle -> session: the engine that runs it here, opened as it was asked for."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..targets import manifest as manifests
from ..targets.contract import BundleError, EngineError
from ..targets.manifest import Manifest
from .base import Options, Runtime
from .choose import Choices, Ranked, by_rank, consider
from .mixed import open_plan
from .select import Wanted, failed_verification
from .session import TOKENIZER, Session
from .tokens import Tokenizer


def load(
    bundle: str | Path,
    *,
    engine: str | Mapping[str, str] | Runtime = "auto",
    threads: int = 0,
    provider: str = "cpu",
    kv_cache: str = "",
    flash_attention: bool | None = None,
    adapters: Mapping[str, float] | None = None,
    check: bool = True,
    allow_failed: bool = False,
) -> Session:
    """A session on a bundle. What its engine cannot do is refused.

    Args:
        engine: "auto"; a name such as "openvino" or "openvino:gpu"; or one for each stage, such as {"encoder": "openvino",
            "decoder": "onnxruntime"}, with "prefill" as the decoder and the encoder "auto" where they are not named.
        threads: 0 is as many as there are cores.
        provider: what the engine computes on.
        kv_cache: what keys and values are kept in: "float32", "float16", "int8" or "int4"; "" is the engine's exact default.
        flash_attention: None is the engine's exact default.
        adapters: those that the bundle keeps for run time, by name, and how much of each is added: 1.0 as it was trained.
        check: compare every file with its sha256; without it, sizes alone.
        allow_failed: open artifacts that verification found to differ from the original.

    Raises:
        BundleError: there is no bundle, it is damaged, or what would run has failed verification.
        EngineError: no engine can run it here as asked.
    """
    if threads < 0:
        raise EngineError(f"threads {threads} is not possible (it can be: 0 for all cores, or more).")
    folder = Path(bundle)
    manifest = manifests.read(folder)
    manifests.check_files(folder, manifest, hashes=check)
    if not (folder / TOKENIZER).is_file():
        raise BundleError(f"bundle '{folder}' has no {TOKENIZER}. Build it again: ossicle build")
    wanted = Wanted(kv_cache=kv_cache, allow_failed=allow_failed)
    choices = consider(manifest, engine, provider, wanted)
    options = Options(threads, provider, kv_cache, flash_attention, dict(adapters or {}))
    (chosen, *_) = _ranked(folder, choices, allow_failed)
    tokenizer = Tokenizer(folder / TOKENIZER)
    return Session(manifest, tokenizer, open_plan(folder, manifest, chosen.plan, options, choices.runtime))


def _ranked(folder: Path, choices: Choices, allow_failed: bool) -> tuple[Ranked, ...]:
    """The plans that a bundle can be opened by, best first; what has failed verification is refused, and not passed over."""
    try:
        ranked = by_rank(choices)
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
