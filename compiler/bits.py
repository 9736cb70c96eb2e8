"""What came of a budget: the format of every matrix, the limits that it keeps, and the recipe that it is."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..targets.contract import Override, Recipe, Thresholds, WeightFormat
from ..targets.gguf_mixes import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0
from ..targets.recipes import FLOAT16, INT3, INT4, INT4_ASYMMETRIC, INT4_WIDE, INT8, INT8_G64, INT8_WIDE, RECIPES
from .families import Family
from .quantizers import Choice, left

SHARED = (FLOAT16, INT8, INT8_G64, INT8_WIDE, INT4_ASYMMETRIC, INT4, INT4_WIDE, INT3)  # formats of more than one target
BLOCKS = (Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q2_K)  # GGUF's own
_NARROW = {Q2_K: "q2_k", INT3: "int3"}  # formats that recipes are allowed more for than int4 is
_LEAST = RECIPES["int8"].thresholds
_LITTLE = 5e-3  # nats; recipes that may lose no more are asked for int8's texts
_PARTS = {
    "encoder": "encoder",
    "projector": "encoder",
    "embedding": "embedding",
    "decoder": "decoder",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class Spent:
    """The format of a matrix, its bytes, and what it loses in each format that was measured."""

    format: WeightFormat
    bytes: int
    losses: Mapping[WeightFormat, float] = field(default_factory=dict, repr=False)

    @property
    def loss(self) -> float | None:
        return self.losses.get(self.format)


@dataclass(frozen=True)
class Limit:
    """What a target may take, as the user `said` it, in bytes.

    `fixed` is what all but its matrices takes, of that `beside` is set apart for graphs and a vocabulary, and `adapters` are
    those kept for run time; `taken` is the whole. In a device's memory the keys and values of `context` tokens are among it.
    """

    said: str
    target: str
    size: int
    fixed: int
    beside: int = 0
    in_memory: bool = False  # what running takes on a device; or the bytes of the artifacts
    taken: int = 0
    context: int = 0
    adapters: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.said, self.target


@dataclass(frozen=True)
class Measured:
    """What losses are of: a checkpoint by its identity, a quantizer's integers, a list of recordings by name and sha256.

    And the imatrix that the rounding was weighed by, where there was one.
    """

    checkpoint: str
    quantizer: str
    speech: str
    speech_sha256: str
    imatrix_sha256: str = ""


@dataclass(frozen=True)
class Allocation:
    """The format of every matrix by canonical name, for these targets."""

    name: str
    targets: tuple[str, ...]
    quantizer: str
    limits: tuple[Limit, ...]
    tensors: Mapping[str, Spent] = field(repr=False)
    measured: Measured | None = None

    @property
    def loss(self) -> float | None:
        """What all matrices lose; None where it was not measured of one."""
        losses = [one.loss for one in self.tensors.values()]
        return None if None in losses else math.fsum(loss for loss in losses if loss is not None)

    @property
    def tightest(self) -> Limit | None:
        """The limit that was reached first."""
        return min(self.limits, key=lambda one: one.size - one.taken, default=None)


def part(model: Family, name: str) -> str | None:
    """The part of a recipe that a matrix is stored by; None for what no recipe has a format for."""
    found = model.part(name)
    return _PARTS[found] if found and (model.linear(name) or found == "embedding") else None


def recipe(allocation: Allocation, model: Family) -> Recipe:
    """The recipe that stores every matrix as the allocation says."""
    parts: dict[str, dict[str, WeightFormat]] = {}
    for name, spent in allocation.tensors.items():
        parts.setdefault(part(model, name) or "", {})[name] = spent.format
    main: dict[str, Any] = {key: _main(formats) for key, formats in parts.items()}
    overrides = tuple(
        Override(key, name, form)
        for key, formats in parts.items()
        for name, form in formats.items()
        if form != main[key]
    )
    held = [one.format for one in allocation.tensors.values()]
    return Recipe(
        allocation.name,
        **main,
        integer_activations=not all(form.is_float for form in held),
        thresholds=_thresholds(_unseen(allocation, model), held),
        quantizer=allocation.quantizer,
        overrides=overrides,
    )


def _unseen(allocation: Allocation, model: Family) -> float | None:
    """What all would lose had no quantizer seen inputs: verification goes by that, since how much is left differs by model."""
    if allocation.loss is None or allocation.measured is None:
        return allocation.loss
    choice = Choice.of(allocation.measured.quantizer)
    return math.fsum(
        (one.loss or 0.0) / left(choice.part(model.part(name)), one.format, linear=model.linear(name))
        for name, one in allocation.tensors.items()
    )


def _main(formats: Mapping[str, WeightFormat]) -> WeightFormat:
    """The format of most matrices, of those with the smallest groups: engines that round activations do it in these."""
    counted = Counter(formats.values())
    integers = [form for form in counted if not form.is_float]
    smallest = min((form.group for form in integers), default=0)
    return max((form for form in counted if form.group == smallest), key=lambda form: counted[form])


def _thresholds(loss: float | None, held: Sequence[WeightFormat]) -> Thresholds:
    """What is asked of a recipe of these formats that is expected to lose so much.

    Four times that, between what int8 is allowed and what the named recipe of its narrowest format is.
    """
    most = RECIPES[next((name for form, name in _NARROW.items() if form in held), "int4")].thresholds
    kl = most.kl if loss is None else min(most.kl, max(_LEAST.kl, 4 * loss))
    return replace(most if kl > _LITTLE else _LEAST, kl=kl)
