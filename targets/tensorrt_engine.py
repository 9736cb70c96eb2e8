"""TensorRT engines: whether this machine can build what is asked for, and the engines built of a bundle's graphs.

TensorRT for RTX ("rtx") builds with no GPU, for every RTX GPU from Ampere on or for compute capabilities named. Classic
TensorRT ("trt") builds on the GPU that the engine is for. Each engine is built in a process of its own (tensorrt_build.py),
whose memory is given back and can be measured. Engines are not the same bytes from build to build.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from . import manifest as manifests
from . import tensorrt_room
from .contract import Artifact, BuildError, BundleFile, Progress
from .manifest import Manifest, file_entry
from .tensorrt_profiles import Engines, packed, profiles
from .tensorrt_room import Load

SUFFIX = ".engine"
CACHE = "OSSICLE_TENSORRT_CACHE"  # names a folder for classic TensorRT's timing caches


@dataclass(frozen=True)
class Package:
    """What builds engines of a kind, and how it is installed."""

    module: str
    name: str
    install: str


PACKAGES: Mapping[str, Package] = {
    "rtx": Package("tensorrt_rtx", "tensorrt-rtx", 'pip install "ossicle[tensorrt]"'),
    "trt": Package("tensorrt", "tensorrt", "pip install tensorrt"),
}
KINDS = ("auto", *PACKAGES, "none")
_OF_ENGINES = ("no_engine", "built_by", "compute_capability", "timing_cache")  # requirements that an engine decides


@dataclass(frozen=True)
class EngineFacts:
    """An engine that was built, as the file beside it tells."""

    kind: Literal["rtx", "trt"]
    version: str
    compute_capabilities: tuple[int, ...]  # (): every RTX GPU from Ampere on
    device: str  # the GPU it was built on; "" where none was needed
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]  # least, usual and greatest shape of every input
    size: int  # bytes
    seconds: float
    peak_memory: int  # bytes
    warnings: tuple[str, ...]
    timing_cache: str = ""  # of classic TensorRT: the file's name in the folder of timings; "" where none was kept


def check(engines: Engines) -> None:
    """Refuse engines that cannot be built here.

    Raises:
        BuildError: listing everything that speaks against it.
    """
    if engines.kind not in KINDS:
        raise BuildError(f"engine '{engines.kind}' is unknown (it can be: {', '.join(KINDS)}). Give another --engine")
    faults = [
        f"{name} {getattr(engines, name)} is not possible (it can be: above 0)"
        for name in ("context", "prompt", "batch")
        if getattr(engines, name) < 1
    ]
    if engines.kind in PACKAGES:
        faults += _package_faults(PACKAGES[engines.kind])
    if engines.compute_capabilities:
        faults += _capability_faults(engines)
    if faults:
        raise BuildError(f"engines for target 'tensorrt' cannot be built: {'; '.join(faults)}")


def buildable(engines: Engines) -> bool:
    """Whether engines are asked for, and what builds them is installed."""
    return engines.kind != "none" and find_spec(_package(engines).module) is not None


def refusal(engines: Engines, artifact: Artifact) -> str | None:
    """Why no engine of an artifact's graph is built here, with the command that builds one elsewhere; None where one is."""
    if engines.kind == "none":
        return "none was asked for. Build it on the device with: ossicle engine BUNDLE"
    package = _package(engines)
    if find_spec(package.module) is None:
        return (
            f"package {package.name} is not installed. Install it with: {package.install}, then: ossicle engine BUNDLE"
        )
    reason = tensorrt_room.refusal(artifact.stage, Load(artifact.memory.weights, packed(artifact.precision)))
    return f"{reason}. Build it on a machine that has them with: ossicle engine BUNDLE" if reason else None


