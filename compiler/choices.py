"""What each matrix of a model may be stored in for some targets, and what it takes of a limit: nothing is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..targets import registry, sizes
from ..targets.contract import Recipe, RecipeError, WeightFormat
from ..targets.gguf_mixes import fitting
from ..targets.recipes import INT8
from . import bits, runtime_adapters
from .assignment import assign, serving
from .bits import Limit
from .checkpoint import Checkpoint
from .plan import Model, model_of
from .quantize import Weights
from .runtime_adapters import Kept


@dataclass(frozen=True)
class Choices:
    """What each matrix of a model may be stored in for these targets, and what it takes; `kept` are adapters beside them."""

    model: Model
    targets: tuple[str, ...]
    kept: tuple[Kept, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, targets: Sequence[str], kept: Sequence[Kept] = ()) -> "Choices":
        """Those of a checkpoint's matrices.

        Raises:
            RecipeError: no target is named.
        """
        registry.check_named(targets)
        return cls(model_of(checkpoint), tuple(targets), tuple(kept))

    @cached_property
    def formats(self) -> dict[str, tuple[WeightFormat, ...]]:
        """The formats of each matrix that all targets hold, by canonical name.

        Raises:
            RecipeError: there are none.
        """
        found = {}
        for name, source in self.model.tensors.items():
            if part := bits.part(self.model.family, name):
                held = dict.fromkeys(fitting(form, source.shape[-1]) for form in self._held[part])
                found[name] = tuple(held)
        return found

    @cached_property
    def _held(self) -> dict[str, list[WeightFormat]]:
        """The formats of each part that all targets hold."""
        forms = (*bits.SHARED, *bits.BLOCKS)
        parts = ("encoder", "embedding", "decoder", "lm_head")
        held = {part: [form for form in forms if self._holds(part, form)] for part in parts}
        if missing := [part for part, found in held.items() if not found]:
            raise RecipeError(
                f"targets {', '.join(self.targets)} have no format in common for {', '.join(missing)}. Build them one by one"
            )
        return held

    def _holds(self, part: str, form: WeightFormat) -> bool:
        changed: dict[str, Any] = {part: form}
        recipe = replace(uniform(INT8), **changed)
        try:
            for name in self.targets:
                registry.target(name).check(recipe)
            assign(self.targets, recipe)
        except RecipeError:
            return False
        return True

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """The matrices that share a format: each has its own, but for a head that is the embedding's own numbers."""
        tied = (self.model.family.EMBEDDING, self.model.family.LM_HEAD) if self.model.tied else ()
        return [*([tied] if tied else []), *((name,) for name in self.formats if name not in tied)]

    def takes(self, limit: Limit, name: str, form: WeightFormat) -> int:
        """Bytes of a matrix in the files of a limit's target, or in its memory, which holds one audio encoder."""
        recipe, weights = self._stores(form)
        stages = [(target, stage) for target, stage in self.stages(limit.target) if name in self.model.stages[stage]]
        held = stages[: 1 if limit.in_memory else None]
        stored = sum(sizes.weight_bytes(*stage, name, recipe, weights) for stage in held)
        unfolded = sum(sizes.unfolded_bytes(target, (name,), weights) for target, _ in held)
        return stored + (unfolded if limit.in_memory else 0)

    def adapters(self, target: str, recipe: Recipe) -> int:
        """Bytes of the adapters' numbers that a target keeps for its engine."""
        return sizes.adapter_bytes(target, runtime_adapters.size(self.kept), recipe)

    def beside_adapters(self, target: str) -> int:
        """Bytes to set apart for what is written round them."""
        held = sum(len(one.updates) for one in self.kept)
        return sizes.beside_adapters(target, held, len(runtime_adapters.changed(self.kept)))

    def stages(self, target: str) -> list[tuple[str, str]]:
        """The stages that a target's engine opens, the audio encoder of another target that serves it first."""
        return serving(target, self.targets, uniform(INT8))

    def _stores(self, form: WeightFormat) -> tuple[Recipe, Weights]:
        if form not in self._made:
            self._made[form] = _store(self.model, form)
        return self._made[form]

    @cached_property
    def _made(self) -> dict[WeightFormat, tuple[Recipe, Weights]]:
        return {}


def uniform(form: WeightFormat) -> Recipe:
    """One format for everything."""
    return Recipe(form.name, encoder=form, embedding=form, decoder=form, lm_head=form)


def _store(model: Model, form: WeightFormat) -> tuple[Recipe, Weights]:
    recipe = uniform(form)
    return recipe, Weights(model.tensors, recipe, model.family, model.tied)
