"""The product on one screen: a checkpoint goes in, a verified bundle comes out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..targets import manifest as manifests
from ..targets import registry
from ..targets.contract import Artifact, Progress, Recipe, RecipeError, TracedStage
from ..targets.manifest import Manifest
from ..targets.recipes import RECIPES
from ..targets.recipes import recipe as named_recipe
from ..targets.tensorrt_profiles import Engines
from . import engine_room, limits, quantizers, recipe_file, report
from . import runtime_adapters as beside
from . import speech as recordings
from . import verify as verification
from .assignment import assign
from .bits import Allocation
from .checkpoint import Checkpoint, open_checkpoint
from .families import family
from .figures import Verification
from .lora import AdapterSpec
from .making import Making, describe, write_shared
from .marking import mark
from .quantize import weights_of
from .quantizers import Choice
from .runtime_adapters import RuntimeAdapterSpec
from .staging import Staging
from .tokenizer import check_vocabulary
from .trace import trace


@dataclass(frozen=True)
class BuildReport:
    """What a build left: the bundle, its manifest, how it compares with the original, and how long it took."""

    folder: Path
    manifest: Manifest
    verification: Verification | None
    seconds: float


class Silent:
    """A `Progress` that says nothing."""

    def start(self, step: str, total: int, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    targets: Sequence[str] = ("onnx",),
    recipe: str | Recipe = "int4",
    adapters: Sequence[AdapterSpec] = (),
    runtime_adapters: Sequence[RuntimeAdapterSpec] = (),
    allocation: Allocation | None = None,
    quantizer: str | None = None,
    quantized: Path | None = None,
    imatrix: Path | None = None,
    split_bytes: int | None = None,
    engines: Engines | None = None,
    coreml_context: int | None = None,
    speech: Path | None = None,
    verify: bool = True,
    cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Compile a checkpoint (a folder or a hub id, `adapters` merged) into a bundle at `out`.

    `runtime_adapters` are kept beside the artifacts, for an engine to add as it runs; each is verified too.
    `allocation` is what `recipe` was made of: it is kept in the bundle, and a bundle beyond its limits is refused.
    `quantizer` finds the integers, one for all or part by part (`quantizers.Choice`), as the recipe says by default;
    `quantized` has those that `ossicle quantize` made.
    `imatrix` weighs the rounding of GGUF's blocks and the search of quantizer mse.
    `split_bytes` is the most that one file of a GGUF decoder may hold.
    `engines` are those built of TensorRT's graphs. `coreml_context` is how many tokens the state of a Core ML decoder holds.

    The bundle is made in a folder beside `out` and moved there at the end. A build that was killed is resumed by the same
    call, stage by stage; one that fails leaves nothing. A bundle that fails verification is written and marked. `speech` lists
    the recordings it is verified on, by default those that ossicle ships; `cache` keeps what the original makes of them.

    Raises:
        OssicleError: the checkpoint, an adapter, the recipe, the place or the disk is not as it has to be.
    """
    started, progress = time.perf_counter(), progress or Silent()
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = quantizers.chosen(chosen, quantizer, quantized)
    assigned = assign(targets, chosen)
    if allocation is None:  # what is found may have no use for what its losses were weighed by
        check_imatrix(chosen, imatrix)
    options = target_options(targets, chosen, split_bytes, engines, coreml_context)
    opened = open_checkpoint(checkpoint, adapters=adapters, imatrix=imatrix, quantized=quantized)
    check_vocabulary(opened.folder, family(opened.family).text_format(opened.config, {}).vocabulary)
    if opened.quantized:
        opened.quantized.check(weights_of(opened, chosen), runtime_adapters)
    kept = beside.open_all(runtime_adapters, opened, targets)
    making = Making(opened, chosen, targets, assigned, _adapted(options, kept, targets), kept, allocation)
    if "tensorrt" in assigned:
        engine_room.check(opened, chosen, assigned["tensorrt"], engines)
    if verify:
        verification.check_possible(opened, speech)
    with Staging.open(Path(out), making.inputs, force=force) as staging:
        write(making, staging, progress)
        verified = check(opened, staging.folder, speech, cache, progress, kept) if verify else None
        staging.publish()
    return BuildReport(Path(out), manifests.read(Path(out)), verified, time.perf_counter() - started)


