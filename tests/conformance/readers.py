"""Weights read back from artifacts by code that shares nothing with what wrote them: name -> float32 array."""

from pathlib import Path

import gguf
import numpy as np
import onnx
import openvino
from onnx import numpy_helper


def onnx_weights(files: list[Path]) -> dict[str, np.ndarray]:
    """Every weight of the `.onnx` files, as float32 in the checkpoint's own shape, integers times their scales."""
    weights: dict[str, np.ndarray] = {}
    for path in files:
        if path.suffix == ".onnx":
            weights |= _graph_weights(onnx.load(path))
    return weights


def _graph_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: _floats(name, value) for name, value in held.items() if value.dtype in (np.float32, np.float16)}
    for node in model.graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            names = [name for name in node.input if name.endswith((".codes", ".scales", ".zero_points"))]
            weights[names[0].removesuffix(".codes")] = _dequantized([held[name] for name in names], attributes)
    return {name.removesuffix(".T"): value for name, value in weights.items()}


def _floats(name: str, value: np.ndarray) -> np.ndarray:
    value = value.astype(np.float32)
    return value.T if name.endswith(".T") else value


def _dequantized(parts: list[np.ndarray], attributes: dict[str, int]) -> np.ndarray:
    """Unpacked by hand: element j of a row is in the low or high half of byte j // 2, or byte j itself."""
    bits, group = attributes["bits"], attributes["block_size"]
    packed = parts[0].reshape(attributes.get("N", len(parts[0])), -1)
    codes = _unpacked(packed, bits).astype(np.float32)
    rows, columns = codes.shape
    groups = -(-columns // group)
    zeros = np.full((rows, groups), 2 ** (bits - 1), np.float32)
    if len(parts) == 3:
        zeros = _unpacked(parts[2].reshape(rows, -1), bits)[:, :groups].astype(np.float32)
    scales = parts[1].astype(np.float32).reshape(rows, groups)
    spread = [np.repeat(values, group, axis=1)[:, :columns] for values in (zeros, scales)]
    return ((codes - spread[0]) * spread[1])[:, : attributes.get("K", columns)]


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed % 16, packed // 16], axis=-1).reshape(len(packed), -1)


_GGUF_NAMES = {
    "token_embd.weight": "model.language_model.embed_tokens.weight",
    "output_norm.weight": "model.language_model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_weights(files: list[Path]) -> dict[str, np.ndarray]:
    """Every weight of the decoder's `.gguf` file, read by gguf-py, as float32 with q/k rows in transformers' order."""
    weights: dict[str, np.ndarray] = {}
    for path in files:
        if not path.name.startswith("mmproj"):
            weights |= _decoder_weights(gguf.GGUFReader(path))
    return weights


def _decoder_weights(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    def size(key: str) -> int:
        return int(reader.fields[f"llama.attention.{key}"].contents())

    heads = {"attn_q": size("head_count"), "attn_k": size("head_count_kv")}
    weights = {}
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        name = _GGUF_NAMES.get(tensor.name)
        if name is None:
            _, layer, module, kind = tensor.name.split(".")
            name = f"model.language_model.layers.{layer}.{_GGUF_NAMES[module]}.{kind}"
            if module in heads:
                halves = values.reshape(heads[module], size("key_length") // 2, 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
        weights[name] = values
    return weights


def openvino_weights(files: list[Path]) -> dict[str, np.ndarray]:
    """Every weight of the `.xml` files that have a `.bin`, read by OpenVINO, as float32 in the checkpoint's own shape."""
    weights: dict[str, np.ndarray] = {}
    for path in files:
        if path.with_suffix(".xml") in files and path.suffix == ".bin":
            weights |= _model_weights(openvino.Core().read_model(path.with_suffix(".xml")))
    return weights


def _model_weights(model: openvino.Model) -> dict[str, np.ndarray]:
    held = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    weights = {}
    for name, node in held.items():
        if name.endswith((".weight", ".bias")):
            weights[name] = node.data.astype(np.float32)
        elif name.endswith(".codes"):
            stem = name.removesuffix(".codes")
            codes, scales = _constant(node), held[f"{stem}.scales"].data.astype(np.float32)
            zeros = _constant(held[f"{stem}.zero_points"]) if f"{stem}.zero_points" in held else np.float32(0)
            weights[stem] = ((codes - zeros) * scales).reshape(len(codes), -1)[:, : _columns(node)]
    return weights


def _columns(node: openvino.Node) -> int:
    """Columns that a matrix has without those that only fill its last group: as many as what it is multiplied with."""
    while node.get_type_name() not in ("MatMul", "Result"):
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    other = node.input_value(0)
    if other.get_node().get_type_name() == "Pad":
        other = other.get_node().input_value(0)
    return other.get_partial_shape()[-1].get_length()


def _constant(node: openvino.Node) -> np.ndarray:
    """Numbers of a constant as float32; four-bit ones unpacked by hand, the even one in the low half of a byte.

    Three-bit ones by OpenVINO, less the four that is subtracted of them.
    """
    kind, shape = node.get_element_type().get_type_name(), tuple(node.shape)
    if kind in ("i8", "u8"):
        return node.data.astype(np.float32)
    if kind == "u3":
        return node.get_data(dtype=np.float32) - 4
    codes = _unpacked(node.data.reshape(1, -1), 4).ravel()[: int(np.prod(shape))].reshape(shape).astype(np.float32)
    return np.where(codes > 7, codes - 16, codes) if kind == "i4" else codes


def tensorrt_weights(files: list[Path]) -> dict[str, np.ndarray]:
    """Every weight of the `.onnx` files, as float32 in the checkpoint's own shape, what is packed taken apart by hand."""
    weights: dict[str, np.ndarray] = {}
    for path in files:
        if path.suffix == ".onnx":
            weights |= _typed_weights(onnx.load(path))
    return weights


def _typed_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    floats = {name: value for name, value in held.items() if value.dtype in (np.float32, np.float16)}
    weights = {name.removesuffix(".T"): _floats(name, value) for name, value in floats.items()}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            values = _unpacked_columns(held, node)
            weights[node.input[0].removesuffix(".codes")] = values[:, : values.shape[1] - _padding(model, held, node)]
        elif node.op_type == "Gather" and node.input[0].endswith(".codes"):
            width = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
            weights[node.input[0].removesuffix(".codes")] = _unpacked_words(held, node.input[0])[:, :width]
    return weights


def _unpacked_columns(held: dict[str, np.ndarray], node: onnx.NodeProto) -> np.ndarray:
    """A matrix stored by columns, each with a scale for every block of it or for all of it."""
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    codes, scales = (held[name] for name in node.input)
    assert (len(node.input), attributes["axis"]) == (2, 0 if "block_size" in attributes else 1)
    spread = np.repeat(scales, attributes["block_size"], 0) if "block_size" in attributes else scales
    return (codes.astype(np.float32) * spread.astype(np.float32)).T


def _padding(model: onnx.ModelProto, held: dict[str, np.ndarray], node: onnx.NodeProto) -> int:
    """How many columns of a matrix only make its last group whole: as many as what it is multiplied with is padded by."""
    product = next(one for one in model.graph.node if node.output[0] in one.input)
    maker = next((one for one in model.graph.node if product.input[0] in one.output), None)
    return int(held[maker.input[1]][-1]) if maker is not None and maker.op_type == "Pad" else 0


def _unpacked_words(held: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The rows of a table as they are looked up, each product rounded to the type of its scale."""
    words, scales = held[name], held[f"{name.removesuffix('.codes')}.scales"]
    codes = np.stack([words >> shift & 255 for shift in (0, 8, 16, 24)], axis=-1).reshape(len(words), -1) - 128
    return (codes.astype(scales.dtype) * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)).astype(
        np.float32
    )


def coreml_weights(files: list[Path]) -> dict[str, np.ndarray]:
    """Every weight of the packages, its numbers read by coremltools, as float32 in the checkpoint's own shape.

    A constant that is multiplied out has the type of its scales: its numbers are rounded to that.
    """
    weights: dict[str, np.ndarray] = {}
    for path in files:
        if path.name == "model.mlmodel":
            weights |= _program_weights(path)
    return weights


def _program_weights(path: Path) -> dict[str, np.ndarray]:
    from coremltools.libmilstoragepython import _BlobStorageReader
    from coremltools.proto import Model_pb2

    program = Model_pb2.Model.FromString(path.read_bytes()).mlProgram
    function = next(iter(program.functions.values()))
    operations = function.block_specializations[function.opset].operations
    reader = _BlobStorageReader(str(path.parent / "weights" / "weight.bin"))
    dense: dict[str, np.ndarray] = {}
    widths = {value.name: _shape(value.type)[-1:] for value in (*function.inputs, *_results(operations))}
    weights = {}
    for operation in operations:
        name = operation.attributes["name"].immediateValue.tensor.strings.values[0]
        if operation.type.startswith("constexpr"):
            made, entries = operation.outputs[0].name, operation.inputs.items()
            given = {key: _given(reader, one.arguments[0], dense) for key, one in entries}
            dense[made] = _multiplied_out(given) if "data" in given else _looked_up(given)
            if not name.endswith(".integers"):
                weights[name] = dense[made][:, : _used_columns(made, operations, widths)]
        elif operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            weights[name] = _blob(reader, operation.attributes["val"]).astype(np.float32)
    return weights


def _given(reader, argument, dense: dict[str, np.ndarray]) -> np.ndarray:
    """What an operation is given: a record, or the result of another."""
    return dense[argument.name] if argument.WhichOneof("binding") == "name" else _blob(reader, argument.value)


def _blob(reader, value) -> np.ndarray:
    from coremltools.proto import MIL_pb2

    kind, shape = MIL_pb2.DataType.Name(value.type.tensorType.dataType), _shape(value.type)
    read = getattr(reader, f"read_{ {'FLOAT16': 'fp16', 'FLOAT32': 'float'}.get(kind, kind.lower()) }_data")
    numbers = np.asarray(read(value.blobFileValue.offset))
    return (numbers.view(np.float16) if kind == "FLOAT16" else numbers)[: int(np.prod(shape))].reshape(shape)


def _multiplied_out(given: dict[str, np.ndarray]) -> np.ndarray:
    data, scale = given["data"].astype(np.float32), given["scale"]
    group = data.shape[1] // scale.shape[1]
    offset = given.get("offset", np.zeros(scale.shape, np.float32)).astype(np.float32)
    dense = (data - np.repeat(offset, group, axis=1)) * np.repeat(scale.astype(np.float32), group, axis=1)
    return dense.astype(scale.dtype).astype(np.float32)


def _looked_up(given: dict[str, np.ndarray]) -> np.ndarray:
    indices, tables = given["indices"].astype(np.intp), given["lut"].astype(np.float32)
    spread = np.repeat(tables[:, 0, :, 0], len(indices) // len(tables), axis=0)
    return np.take_along_axis(spread, indices, axis=1)


def _used_columns(name: str, operations, widths: dict[str, tuple[int, ...]]) -> int:
    """Columns that a matrix has without those that only fill its last group."""
    user = next(one for one in operations if any(name == given.arguments[0].name for given in one.inputs.values()))
    if user.type == "gather":
        rows = user.outputs[0].name
        cut = next((one for one in operations if "x" in one.inputs and one.inputs["x"].arguments[0].name == rows), user)
        return widths[cut.outputs[0].name][0]
    factor = user.inputs["x"].arguments[0].name
    padded = next((one for one in operations if one.type == "pad" and one.outputs[0].name == factor), None)
    return widths[padded.inputs["x"].arguments[0].name if padded else factor][0]


def _results(operations) -> list:
    return [value for operation in operations for value in operation.outputs]


def _shape(kind) -> tuple[int, ...]:
    return tuple(dimension.constant.size for dimension in kind.tensorType.dimensions)


READERS = {
    "onnx": onnx_weights,
    "openvino": openvino_weights,
    "gguf": gguf_weights,
    "tensorrt": tensorrt_weights,
    "coreml": coreml_weights,
}
