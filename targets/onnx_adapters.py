"""LoRA adapters beside an ONNX decoder: low-rank inputs of its graph, and files that hold what goes in.

Each matrix W [N, K] that an adapter changes computes

    y = x W^T + (x A) B        MODULE.lora_A [K, r]    MODULE.lora_B [r, N]

A and B are inputs of the graph with defaults of rank 0, which add nothing. The files are ONNX Runtime's own: whoever runs the
graph without ossicle can give one to `RunOptions.add_active_adapter`. Its scale alpha / r is in B.
Source: https://onnxruntime.ai/docs/api/python/api_summary.html (LoraAdapter, AdapterFormat).
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import BuildError, LowRankUpdate
from .onnx_weights import linear_weight

VERSION = 1


def inputs(tensor: str) -> tuple[str, str]:
    """The names of the two inputs for a matrix of this canonical name."""
    module = tensor.removesuffix(".weight")
    return f"{module}.lora_A", f"{module}.lora_B"


def check_installed() -> None:
    """Refuse where ONNX Runtime, which writes the files, cannot be imported.

    Raises:
        BuildError: with the reason and the pip command.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError as reason:
        raise BuildError(
            f"target 'onnx' needs ONNX Runtime to write adapters, which cannot be imported: {reason}. "
            'Install it with: pip install "ossicle[onnx]"'
        ) from reason


def open_inputs(model: Any, tensors: Collection[str]) -> None:
    """Give a graph low-rank inputs for these matrices, in what it computes in. The weights have no values yet.

    Raises:
        BuildError: the graph does not multiply with one of them.
    """
    named = ((linear_weight(node), node) for node in model.graph)
    products = {name: node for name, node in named if name is not None and name in tensors}
    if missing := sorted(set(tensors) - products.keys()):
        raise BuildError(
            f"target 'onnx' has no product with {', '.join(missing)} to add an adapter to. "
            "Merge the adapter instead: ossicle build CHECKPOINT --adapter PATH"
        )
    for name, node in products.items():
        _add_update(model, node, name)


def write(path: Path, updates: Mapping[str, LowRankUpdate], dtype: str) -> None:
    """Write an adapter's file, its updates by the canonical name of what they are added to."""
    from onnxruntime import AdapterFormat, OrtValue

    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in _arrays(updates, dtype)}
    held = AdapterFormat()
    held.set_adapter_version(VERSION)
    held.set_model_version(VERSION)
    held.set_parameters(values)  # it refers to the arrays of `values` alone
    held.export_adapter(str(path))


def _arrays(updates: Mapping[str, LowRankUpdate], dtype: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for tensor, update in updates.items():
        a, b = (one.rows(0, one.shape[0]).astype(np.float64).T for one in (update.a, update.b))
        for name, array in zip(inputs(tensor), (a, update.scale * b), strict=True):
            yield name, np.ascontiguousarray(array, dtype=dtype)


def _add_update(model: Any, node: Any, tensor: str) -> None:
    import onnx_ir as ir

    hidden, whole = node.inputs[0], node.outputs[0]
    rows, columns = node.inputs[1].producer().inputs[0].shape
    rank = f"{tensor}.rank"
    a, b = (
        _input(model, name, shape, whole.type)
        for name, shape in zip(inputs(tensor), ((columns, rank), (rank, rows)), strict=True)
    )
    down = ir.node("MatMul", [hidden, a], name=f"{node.name}_lora_A")
    up = ir.node("MatMul", [down.outputs[0], b], name=f"{node.name}_lora_B")
    total = ir.node("Add", [whole, up.outputs[0]], name=f"{node.name}_lora")
    name, added = whole.name, total.outputs[0]
    for one in (down, up, total):
        one.outputs[0].type = whole.type
        one.outputs[0].name = f"{one.name}_output"
    whole.replace_all_uses_with(added, replace_graph_outputs=True)
    total.replace_input_with(0, whole)
    added.shape = whole.shape
    added.name, whole.name = name, f"{name}_base"
    model.graph.insert_after(node, [down, up, total])


def _input(model: Any, name: str, shape: tuple[int | str, ...], type_: Any) -> Any:
    """An input of the graph that is empty where nothing is given."""
    import onnx_ir as ir

    value = ir.Value(name=name, type=type_, shape=ir.Shape(shape))
    empty = np.zeros([size if isinstance(size, int) else 0 for size in shape], type_.dtype.numpy())
    value.const_value = ir.tensor(empty, name=name)
    model.graph.inputs.append(value)
    model.graph.initializers[name] = value
    return value
