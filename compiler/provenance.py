"""Whether a checkpoint is the one that a bundle was built from."""

from collections.abc import Iterable, Sequence

from ..targets.contract import BundleFile, VerificationError
from ..targets.manifest import AdapterSource, Manifest
from .checkpoint import Checkpoint
from .imatrix import Imatrix
from .quantized import Quantized


def check_source(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint, or adapters, that the bundle was not built from.

    Raises:
        VerificationError: naming every file that differs.
    """
    faults = _differences(manifest.source.files, checkpoint.source.files)
    faults += _adapter_differences(manifest.adapters, checkpoint.adapters)
    faults += _beside_differences("imatrix", manifest.imatrix, checkpoint.imatrix)
    faults += _beside_differences("quantized", manifest.quantized, checkpoint.quantized)
    if faults:
        raise VerificationError(
            f"bundle '{manifest.name}' was not built from this checkpoint: {'; '.join(faults)}. "
            "Give the checkpoint and the adapters it was built from: "
            "ossicle verify BUNDLE --checkpoint CHECKPOINT [--adapter PATH:WEIGHT] [--imatrix FILE] [--quantized FILE]"
        )


def _differences(built: Iterable[BundleFile], given: Iterable[BundleFile], of: str = "") -> list[str]:
    before, after = ({file.path: file.sha256 for file in files} for files in (built, given))
    missing = [f"{of}{path} is missing" for path in sorted(before.keys() - after.keys())]
    extra = [f"{of}{path} was not there" for path in sorted(after.keys() - before.keys())]
    both = sorted(before.keys() & after.keys())
    return missing + extra + [f"{of}{path} has another sha256" for path in both if before[path] != after[path]]


def _adapter_differences(built: Sequence[AdapterSource], given: Sequence[AdapterSource]) -> list[str]:
    if len(built) != len(given):
        names = ", ".join(f"{adapter.name}:{adapter.weight:g}" for adapter in built) or "none"
        return [f"it has {len(built)} adapters merged ({names}), {len(given)} are given"]
    faults: list[str] = []
    for before, after in zip(built, given, strict=True):
        faults += _differences(before.files, after.files, f"adapter '{before.name}': ")
        if before.weight != after.weight:
            faults.append(f"adapter '{before.name}' was merged with weight {before.weight:g}, not {after.weight:g}")
    return faults


def _beside_differences(what: str, built: BundleFile | None, given: Imatrix | Quantized | None) -> list[str]:
    if built is None:
        return [f"{what} {given.file.path} was not there"] if given else []
    if given is None:
        return [f"{what} {built.path} is missing"]
    return [] if built.sha256 == given.file.sha256 else [f"{what} {built.path} has another sha256"]
