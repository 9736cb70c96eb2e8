"""Adapters of a bundle, chosen by request: an engine as it is with some of them added.

What is computed with one choice of adapters is of no use to another: states, keys and values, kept beginnings of prompts.
Each choice is a view of the engine (base.AdaptingEngine), so that nothing passes from one to another.
"""

from collections.abc import Mapping

from ..targets.contract import PromptError
from .base import AdaptingEngine, Engine
from .options import ADAPTING, adapter_faults

Key = tuple[tuple[str, float], ...]


def key(adapters: Mapping[str, float]) -> Key:
    """What tells a choice of adapters from another: those that are added at all, in the order of their names."""
    return tuple(sorted((name, float(scale)) for name, scale in adapters.items() if scale))


def names(engine: Engine) -> tuple[str, ...]:
    """The adapters that an engine can add."""
    return tuple(engine.adapters) if isinstance(engine, AdaptingEngine) else ()


def adapted(engine: Engine, adapters: Mapping[str, float] | None) -> Engine:
    """The engine with so much of each adapter added; None: as it was opened, {}: with none.

    Raises:
        PromptError: it has not got them.
    """
    if adapters is None:
        return engine
    held = names(engine)
    if adapters and not held:
        raise PromptError(
            f"engine '{engine.name}' has none of the adapters asked for ({', '.join(adapters)}): the bundle keeps none for it "
            f"(these add them: {ADAPTING}). Keep some: ossicle build CHECKPOINT --target onnx,gguf --runtime-adapter PATH"
        )
    if faults := adapter_faults(adapters, held):
        raise PromptError(f"engine '{engine.name}' has {'; '.join(faults)}.")
    return engine.adapted(adapters) if isinstance(engine, AdaptingEngine) and held else engine
