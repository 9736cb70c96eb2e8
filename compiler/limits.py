"""Whether what was built keeps its limits: the bytes of its files, and the memory that running it takes."""

from collections.abc import Mapping, Sequence

from ..targets import tensorrt_engine
from ..targets.contract import Artifact, BuildError, BundleFile, Recipe
from ..targets.manifest import RuntimeAdapter
from .assignment import serving
from .bits import Allocation, Limit


class OverBudgetError(BuildError):
    """What was built takes more than it may; `more` are bytes to set apart besides, by limit (`Limit.key`)."""

    def __init__(self, message: str, more: Mapping[tuple[str, str], int]) -> None:
        super().__init__(message)
        self.more = more


def check(
    allocation: Allocation, artifacts: Sequence[Artifact], recipe: Recipe, adapters: Sequence[RuntimeAdapter] = ()
) -> None:
    """Refuse artifacts that take more than a limit, but for limits that the user's own formats exceed.

    `adapters` that a target keeps for run time count with its artifacts. TensorRT's engines do not: they are made of the
    artifacts, on the device or for it.

    Raises:
        OverBudgetError: naming every target and what it takes.
    """
    built = {(one.target, one.stage): one for one in artifacts}
    over: list[tuple[Limit, int]] = []
    for limit in allocation.limits:
        opened = [built[one] for one in serving(limit.target, allocation.targets, recipe)]
        taken = memory(opened, limit.context) if limit.in_memory else sum(map(_stored, opened))
        taken += sum(one.file.size for one in adapters if one.target == limit.target)
        if taken > limit.size >= limit.taken:
            over.append((limit, taken))
    if over:
        said = "; ".join(
            f"target '{limit.target}' takes {taken:,} bytes of {limit.size:,} ({limit.said})" for limit, taken in over
        )
        # Other formats make other graphs, and other gaps between weights: not all that was set apart is given away.
        more = {limit.key: taken - limit.taken + limit.beside // 8 for limit, taken in over}
        raise OverBudgetError(f"the artifacts take more than they may: {said}. Give a larger size", more)


def memory(artifacts: Sequence[Artifact], context: int) -> int:
    """Bytes that running these takes with so many tokens kept: the first audio encoder is opened, and stages take turns."""
    encoders = [one.memory for one in artifacts if one.stage == "audio_encoder"]
    held = [*encoders[:1], *(one.memory for one in artifacts if one.stage != "audio_encoder")]
    kept = sum(one.kv_per_token for one in held) * context
    return sum(one.weights for one in held) + kept + max((one.working for one in held), default=0)


def _stored(artifact: Artifact) -> int:
    return sum(file.size for file in artifact.files if _counts(file))


def _counts(file: BundleFile) -> bool:
    return not file.path.removesuffix(".json").endswith(tensorrt_engine.SUFFIX)
