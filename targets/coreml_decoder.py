"""The decoder's functions: what they take besides embeddings, and where keys and values are kept between calls."""

from typing import Any

from . import coreml_attention as attention
from . import coreml_graph
from .contract import TracedStage
from .coreml_graph import Emission
from .coreml_mil import Value
from .coreml_package import Function
from .coreml_weights import table

PAST = "past_key_values."


def function(stage: TracedStage, model: Any, emission: Emission, context: int, longest: int) -> Function:
    """A function of the decoder for chunks of up to so many tokens; of one token, it has fixed shapes and all logits.

    Where the program computes in float16, keys and values are states; in float32 they are inputs, and outputs as they are
    then.
    """
    compute, length = emission.records.compute, None if longest > 1 else 1
    hidden = int(stage.inputs[0].shape[2])
    embeddings = Value("inputs_embeds", compute, (1, length, hidden))
    positions = Value("position_ids", "int32", (1, length))
    inputs = [embeddings, positions]
    if length is None:
        emission.kept = Value("logit_positions", "int32", (None,))
        inputs.append(emission.kept)
    emission.values[embeddings.name] = embeddings
    emission.cache = _cache(stage, emission, positions, context)
    logits = emission.block.rename(coreml_graph.emit(model, emission)[0], "logits")
    held = tuple(emission.cache.held.values())
    if emission.cache.stateful:
        return Function(emission.block, tuple(inputs), (logits,), held, longest)
    return Function(emission.block, (*inputs, *held), (logits, *emission.cache.given), longest=longest)


def _cache(stage: TracedStage, emission: Emission, positions: Value, context: int) -> attention.Cache:
    block, records = emission.block, emission.records
    held = [_held(port.name, port.shape, records.compute, context) for port in stage.inputs if PAST in port.name]
    tables = [table(block, records, name, stage.constants[name][:context]) for name in ("cos", "sin")]
    cos, sin = (attention.rotary_rows(block, one, positions) for one in tables)
    begin, end = attention.places(block, positions)
    mask = attention.causal(block, positions, context, records.compute)
    named = {value.name: value for value in held}
    return attention.Cache(named, records.compute == "float16", cos, sin, mask, begin, end)


def _held(name: str, shape: tuple[int | str, ...], dtype: str, context: int) -> Value:
    """The cache that stands for an input `past_key_values.<layer>.<part>`."""
    layer, part = name.removeprefix(PAST).split(".")
    return Value(f"{part}_cache_{layer}", dtype, (1, int(shape[1]), context, int(shape[3])))