def build(artifact: Artifact, engines: Engines, folder: Path, progress: Progress) -> Artifact:
    """A stage's artifact with the engine built of its graph beside it, or with the reason why there is none.

    Raises:
        BuildError: an engine of a kind that was named cannot be built, with the reason.
    """
    bare = _without_engine(artifact)
    reason = refusal(engines, artifact)
    if reason and engines.kind in PACKAGES:
        raise BuildError(f"no engine can be built: {reason}. Without it: --engine none")
    if reason:
        return replace(bare, requirements={**bare.requirements, "no_engine": reason})
    progress.start(f"tensorrt {artifact.stage} engine", 1, "engines")
    path = (folder / graph_file(bare).path).with_suffix(SUFFIX)
    facts = _run(_request(bare, engines, folder, path), artifact.stage)
    progress.advance(1)
    described = path.with_name(f"{path.name}.json")
    described.write_text(json.dumps(asdict(facts), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    files = (*bare.files, *(file_entry(folder, one) for one in (path, described)))
    return replace(bare, files=files, requirements={**bare.requirements, **_limits(engines), **_compatibility(facts)})


def add(folder: Path, engines: Engines, progress: Progress) -> Manifest:
    """The manifest of the bundle in `folder`, brought up to date, with engines built of its graphs.

    Raises:
        BuildError: it has no graphs for TensorRT, or an engine cannot be built.
    """
    manifest = manifests.read(folder)
    if not any(artifact.target == "tensorrt" for artifact in manifest.artifacts):
        raise BuildError(
            f"bundle '{folder}' has no artifacts for target tensorrt. "
            "Build it with: ossicle build CHECKPOINT --target tensorrt"
        )
    check(engines)
    artifacts = tuple(
        build(artifact, engines, folder, progress) if artifact.target == "tensorrt" else artifact
        for artifact in manifest.artifacts
    )
    manifest = replace(manifest, artifacts=artifacts)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".engines-") as draft:
        manifests.write(Path(draft), manifest)
        os.replace(Path(draft) / manifests.NAME, folder / manifests.NAME)
    return manifest


def context(manifest: Manifest) -> int | None:
    """Tokens that the caches of a bundle's graphs for TensorRT hold; None where it has none."""
    found = (one.requirements["context"] for one in manifest.artifacts if one.target == "tensorrt")
    return next(map(int, found), None)


def facts(folder: Path, artifact: Artifact) -> EngineFacts | None:
    """What is known of an artifact's engine; None where it has none."""
    path = next((file.path for file in artifact.files if file.path.endswith(f"{SUFFIX}.json")), None)
    return None if path is None else read_facts(folder / path)


def read_facts(path: Path) -> EngineFacts:
    """The facts in the file beside an engine."""
    held = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(held[name]) for name in ("compute_capabilities", "warnings")}
    return EngineFacts(**held | lists)


def graph_file(artifact: Artifact) -> BundleFile:
    """The graph of an artifact."""
    return next(file for file in artifact.files if file.path.endswith(".onnx"))


def _limits(engines: Engines) -> dict[str, str]:
    return {"prompt": str(engines.piece), "batch": str(engines.batch)}


def _compatibility(facts: EngineFacts) -> dict[str, str]:
    """What an engine runs with, and the file of timings that it was built by, for the manifest."""
    return {
        "built_by": f"{PACKAGES[facts.kind].name} {facts.version}",
        "compute_capability": ", ".join(map(str, facts.compute_capabilities)) or "80 and newer",
        **({"timing_cache": facts.timing_cache} if facts.timing_cache else {}),
    }


def _package(engines: Engines) -> Package:
    return PACKAGES["rtx" if engines.kind == "auto" else engines.kind]


def _without_engine(artifact: Artifact) -> Artifact:
    files = tuple(file for file in artifact.files if SUFFIX not in Path(file.path).name)
    requirements = {name: value for name, value in artifact.requirements.items() if name not in _OF_ENGINES}
    return replace(artifact, files=files, requirements=requirements)


def _request(artifact: Artifact, engines: Engines, folder: Path, engine: Path) -> dict[str, Any]:
    kind = "rtx" if engines.kind == "auto" else engines.kind
    return {
        "kind": kind,
        "package": PACKAGES[kind].module,
        "graph": str(folder / graph_file(artifact).path),
        "engine": str(engine),
        "compute_capabilities": list(engines.compute_capabilities),
        "scalars": [port.name for port in artifact.inputs if not port.shape],
        "profiles": profiles(artifact, engines),
        "timing_caches": os.environ.get(CACHE) if kind == "trt" else None,
    }


def _run(request: Mapping[str, Any], stage: str) -> EngineFacts:
    with tempfile.TemporaryDirectory(prefix="ossicle-engine-") as folder:
        asked, told = Path(folder) / "request.json", Path(folder) / "facts.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.tensorrt_build", str(asked), str(told)],
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # nothing that lies in the working folder is imported
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2] or f"its process ended with status {done.returncode}"
            raise BuildError(f"the engine of '{stage}' was not built: {reason}. Build without engines: --engine none")
        return read_facts(told)


def _package_faults(package: Package) -> list[str]:
    if find_spec(package.module) is None:
        return [f"package {package.name} is not installed. Install it with: {package.install}"]
    return []


def _capability_faults(engines: Engines) -> list[str]:
    if engines.kind == "trt":
        return ["TensorRT builds for the GPU of the machine alone, so a compute capability is not for --engine trt"]
    package = PACKAGES["rtx"]
    if find_spec(package.module) is None:
        return [] if engines.kind == "rtx" else _package_faults(package)
    possible = capabilities(import_module(package.module))
    unknown = [number for number in engines.compute_capabilities if number not in possible]
    if not unknown:
        return []
    return [
        f"compute capability {', '.join(map(str, unknown))} cannot be built for "
        f"(it can be: {', '.join(map(str, possible))})"
    ]


def capabilities(package: Any) -> list[int]:
    """The compute capabilities that TensorRT for RTX builds for, as numbers such as 89."""
    names = package.ComputeCapability.__members__
    return sorted(int(name.removeprefix("SM")) for name in names if name.startswith("SM"))
