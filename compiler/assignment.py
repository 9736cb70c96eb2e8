"""Which stages each target of a bundle is built for: all, or the audio encoder alone.

An engine that takes audio embeddings from another one needs that one's encoder beside its decoder. So where a format's engine
is such, another format of the bundle may be one that cannot hold the recipe's decoder; and where the user names no other
format, one is added.
"""

from collections.abc import Mapping, Sequence

from ..targets import registry
from ..targets.contract import STAGES, Recipe, RecipeError

_ENCODER = ("audio_encoder",)


def assign(targets: Sequence[str], recipe: Recipe) -> Mapping[str, tuple[str, ...]]:
    """The stages of each target, in the order that they are built in.

    Raises:
        RecipeError: a target cannot hold the recipe, or there is none of this name; or no target is named.
    """
    registry.check_named(targets)
    refusals = {name: _refusal(name, recipe, STAGES) for name in targets}
    taking = [name for name, refusal in refusals.items() if refusal is None and name in registry.ENCODER_BESIDE]
    for name, refusal in refusals.items():
        if refusal and not (taking and _refusal(name, recipe, _ENCODER) is None):
            raise refusal
    assigned = {name: _ENCODER if refusal else STAGES for name, refusal in refusals.items()}
    if taking and not assigned.keys() - set(registry.ENCODER_BESIDE):
        beside = registry.ENCODER_BESIDE[taking[0]]
        registry.target(beside).check(recipe, _ENCODER)
        return {beside: _ENCODER, **assigned}
    return assigned


def serving(target: str, targets: Sequence[str], recipe: Recipe) -> list[tuple[str, str]]:
    """The artifacts that a target's engine opens in a bundle for these targets, by target and stage.

    Where it takes audio from another target's encoder, that one stands first.

    Raises:
        RecipeError: a target cannot hold the recipe, or there is none of this name.
    """
    assigned = assign(targets, recipe)
    own = [(target, stage) for stage in assigned[target]]
    beside = [name for name in assigned if name not in registry.ENCODER_BESIDE]
    return [(beside[0], *_ENCODER), *own] if target in registry.ENCODER_BESIDE else own


def _refusal(name: str, recipe: Recipe, stages: Sequence[str]) -> RecipeError | None:
    target = registry.target(name)
    try:
        target.check(recipe, stages)
    except RecipeError as reason:
        return reason
    return None
