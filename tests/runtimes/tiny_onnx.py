"""A bundle of hand-made ONNX graphs, in both forms of the decoder, and the same model in numpy as its reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ossicle.targets import manifest
from ossicle.targets.contract import Artifact, Float32, Memory
from ossicle.tests.fakes import AUDIO, TEXT, write_bundle

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, POSITIONS = 64, 4, 2, 16, 512, 1024
LAYERS = 2

Form = Literal["fused", "standard"]


@dataclass(frozen=True)
class Layer:
    """Projections [in, out] of one layer: attention with a residual, and nothing else."""

    query: Float32
    key: Float32
    value: Float32
    out: Float32


@dataclass(frozen=True)
class Weights:
    """The whole model."""

    encoder: Float32  # [mel bins, hidden]
    embedding: Float32
    layers: tuple[Layer, ...]
    head: Float32
    cos: Float32  # [positions, head_dim / 2]
    sin: Float32


def weights(seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Float32:
        return np.asarray(random.normal(0, rows**-0.5, (rows, columns)), np.float32)

    kv = KV_HEADS * HEAD_DIM
    angles = np.arange(POSITIONS)[:, None] / 100.0 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    return Weights(
        encoder=matrix(128, HIDDEN),
        embedding=np.asarray(random.normal(0, 1, (VOCABULARY, HIDDEN)), np.float32),
        layers=tuple(
            Layer(matrix(HIDDEN, HIDDEN), matrix(HIDDEN, kv), matrix(HIDDEN, kv), matrix(HIDDEN, HIDDEN))
            for _ in range(LAYERS)
        ),
        head=matrix(HIDDEN, VOCABULARY),
        cos=np.cos(angles).astype(np.float32),
        sin=np.sin(angles).astype(np.float32),
    )


def reference(model: Weights, embeddings: Float32) -> Float32:
    """Logits [sequence, vocabulary] at every position of one sequence [sequence, hidden], in float64."""
    hidden, length = embeddings.astype(np.float64), len(embeddings)
    causal = np.where(np.tri(length, dtype=bool), 0.0, -np.inf)
    for layer in model.layers:
        query, key, value = (
            (hidden @ matrix).reshape(length, -1, HEAD_DIM).swapaxes(0, 1)
            for matrix in (layer.query, layer.key, layer.value)
        )
        query, key = _rotated(model, query), np.repeat(_rotated(model, key), HEADS // KV_HEADS, 0)
        scores = query @ key.swapaxes(1, 2) / HEAD_DIM**0.5 + causal
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        heard = shares / shares.sum(-1, keepdims=True) @ np.repeat(value, HEADS // KV_HEADS, 0)
        hidden = hidden + heard.swapaxes(0, 1).reshape(length, HIDDEN) @ layer.out
    return np.asarray(hidden @ model.head, np.float32)


def _rotated(model: Weights, heads: Any) -> Any:
    cos, sin = model.cos[: heads.shape[1]], model.sin[: heads.shape[1]]
    left, right = np.split(heads, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def write_onnx_bundle(folder: Path, model: Weights, form: Form, *, dtype: type = np.float32) -> manifest.Manifest:
    """Write the model as a bundle for ONNX Runtime."""
    written = write_bundle(folder)
    (folder / "onnx").mkdir()
    graphs = {
        "audio_encoder": _encoder(model),
        "embed_tokens": _embedding(model),
        "decoder": _decoder(model, form, np.dtype(dtype)),
    }
    artifacts = []
    for stage, graph in graphs.items():
        path = folder / "onnx" / f"{stage}.onnx"
        path.write_bytes(graph.SerializeToString())
        entry = manifest.file_entry(folder, path)
        artifacts.append(Artifact("onnx", stage, "fp32", "float32", (entry,), (), (), {}, Memory(entry.size)))
    text = replace(TEXT, hidden=HIDDEN, layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, context=POSITIONS)
    written = replace(written, artifacts=tuple(artifacts), text=text)
    manifest.write(folder, written)
    return written


class _Graph:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        from onnx import helper

        names = list(outputs) or [f"value{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
        """The finished model; ports are {name: (numpy dtype, shape)}."""
        from onnx import helper

        def ports(described: dict[str, Any]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
                for name, (dtype, shape) in described.items()
            ]

        graph = helper.make_graph(self.nodes, "tiny", ports(inputs), ports(outputs), self.weights)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _encoder(model: Weights) -> Any:
    graph, tokens = _Graph(), AUDIO.tokens_per_window
    frames = graph.node("Reshape", ["audio_values", graph.constant([0, 128, tokens, 8])])
    pooled = graph.node("ReduceMean", [frames, graph.constant([3])], keepdims=0)
    columns = graph.node("Transpose", [pooled], perm=[0, 2, 1])
    graph.node("MatMul", [columns, graph.constant(model.encoder)], ["audio_features"])
    return graph.model(
        {"audio_values": (np.float32, ["n", 128, 3000])}, {"audio_features": (np.float32, ["n", tokens, HIDDEN])}
    )


def _embedding(model: Weights) -> Any:
    graph = _Graph()
    graph.node("Gather", [graph.constant(model.embedding), "input_ids"], ["inputs_embeds"])
    return graph.model({"input_ids": (np.int64, ["b", "s"])}, {"inputs_embeds": (np.float32, ["b", "s", HIDDEN])})


def _decoder(model: Weights, form: Form, dtype: np.dtype[Any]) -> Any:
    graph = _Graph()
    inputs: dict[str, Any] = {
        "inputs_embeds": (np.float32, ["batch_size", "sequence_length", HIDDEN]),
        "attention_mask": (np.int64, ["batch_size", "total"]),
        "num_logits_to_keep": (np.int64, []),
    }
    if form == "standard":
        inputs["position_ids"] = (np.int64, ["batch_size", "sequence_length"])
    outputs: dict[str, Any] = {"logits": (np.float32, ["batch_size", "kept", VOCABULARY])}
    hidden = graph.node("Cast", ["inputs_embeds"], to=_code(dtype))
    attend = _fused(graph, model, dtype) if form == "fused" else _standard(graph, model)
    for i, layer in enumerate(model.layers):
        past = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
        present = [f"present.{i}.{kind}" for kind in ("key", "value")]
        inputs |= {name: (dtype, ["batch_size", KV_HEADS, "past", HEAD_DIM]) for name in past}
        outputs |= {name: (dtype, ["batch_size", KV_HEADS, "present", HEAD_DIM]) for name in present}
        projections = [
            graph.node("MatMul", [hidden, graph.constant(matrix.astype(dtype))])
            for matrix in (layer.query, layer.key, layer.value)
        ]
        heard = attend(projections, past, present)
        hidden = graph.node("Add", [hidden, graph.node("MatMul", [heard, graph.constant(layer.out.astype(dtype))])])
    start = graph.node("Unsqueeze", [graph.node("Neg", ["num_logits_to_keep"]), graph.constant([0])])
    kept = graph.node("Slice", [hidden, start, graph.constant([2**60]), graph.constant([1])])
    logits = graph.node("MatMul", [kept, graph.constant(model.head.astype(dtype))])
    graph.node("Cast", [logits], ["logits"], to=_code(np.dtype(np.float32)))
    return graph.model(inputs, outputs)


def _code(dtype: np.dtype[Any]) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _fused(graph: _Graph, model: Weights, dtype: np.dtype[Any]) -> Any:
    held = graph.node("ReduceSum", ["attention_mask", graph.constant([1])], keepdims=0)
    lengths = graph.node("Cast", [graph.node("Sub", [held, graph.constant(1)])], to=_code(np.dtype(np.int32)))
    width = graph.node("Gather", [graph.node("Shape", ["attention_mask"]), graph.constant(1)])
    total = graph.node("Cast", [width], to=_code(np.dtype(np.int32)))
    tables = [graph.constant(model.cos.astype(dtype)), graph.constant(model.sin.astype(dtype))]

    def attend(projections: list[str], past: list[str], present: list[str]) -> str:
        return graph.node(
            "GroupQueryAttention",
            [*projections, *past, lengths, total, *tables],
            [f"heard.{present[0]}", *present],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )

    return attend


def _standard(graph: _Graph, model: Weights) -> Any:
    cos, sin = (
        graph.node("Unsqueeze", [graph.node("Gather", [graph.constant(t), "position_ids"]), graph.constant([1])])
        for t in (model.cos, model.sin)
    )
    blocked = _blocked(graph)

    def split(projection: str, heads: int) -> str:
        shaped = graph.node("Reshape", [projection, graph.constant([0, 0, heads, HEAD_DIM])])
        return graph.node("Transpose", [shaped], perm=[0, 2, 1, 3])

    def rotate(heads: str) -> str:
        left, right = f"{heads}.left", f"{heads}.right"
        graph.node("Split", [heads], [left, right], axis=-1, num_outputs=2)
        turned_left = graph.node("Sub", [graph.node("Mul", [left, cos]), graph.node("Mul", [right, sin])])
        turned_right = graph.node("Add", [graph.node("Mul", [right, cos]), graph.node("Mul", [left, sin])])
        return graph.node("Concat", [turned_left, turned_right], axis=-1)

    def repeat(heads: str) -> str:
        return graph.node("Gather", [heads, graph.constant(np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS))], axis=1)

    def attend(projections: list[str], past: list[str], present: list[str]) -> str:
        query = rotate(split(projections[0], HEADS))
        graph.node("Concat", [past[0], rotate(split(projections[1], KV_HEADS))], [present[0]], axis=2)
        graph.node("Concat", [past[1], split(projections[2], KV_HEADS)], [present[1]], axis=2)
        key = graph.node("Transpose", [repeat(present[0])], perm=[0, 1, 3, 2])
        scale = graph.constant(np.float32(HEAD_DIM**-0.5))
        scores = graph.node("Mul", [graph.node("MatMul", [query, key]), scale])
        masked = graph.node("Where", [blocked, graph.constant(np.float32(-1e30)), scores])
        heard = graph.node("MatMul", [graph.node("Softmax", [masked], axis=-1), repeat(present[1])])
        rows = graph.node("Transpose", [heard], perm=[0, 2, 1, 3])
        return graph.node("Reshape", [rows, graph.constant([0, 0, HIDDEN])])

    return attend


def _blocked(graph: _Graph) -> str:
    """True [batch, 1, new, total] where a new token may not look: at padding, or at what comes after it."""
    total = graph.node("Gather", [graph.node("Shape", ["attention_mask"]), graph.constant(1)])
    new = graph.node("Gather", [graph.node("Shape", ["inputs_embeds"]), graph.constant(1)])
    zero, one = graph.constant(0), graph.constant(1)
    slots = graph.node("Range", [zero, total, one])
    own = graph.node("Range", [graph.node("Sub", [total, new]), total, one])
    later = graph.node("Greater", [slots, graph.node("Unsqueeze", [own, graph.constant([1])])])
    padding = graph.node("Equal", ["attention_mask", zero])
    return graph.node("Or", [graph.node("Unsqueeze", [padding, graph.constant([1, 2])]), later])
