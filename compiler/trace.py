"""A model's stages as graphs over fake weights: the only place that traces.

Cached attention and the choice of logits stay opaque operators of ours (`ossicle::...`), since every runtime has its own best
form of them: a target replaces them while lowering.
"""

import atexit
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

from ..targets.contract import Float32, Port, Traced, TracedStage
from . import families


def stage(
    name: str,
    module: Any,
    inputs: Mapping[str, Any],
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    constants: Mapping[str, Float32],
) -> TracedStage:
    """`module` traced on fake `inputs` (nested lists of tensors allowed), its varying dimensions taken from `ports`."""
    import torch

    shapes = _dynamic_shapes(inputs, iter(ports[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytree
        program = torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes, strict=False)
    signature = program.graph_signature
    names = [*signature.parameters, *signature.buffers]
    weights = {name: name for name in names if name not in constants}
    return TracedStage(name, program, *ports, weights, constants)


def trace(model_type: str, config: Mapping[str, Any], context: int) -> Traced:
    """The traced stages of a model whose transformers configuration is `config`, for up to `context` tokens.

    A process traces a model once: whoever builds it again, in another recipe, is given the same stages.
    """
    return traced(model_type, json.dumps(config), context)


@lru_cache(maxsize=8)
def traced(model_type: str, config: str, context: int) -> Traced:
    """`trace`, of a configuration as JSON text."""
    return Traced(model_type, families.family(model_type).stages(json.loads(config), context))


atexit.register(traced.cache_clear)  # while torch is still there to free what a trace holds


@contextmanager
def fake_weights() -> Iterator[None]:
    """Within it, modules are made and run with shapes alone: no weight takes memory."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.initialization import no_init_weights

    register_operators()
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights(), torch.no_grad():
        yield


def rotary_tables(rotary: Callable[..., Any], positions: int) -> dict[str, Float32]:
    """`cos` and `sin` [positions, head_dim / 2] of a transformers rotary embedding module built outside `fake_weights`."""
    import torch

    index = torch.arange(positions)[None]
    cos, sin = rotary(torch.zeros(1, dtype=torch.float32), index)
    half = cos.shape[-1] // 2
    return {"cos": cos[0, :, :half].contiguous().numpy(), "sin": sin[0, :, :half].contiguous().numpy()}


def _dynamic_shapes(inputs: Mapping[str, Any], ports: Iterator[Port]) -> dict[str, Any]:
    import torch

    dynamic = torch.export.Dim.DYNAMIC

    def shape(value: Any) -> Any:
        if isinstance(value, list):
            return [shape(item) for item in value]
        return {axis: dynamic for axis, size in enumerate(next(ports).shape) if isinstance(size, str)}

    return {name: shape(value) for name, value in inputs.items()}


@cache
def register_operators() -> None:
    """Make `torch.ops.ossicle` known to torch, once."""
    import torch

    torch.library.define(
        "ossicle::cached_attention",
        "(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor attention_mask, "
        "Tensor position_ids, Tensor cos, Tensor sin, int heads, int kv_heads, float scale) -> (Tensor, Tensor, Tensor)",
    )
    torch.library.define(
        "ossicle::attention", "(Tensor query, Tensor key, Tensor value, int heads, float scale) -> Tensor"
    )
    torch.library.define("ossicle::last", "(Tensor hidden, Tensor count) -> Tensor")
    torch.library.register_fake("ossicle::cached_attention")(_cached_attention_shapes)
    torch.library.register_fake("ossicle::attention")(_same_shape)
    # its true length is a value of `count`, which a shape cannot say; ports name the dimension
    torch.library.register_fake("ossicle::last")(_same_shape)


def _same_shape(values: Any, *_: Any) -> Any:
    return values.new_empty(values.shape)


def _cached_attention_shapes(
    query: Any, _key: Any, _value: Any, past_key: Any, past_value: Any, *_: Any
) -> tuple[Any, Any, Any]:
    batch, heads, past, width = past_key.shape
    present = (batch, heads, past + query.shape[1], width)
    return query.new_empty(query.shape), past_key.new_empty(present), past_value.new_empty(present)