def write(making: Making, staging: Staging, progress: Progress) -> None:
    """Everything that a bundle consists of, into the folder where it is made; the manifest last."""
    folder = staging.folder
    write_shared(making.checkpoint, (), folder)  # some formats hold the tokenizer and the configuration themselves
    artifacts = lower(making, staging, progress)
    write_shared(making.checkpoint, artifacts, folder)
    added = beside.lower(making.kept, making.targets, making.recipe, folder)
    if making.allocation:
        limits.check(making.allocation, artifacts, making.recipe, added)
        recipe_file.write(folder / recipe_file.NAME, replace(making.allocation, quantizer=making.recipe.quantizer))
    manifests.write(folder, describe(making, artifacts, folder, added))


def lower(making: Making, staging: Staging, progress: Progress) -> tuple[Artifact, ...]:
    """Every stage that a target is built for, in its format; those of an earlier attempt taken over."""
    checkpoint, recipe = making.checkpoint, making.recipe
    weights = weights_of(checkpoint, recipe)
    stages: tuple[TracedStage, ...] = ()
    artifacts: list[Artifact] = []
    for name, stage_names in making.assigned.items():
        for stage_name in stage_names:
            artifact = staging.finished(name, stage_name)
            if artifact is None:
                stages = stages or trace(checkpoint.family, checkpoint.config, recipe.context).stages
                stage = next(stage for stage in stages if stage.name == stage_name)
                format_ = registry.target(name, **making.options.get(name, {}))
                artifact = format_.lower(stage, recipe, weights, staging.folder, progress)
                staging.finish(artifact)
            artifacts.append(artifact)
    return tuple(artifacts)


def check(
    checkpoint: Checkpoint,
    folder: Path,
    speech: Path | None,
    cache: Path | None,
    progress: Progress,
    kept: Sequence[beside.Kept] = (),
) -> Verification:
    """How the bundle in `folder` compares with the original, marked in its manifest and reported beside it."""
    verified = verification.verify(
        folder, checkpoint, speech=speech, cache=cache, runtime_adapters=kept, progress=progress
    )
    mark(folder, verified)
    report.write(folder, verified, recordings.load(speech or recordings.shipped()))
    return verified


def target_options(
    targets: Sequence[str],
    recipe: Recipe,
    split_bytes: int | None = None,
    engines: Engines | None = None,
    coreml_context: int | None = None,
) -> dict[str, dict[str, Any]]:
    """What each target is told beside the recipe; refused where it would have no effect, or where the target refuses it.

    Raises:
        RecipeError: an option is of no target, or cannot be.
        BuildError: this machine lacks what writes a target.
    """
    given: dict[tuple[str, str], dict[str, Any]] = {
        ("gguf", "--split-size"): {"split_bytes": split_bytes},
        ("tensorrt", "--engine and what goes with it"): {"engines": engines},
        ("coreml", "--coreml-context"): {"context": coreml_context},
    }
    options: dict[str, dict[str, Any]] = {}
    for (target, said), values in given.items():
        chosen = {name: value for name, value in values.items() if value is not None}
        if chosen and target not in targets:
            raise RecipeError(f"{said} is for target {target}, and the targets are {', '.join(targets)}")
        if chosen:
            registry.target(target, **chosen).check(recipe)
            options[target] = chosen
    for name in targets:
        registry.target(name, **options.get(name, {})).check_here()
    return options


def _adapted(
    options: Mapping[str, Mapping[str, Any]], kept: Sequence[beside.Kept], targets: Sequence[str]
) -> Mapping[str, Mapping[str, Any]]:
    """The options with what adapters add to them: ONNX's graph has inputs for what is added as it runs."""
    if not kept or "onnx" not in targets:
        return options
    added = {"adapted": beside.changed(kept)}
    registry.target("onnx", **added).check_here()
    return {**options, "onnx": added}


def weighs(recipe: Recipe) -> bool:
    """Whether a recipe has a use for measured activations."""
    return _has_blocks(recipe) or "mse" in Choice.of(recipe.quantizer).quantizers


def check_imatrix(recipe: Recipe, imatrix: Path | None) -> None:
    """Refuse one that would have no effect.

    Raises:
        RecipeError: naming the recipes that have a use for it.
    """
    if imatrix and not weighs(recipe):
        using = ", ".join(name for name, one in RECIPES.items() if _has_blocks(one))
        raise RecipeError(
            f"recipe '{recipe.name}' has no use for an imatrix (these have: {using}; and integers with --quantizer mse)"
        )


def _has_blocks(recipe: Recipe) -> bool:
    return any(form.is_block for _, form in recipe.formats())
