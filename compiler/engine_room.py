"""Whether there is memory for TensorRT's engines, said before anything is built."""

import logging
from collections.abc import Sequence

from ..targets import tensorrt, tensorrt_engine, tensorrt_profiles, tensorrt_room
from ..targets.contract import Recipe
from ..targets.tensorrt_profiles import Engines
from ..targets.tensorrt_room import Load
from . import plan
from .checkpoint import Checkpoint

TELL = logging.getLogger("ossicle")


def check(checkpoint: Checkpoint, recipe: Recipe, stages: Sequence[str], engines: Engines | None) -> None:
    """Say whether the engines of these stages will fit, by the sizes that their weights will have.

    Raises:
        BuildError: engines of a kind that was named do not, with the numbers of every stage.
    """
    wanted = engines or Engines()
    if not tensorrt_engine.buildable(wanted):
        return
    model = plan.model_of(checkpoint)
    stored = plan.size(model, "tensorrt", recipe, wanted.context).stored
    loads = {
        stage: Load(stored[f"tensorrt {stage}"], tensorrt_profiles.packed(tensorrt.precision(stage, recipe)))
        for stage in stages
    }
    for said in tensorrt_room.foretold(loads, named=wanted.kind in tensorrt_engine.PACKAGES):
        TELL.info("%s", said)
