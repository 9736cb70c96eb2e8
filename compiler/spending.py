"""A bundle within a budget: what to build it of is found, then it is built; and again, should its graphs come out too large."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..targets import sizes
from ..targets.contract import Progress, RecipeError
from ..targets.recipes import INT8
from ..targets.recipes import recipe as named_recipe
from . import bits, budget, plan, recipe_file
from . import quantize_on_speech as on_speech
from . import runtime_adapters as beside
from . import verify as verification
from .bits import Allocation, Limit
from .budget import Asked
from .checkpoint import Checkpoint, open_checkpoint
from .choices import Choices, uniform
from .families import family
from .limits import OverBudgetError
from .lora import AdapterSpec
from .losses import Attempt, in_file
from .losses import measured as losses_of
from .pipeline import BuildReport, check_imatrix, target_options
from .pipeline import build as build_bundle
from .quantizers import Choice
from .runtime_adapters import RuntimeAdapterSpec
from .staging import check_free

_LOGGER = logging.getLogger("ossicle")


@dataclass(frozen=True)
class Budget:
    """What a bundle may take, and how its recipe is found: of losses on `speech`, or of those that a recipe's file has.

    With a file and nothing asked, the file's own formats are built.
    """

    asked: tuple[Asked, ...] = ()
    speech: Path | None = None
    recipe: Path | None = None


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    spent: Budget,
    targets: Sequence[str] = ("onnx",),
    adapters: Sequence[AdapterSpec] = (),
    runtime_adapters: Sequence[RuntimeAdapterSpec] = (),
    quantizer: str | None = None,
    imatrix: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> BuildReport:
    """Compile a checkpoint within a budget; `options` are those of `pipeline.build`.

    Raises:
        OssicleError: the budget is too small, the recipe's file is not right, or what `pipeline.build` refuses.
    """
    _check_quantizer(spent, quantizer, options.get("quantized"))
    told = {name: options.get(name) for name in ("split_bytes", "engines", "coreml_context")}
    target_options(targets, uniform(INT8), **told)
    given: dict[str, Any] = {"adapters": adapters, "imatrix": imatrix}
    opened = open_checkpoint(checkpoint, **given)
    kept = beside.open_all(runtime_adapters, opened, targets)
    check_free(Path(out), force=options.get("force", False))
    if options.get("verify", True):
        verification.check_possible(opened, options.get("speech"))
    given |= {"targets": targets, "runtime_adapters": runtime_adapters, "quantizer": quantizer, "progress": progress}
    given |= options

    def built(found: Allocation | None) -> BuildReport:
        if found is None:
            return build_bundle(checkpoint, out, recipe="fp16", **given)
        recipe = bits.recipe(found, family(opened.family))
        if not spent.asked:
            check_imatrix(recipe, imatrix)
        return build_bundle(checkpoint, out, recipe=recipe, allocation=found, **given)

    attempt = Attempt(Path(out))
    found = allocation(opened, targets, spent, quantizer, progress, kept, attempt)
    try:
        report = built(found)
    except OverBudgetError as over:
        if found is None or not spent.asked:
            raise
        report = built(spend_again(opened, found, spent, over.more, kept))
    attempt.end()
    return report


def allocation(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    spent: Budget,
    quantizer: str | None = None,
    progress: Progress | None = None,
    kept: Sequence[beside.Kept] = (),
    attempt: Attempt | None = None,
) -> Allocation | None:
    """The format of every matrix, beside adapters that are `kept` for run time; None where float16 keeps every limit.

    What is measured stays with `attempt` until that is ended.

    Raises:
        RecipeError: a limit is below the least, or the recipe's file is not right.
        AudioError: the recordings cannot be used.
    """
    held = recipe_file.read(spent.recipe) if spent.recipe else None
    choices = Choices.of(checkpoint, targets, kept)
    if held and not spent.asked:
        found = _rebuilt(choices, held, spent.recipe)
        _tell(found)
        return found
    limits = budget.limits(choices, spent.asked, checkpoint.tokenizer.stat().st_size, {})
    if _fits_float16(choices, limits, spent.asked):
        _LOGGER.info("float16 keeps %s: nothing has to be quantized", limits[0].said)
        return None
    budget.check_possible(choices, limits)  # before anything is measured
    _check_imatrix(choices, checkpoint, quantizer or "nearest")
    if held:
        losses, measured = in_file(choices, held, checkpoint, spent.recipe)
    else:
        losses, measured = losses_of(choices, checkpoint, quantizer or "nearest", spent.speech, attempt, progress)
    found = budget.spend(choices, limits, losses, _name(spent.asked), measured)
    if attempt and not held:
        attempt.keep(found)
    _tell(found)
    return found


def quantize(
    checkpoint: Checkpoint,
    out: Path,
    *,
    spent: Budget,
    targets: Sequence[str],
    quantizer: str,
    progress: Progress | None = None,
) -> tuple[int, Path]:
    """Find a budget's formats and make their integers, both on the budget's speech; how many matrices, and the recipe's file.

    Raises:
        RecipeError: the quantizer needs no file, or the budget is too small, or so large that nothing is to be quantized.
        AudioError: the recordings cannot be used.
    """
    on_speech.check_needed(Choice.of(quantizer))
    attempt = Attempt(out)
    found = allocation(checkpoint, targets, spent, quantizer, progress, attempt=attempt)
    if found is None:
        raise RecipeError(
            f"{spent.asked[0].said} leaves room for float16, which has no integers to find. Build with --quant fp16, "
            "or give a smaller size"
        )
    count = on_speech.quantize(
        checkpoint, bits.recipe(found, family(checkpoint.family)), quantizer, out, spent.speech, progress
    )
    path = out.with_name(f"{out.stem}.{recipe_file.NAME}")
    recipe_file.write(path, found)
    attempt.end()
    return count, path


def spend_again(
    checkpoint: Checkpoint,
    found: Allocation,
    spent: Budget,
    more: Mapping[tuple[str, str], int],
    kept: Sequence[beside.Kept] = (),
) -> Allocation:
    """The same budget spent anew, with more bytes set apart for what lies beside the weights."""
    choices = Choices.of(checkpoint, found.targets, kept)
    limits = budget.limits(choices, spent.asked, checkpoint.tokenizer.stat().st_size, more)
    assert found.measured is not None
    losses = {name: one.losses for name, one in found.tensors.items()}
    again = budget.spend(choices, limits, losses, found.name, found.measured)
    _tell(again)
    return again


def _rebuilt(choices: Choices, held: Allocation, path: Path | None) -> Allocation:
    """What a file says, for these targets; what follows from its formats reckoned anew."""
    known, named = set(choices.formats), set(held.tensors)
    faults = [f"'{name}' is no matrix of this model" for name in sorted(named - known)]
    faults += [f"'{name}' is not in it" for name in sorted(known - named)]
    if faults:
        listed = f"{'; '.join(faults[:6])}{f' and {len(faults) - 6} more' if len(faults) > 6 else ''}"
        raise RecipeError(
            f"recipe '{path}' is not of this model: {listed}. See its matrices with: ossicle inspect CHECKPOINT"
        )
    limits = [_with_adapters(choices, limit) for limit in held.limits if limit.target in choices.targets]
    formats = {name: held.tensors[name].format for name in choices.formats}
    losses = {name: held.tensors[name].losses for name in formats}
    return budget.allocation(choices, limits, formats, losses, held.name, held.quantizer, held.measured)


def _with_adapters(choices: Choices, limit: Limit) -> Limit:
    """A limit with the adapters that are kept now in place of those that it was made with."""
    adapters = choices.adapters(limit.target, uniform(INT8))
    return replace(limit, fixed=limit.fixed - limit.adapters + adapters, adapters=adapters)


def _fits_float16(choices: Choices, limits: Sequence[Limit], asked: Sequence[Asked]) -> bool:
    recipe = named_recipe("fp16")
    for limit in limits:
        one = next(one for one in asked if one.said == limit.said)
        context = sizes.positions(limit.target, recipe)
        size = plan.size(choices.model, limit.target, recipe, context, choices.targets)
        size = replace(size, adapters=choices.adapters(limit.target, recipe))
        if (size.memory(one.context) if limit.in_memory else size.total) + limit.beside > limit.size:
            return False
    return True


def _check_quantizer(spent: Budget, quantizer: str | None, quantized: object) -> None:
    """Integers made of inputs are made beforehand, as are the formats that they are in."""
    if spent.asked and (quantized is not None or Choice.of("nearest" if quantizer is None else quantizer).on_inputs):
        raise RecipeError(
            f"quantizer '{quantizer or 'of --quantized'}' makes integers before a build. Find formats and integers: ossicle "
            "quantize CHECKPOINT --max-size SIZE --target TARGETS --quantizer gptq --out NAME.safetensors; then: ossicle build "
            "CHECKPOINT --target TARGETS --recipe NAME.recipe.json --quantized NAME.safetensors --out DIR"
        )


def _check_imatrix(choices: Choices, checkpoint: Checkpoint, quantizer: str) -> None:
    """Refuse one that would have no effect on what may be chosen."""
    blocks = any(form.is_block for forms in choices.formats.values() for form in forms)
    if checkpoint.imatrix and not blocks and "mse" not in Choice.of(quantizer).quantizers:
        raise RecipeError(
            f"no format that target {', '.join(choices.targets)} can hold has a use for an imatrix (these have: the blocks of "
            "--target gguf alone; and integers with --quantizer mse). Leave --imatrix out"
        )


def _name(asked: Sequence[Asked]) -> str:
    return "-".join(one.name for one in asked)


def _tell(found: Allocation) -> None:
    limit = found.tightest
    if limit:
        lost = "" if found.loss is None else f"; about {found.loss:.1e} nats a token are lost"
        _LOGGER.info(
            "%s: target %s %s, with %s of %s%s%s",
            limit.said,
            limit.target,
            "exceeds it" if limit.taken > limit.size else "sets the limit",
            budget.size(limit.taken),
            budget.size(limit.size),
            f", {budget.size(limit.adapters)} of it adapters kept for run time" if limit.adapters else "",
            lost,
        )
