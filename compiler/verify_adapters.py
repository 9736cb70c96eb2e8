"""Whether a bundle with an adapter computes what its original does with the adapter merged: logits of what was said.

The adapter is merged in torch into the weights as the recipe stores them, which is what an engine adds to. Both read the
original's own replies to a few recordings, so nothing is generated anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..targets.contract import Float32, Progress, Recipe, VerificationError
from ..targets.manifest import Manifest
from ..targets.probe import Answer, Report, Request
from . import stored, torch_model
from .checkpoint import Checkpoint
from .figures import AdapterVerification, agreement, difference, divergence, judge_adapter
from .lora import Merged
from .readings import Reading
from .reference import Original
from .runtime_adapters import Kept

CLIPS = 4  # recordings that it is compared on

Ask = Callable[..., Report]


@dataclass(frozen=True)
class Forced:
    """What the original with an adapter makes of its own replies to a recording: logits [positions, vocabulary]."""

    reading: Reading
    logits: Float32


def verify(
    bundle: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    recipe: Recipe,
    adapters: Sequence[Kept],
    readings: Sequence[Reading],
    runners: Mapping[str, str],
    ask: Ask,
    progress: Progress | None = None,
) -> tuple[AdapterVerification, ...]:
    """Each adapter on each target that keeps it. `runners` are the engines by target, `ask` questions a bundle.

    Raises:
        VerificationError: an adapter is not the bundle's.
        EngineError: an engine refused the bundle, or the adapter.
    """
    check_source(manifest, adapters)
    if progress and adapters:
        progress.start("verify adapters", len(adapters), "adapters")
    original = Original(stored.rounded(checkpoint, recipe) if stored.rounds(recipe) else checkpoint)
    found: list[AdapterVerification] = []
    for adapter in adapters:
        expected = _forced(original, adapter, readings[:CLIPS])
        keeping = [one.target for one in manifest.runtime_adapters if one.name == adapter.name]
        found += [
            _compared(bundle, target, runners[target], adapter.name, expected, recipe, ask)
            for target in keeping
            if target in runners
        ]
        if progress:
            progress.advance(1)
    return tuple(found)


def check_source(manifest: Manifest, adapters: Sequence[Kept]) -> None:
    """Refuse adapters that the bundle does not keep.

    Raises:
        VerificationError: naming each of them.
    """
    held = {one.name: {file.sha256 for file in one.source} for one in manifest.runtime_adapters}
    strange = [one.name for one in adapters if held.get(one.name) != {file.sha256 for file in one.source}]
    if strange:
        raise VerificationError(
            f"bundle '{manifest.name}' was not built with adapters {', '.join(strange)} as they are given (it keeps: "
            f"{', '.join(held) or 'none'}). Give those it was built with: --runtime-adapter [NAME=]PATH"
        )


def _forced(original: Original, adapter: Kept, readings: Sequence[Reading]) -> list[Forced]:
    """What the original says with an adapter, which is taken out again."""
    tensors = original.checkpoint.tensors
    try:
        for name, update in adapter.updates.items():
            torch_model.fill(original.model, name, Merged(tensors[name], ((1.0, update),)))
        return [Forced(reading, original.score(reading)) for reading in readings]
    finally:
        for name in adapter.updates:
            torch_model.fill(original.model, name, tensors[name])


def _compared(
    bundle: Path, target: str, runner: str, name: str, expected: Sequence[Forced], recipe: Recipe, ask: Ask
) -> AdapterVerification:
    questions = [request for one in expected for request in _requests(one.reading, name)]
    report = ask(bundle, questions, engine=runner)
    answers = iter(report.answers)
    given = [np.concatenate([_array(next(answers)) for _ in _requests(one.reading, name)]) for one in expected]
    kl = [divergence(one.logits, logits) for one, logits in zip(expected, given, strict=True)]
    wanted, got = np.concatenate([one.logits for one in expected]), np.concatenate(given)
    return judge_adapter(
        name,
        target,
        report.engine,
        recipe.thresholds,
        rounds=stored.rounds(recipe),
        positions=len(wanted),
        logits=difference(wanted, got),
        kl=float(np.concatenate(kl).mean()),
        kl_clip=max(float(one.mean()) for one in kl),
        top1=agreement(wanted, got),
    )


def _requests(reading: Reading, adapter: str) -> list[Request]:
    path = str(reading.clip.file.resolve())
    return [
        Request("score", path, language=reply.language, tokens=reply.tokens, adapters={adapter: 1.0})
        for reply in reading.replies
        if reply.question is None
    ]


def _array(answer: Answer) -> Float32:
    return np.empty((0, 0), np.float32) if answer.array is None else answer.array
