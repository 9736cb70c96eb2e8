"""What a sweep is asked for: its grid of cells, the files that its builds take, and what decides each cell's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..targets import registry
from ..targets.contract import Recipe, RecipeError, SweepError
from ..targets.recipes import recipe as named_recipe
from . import cells, pipeline, quantizers
from . import speech as recordings
from .cells import Cell
from .checkpoint import Checkpoint, open_checkpoint
from .lora import AdapterSpec
from .making import tools
from .quantizers import Choice
from .speech import Speech

NAME = "sweep.json"


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked for. Paths are absolute: its workers have working folders of their own.

    `engines` and `quantizers`: where there are none, each target's and each recipe's own. `speech` lists the recordings that
    cells are compared on, `heard` those that integers are made on; by default both are the shipped ones.
    """

    checkpoint: str
    recipes: tuple[str, ...]
    targets: tuple[str, ...]
    engines: tuple[str, ...] = ()
    quantizers: tuple[str, ...] = ()
    adapters: tuple[tuple[str, float], ...] = ()
    speech: str | None = None
    heard: str | None = None
    imatrix: str | None = None
    version: int = cells.VERSION

    @cached_property
    def grid(self) -> tuple[tuple[Cell, ...], Mapping[Cell, str]]:
        """The cells that can be, and those that cannot with the reason."""
        possible: list[Cell] = []
        refused: dict[Cell, str] = {}
        for recipe in map(named_recipe, self.recipes):
            for quantizer in quantizers_of(recipe, self.quantizers):
                for target in self.targets:
                    engines = engines_of(target, self.engines)
                    found = [Cell(recipe.name, target, engine, quantizer) for engine in engines]
                    if reason := _refusal(recipe, target):
                        refused |= dict.fromkeys(found, reason)
                    else:
                        possible += found
        return tuple(possible), refused

    @property
    def weighing(self) -> Path | None:
        """The file of measured activations that is given."""
        return Path(self.imatrix) if self.imatrix else None

    def imatrix_of(self, recipe: Recipe) -> Path | None:
        """The file of measured activations, where a recipe has a use for it."""
        return self.weighing if pipeline.weighs(recipe) else None

    def open(self, *, imatrix: Path | None = None, quantized: Path | None = None) -> Checkpoint:
        """The checkpoint with its adapters merged."""
        return open_checkpoint(self.checkpoint, adapters=self.merged(), imatrix=imatrix, quantized=quantized)

    def merged(self) -> list[AdapterSpec]:
        """The adapters to merge."""
        return [AdapterSpec(path, weight) for path, weight in self.adapters]

    def recordings(self) -> Speech:
        """The recordings that cells are compared on."""
        return _listed(self.speech)

    def calibration(self) -> Speech:
        """The recordings that integers are made on."""
        return _listed(self.heard)


@dataclass(frozen=True)
class Keys:
    """What decides the figures of a sweep's cells, beside the cell itself: digests, None where there is no such file."""

    source: Any
    speech: str
    heard: str | None = None
    imatrix: str | None = None

    @classmethod
    def of(cls, plan: Plan, checkpoint: Checkpoint, speech: Speech) -> "Keys":
        """Those of a plan, whose checkpoint is opened with the plan's imatrix."""
        adapters = [asdict(adapter) for adapter in checkpoint.adapters]
        heard = plan.calibration().sha256 if any(map(on_inputs, plan.grid[0])) else None
        weighed = checkpoint.imatrix.file.sha256 if checkpoint.imatrix else None
        return cls([asdict(checkpoint.source), adapters], speech.sha256, heard, weighed)

    def proof(self, cell: Cell) -> str:
        """The key of a cell's proof."""
        return cells.key(self.source, self.speech, asdict(cell), *self._made(cell), self._tools([cell.target]))

    def integers(self, cell: Cell) -> str:
        """The key of the integers that a cell's build is made of."""
        return cells.key(self.source, *self._made(cell), tools(()))

    def speed(self, cell: Cell, machine: Mapping[str, Any]) -> str:
        """The key of a cell's speed on a machine."""
        return cells.key(self.proof(cell), machine)

    def _made(self, cell: Cell) -> tuple[Any, ...]:
        recipe = recipe_of(cell)
        heard = self.heard if on_inputs(cell) else None
        return asdict(recipe), heard, self.imatrix if pipeline.weighs(recipe) else None

    def _tools(self, targets: Sequence[str]) -> dict[str, str]:
        return {"ossicle": __version__, **registry.tools(targets)}


def recipe_of(cell: Cell) -> Recipe:
    """The recipe of a cell, with its quantizer."""
    return replace(named_recipe(cell.recipe), quantizer=cell.quantizer)


def on_inputs(cell: Cell) -> bool:
    """Whether a cell's integers are made on recordings, before its build."""
    return Choice.of(cell.quantizer).on_inputs


def engines_of(target: str, asked: Sequence[str]) -> list[str]:
    """The engines of those asked for that run a target's artifacts; its own where none of them does."""
    own = registry.ENGINES[target]
    return [engine for engine in asked if _runs(engine, target)] or [own]


def _runs(engine: str, target: str) -> bool:
    return engine.partition("-")[0] == registry.ENGINES[target]


def quantizers_of(recipe: Recipe, asked: Sequence[str]) -> list[str]:
    """The quantizers of those asked for that a recipe has integers for; its own where there are none."""
    return [name for name in asked if _has_meaning(recipe, name)] or [recipe.quantizer]


def check_words(plan: Plan) -> None:
    """Refuse words that name nothing, and what would have no effect, before any work is done.

    Raises:
        RecipeError: a recipe, target or quantizer is unknown, or a quantizer or the imatrix has no meaning for any recipe.
        SweepError: no recipe or target is named, an engine runs none of the targets, or recordings to calibrate on would
            not be heard.
        BuildError: this machine lacks what writes a target.
    """
    for option, words in (("--quant", plan.recipes), ("--target", plan.targets)):
        if not words:
            raise SweepError(f"{option} names nothing. See what it can be: ossicle targets")
    recipes = [named_recipe(name) for name in plan.recipes]
    for target in plan.targets:
        registry.target(target).check_here()
    for name in plan.quantizers:
        Choice.of(name)
        if not any(_has_meaning(recipe, name) for recipe in recipes):
            quantizers.checked(recipes[0], name)
    idle = [engine for engine in plan.engines if not any(_runs(engine, target) for target in plan.targets)]
    if idle:
        possible = ", ".join(registry.ENGINES[target] for target in plan.targets)
        raise SweepError(
            f"engine '{idle[0]}' runs none of the targets (their engines: {possible}). See: ossicle doctor"
        )
    if plan.heard and not any(map(on_inputs, plan.grid[0])):
        raise SweepError(
            "--calibration-speech has no use here: no cell's integers are made on recordings. "
            "Name a quantizer that hears some, such as --quantizer gptq; recordings to compare on are --speech"
        )
    if not any(pipeline.weighs(recipe_of(cell)) for cell in plan.grid[0]):
        pipeline.check_imatrix(recipes[0], plan.weighing)


def _refusal(recipe: Recipe, target: str) -> str | None:
    """Why a target cannot hold a recipe; None: it can."""
    try:
        registry.target(target).check(recipe)
    except RecipeError as reason:
        return str(reason)
    return None


def _has_meaning(recipe: Recipe, quantizer: str) -> bool:
    try:
        quantizers.checked(recipe, quantizer)
    except RecipeError:
        return False
    return True


def _listed(path: str | None) -> Speech:
    return recordings.load(Path(path) if path else recordings.shipped())
