"""Bundle -> session: the engine that runs it here, opened as it was asked for."""

from collections.abc import Mapping
from pathlib import Path

from ..targets import manifest as manifests
from ..targets.contract import BundleError, EngineError
from ..targets.manifest import Manifest
from .base import Options, Runtime
from .select import select
from .session import TOKENIZER, Session
from .tokens import Tokenizer


def load(
    bundle: str | Path,
    *,
    engine: str | Runtime = "auto",
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
    runtime = select(manifest, engine) if isinstance(engine, str) else engine
    if not allow_failed:
        _refuse_failed(folder, manifest, runtime.target)
    tokenizer = Tokenizer(folder / TOKENIZER)
    options = Options(threads, provider, kv_cache, flash_attention, dict(adapters or {}))
    return Session(manifest, tokenizer, runtime.open(folder, manifest, options))


def _refuse_failed(folder: Path, manifest: Manifest, target: str) -> None:
    verified = manifest.verification.get(target, {"passed": True})
    if not verified["passed"]:
        raise BundleError(
            f"bundle '{folder}' failed verification for target {target} ({', '.join(verified['failed'])}), so it does not "
            "compute what its original does. See its verification.md; build it anew with another --quant, or open it all "
            "the same with allow_failed=True"
        )
