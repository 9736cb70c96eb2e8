"""What writes an artifact."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from .artifacts import Artifact, BundleFile, TracedStage
from .recipe import STAGES, Recipe
from .weights import LowRankUpdate, WeightStore


class Progress(Protocol):
    """Told how far a long step is. `total` in the unit named (bytes, tensors, clips); a renderer may ignore it."""

    def start(self, step: str, total: int, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...


class Target(Protocol):
    """One artifact format."""

    name: str

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and this format cannot hold."""

    def check_here(self) -> None:
        """Raise `BuildError` where this machine lacks what writes the format. To plan it takes nothing."""

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Any, progress: Progress
    ) -> Artifact:
        """Write one stage under `folder` (a pathlib.Path) and give back what was written."""


@runtime_checkable
class AdapterTarget(Target, Protocol):
    """A format whose engine adds adapters to its artifacts as it runs."""

    def lower_adapter(self, name: str, updates: Mapping[str, LowRankUpdate], recipe: Recipe, folder: Any) -> BundleFile:
        """Write an adapter, its updates by canonical name, under `folder` (a pathlib.Path), where its bundle is made."""
