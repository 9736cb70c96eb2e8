"""Where in a bundle the file is that an engine opens."""

from pathlib import Path

from ..targets.contract import Artifact, EngineError
from ..targets.manifest import Manifest
from .base import Runtime


def stage_file(folder: Path, manifest: Manifest, runtime: Runtime, stage: str, suffix: str) -> Path:
    """The one file with this suffix that a stage has for a runtime's target.

    Raises:
        EngineError: the bundle has no such stage, or it has no or several such files.
    """
    artifact = stage_artifact(folder, manifest, runtime, stage)
    paths = [file.path for file in artifact.files if file.path.endswith(suffix)]
    if len(paths) != 1:
        raise EngineError(
            f"artifact '{stage}' for target {runtime.target} has {len(paths)} {suffix} files instead of one. "
            "Build the bundle again: ossicle build"
        )
    return folder / paths[0]


def stage_artifact(folder: Path, manifest: Manifest, runtime: Runtime, stage: str) -> Artifact:
    """What a stage is for a runtime's target.

    Raises:
        EngineError: the bundle has no such stage.
    """
    for artifact in manifest.artifacts:
        if (artifact.target, artifact.stage) == (runtime.target, stage):
            return artifact
    held = ", ".join(f"{a.stage} for {a.target}" for a in manifest.artifacts) or "nothing"
    raise EngineError(
        f"engine '{runtime.name}' needs '{stage}' for target {runtime.target}, and bundle '{folder}' has: {held}. "
        f"Build it with: ossicle build CHECKPOINT --target {runtime.target}"
    )
