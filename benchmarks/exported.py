"""transformers' exports, quantized and run: `exported.py quantize-onnx|quantize-openvino FOLDER`, after benchmarks/peers.py.

FOLDER has the float32 graphs `audio_encoder`, `multi_modal_projector`, `language_model`, `lm_head` and `decode`. FOLDER/int4
gets them from the usual quantizer of their engine, the text graphs in 4 bits, symmetric, in groups of 128, the audio graphs in
8: ONNX Runtime's MatMulNBitsQuantizer (accuracy level 4: integers are multiplied) and its dynamic quantization; for OpenVINO
NNCF's weight compression. The matrices of the text are there twice: `language_model` takes embeddings and no cache, `decode`
takes ids and a cache. So a prompt with audio goes through the one, and its keys and values are handed to the other. No graph
embeds text alone: whoever runs them takes those rows from the checkpoint.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ossicle.runtimes.processor import physical_cores
from ossicle.targets.contract import Float32

_AUDIO, _TEXT = ("audio_encoder", "multi_modal_projector"), ("language_model", "lm_head", "decode")
_GROUP = 128
_CACHE = "past_key_values."
_STACKED = 4  # positions of the encoder behind one embedding


class Export(Protocol):
    """The graphs of an export, opened."""

    def hear(self, mel: Float32) -> Float32:
        """Embeddings [tokens, hidden] of a log-mel window [1, bins, frames]."""

    def read(self, rows: Float32) -> Float32:
        """Logits [vocabulary] behind a prompt of embeddings [tokens, hidden]; what was read before is forgotten."""

    def step(self, token: int) -> Float32:
        """Logits [vocabulary] behind one more token."""


class OnnxExport:
    """On ONNX Runtime's CPU provider, a thread for each core; keys and values stay its own values from step to step."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = physical_cores()
        providers = ["CPUExecutionProvider"]
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._sessions = {
            path.stem: onnxruntime.InferenceSession(path, options, providers=providers)
            for path in _files(folder, ".onnx")
        }
        self._cache: dict[str, Any] = {}
        self._length = 0

    def hear(self, mel: Float32) -> Float32:
        hidden = self._run("audio_encoder", {"input_features": mel})["last_hidden_state"].numpy()
        (rows,) = self._run("multi_modal_projector", {"audio_features": _stacked(hidden)}).values()
        return np.asarray(rows.numpy(), np.float32)

    def read(self, rows: Float32) -> Float32:
        self._length = len(rows)
        found = self._run("language_model", {"inputs_embeds": rows[None], **_places(0, len(rows))})
        self._cache = _cache(found)
        (logits,) = self._run("lm_head", {"input": found["last_hidden_state"].numpy()[:, -1:]}).values()
        return np.asarray(logits.numpy()[0, -1])

    def step(self, token: int) -> Float32:
        given = {"input_ids": np.array([[token]]), **_places(self._length, 1), **self._cache}
        found = self._run("decode", given)
        self._cache, self._length = _cache(found), self._length + 1
        return np.asarray(found["logits"].numpy()[0, -1])

    def _run(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        session = self._sessions[name]
        feeds = _chosen((one.name for one in session.get_inputs()), given)
        values = {key: self._value(one) if isinstance(one, np.ndarray) else one for key, one in feeds.items()}
        names = [one.name for one in session.get_outputs()]
        return dict(zip(names, session.run_with_ort_values(names, values), strict=True))


class OpenVinoExport:
    """On OpenVINO's CPU plugin with the settings of transformers' own runner; `decode` keeps keys and values as its state."""

    def __init__(self, folder: Path) -> None:
        import openvino

        core, settings = openvino.Core(), {"PERFORMANCE_HINT": "LATENCY"}
        self._tensor = openvino.Tensor
        self._requests = {
            path.stem.removeprefix("openvino_"): core.compile_model(path, "CPU", settings).create_infer_request()
            for path in _files(folder, ".xml")
        }
        self._length = 0

    def hear(self, mel: Float32) -> Float32:
        hidden = self._run("audio_encoder", {"input_features": mel})["last_hidden_state"]
        (rows,) = self._run("multi_modal_projector", {"audio_features": _stacked(hidden)}).values()
        return np.array(rows)

    def read(self, rows: Float32) -> Float32:
        self._length = len(rows)
        found = self._run("language_model", {"inputs_embeds": rows[None], **_places(0, len(rows))})
        cache = _cache(found)
        for state in self._requests["decode"].query_state():
            name = state.name.partition("output.")[0]  # the name of its input, followed by that of its output
            state.state = self._tensor(np.ascontiguousarray(cache[name]))
        (logits,) = self._run("lm_head", {"input": found["last_hidden_state"][:, -1:]}).values()
        return np.array(logits[0, -1])

    def step(self, token: int) -> Float32:
        given = {"input_ids": np.array([[token]]), "beam_idx": np.zeros(1, np.int32), **_places(self._length, 1)}
        self._length += 1
        return np.array(self._run("decode", given)["logits"][0, -1])

    def _run(self, name: str, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A graph's outputs by name, valid until it runs again."""
        request = self._requests[name]
        feeds = _chosen((port.any_name for port in request.model_inputs), given)
        found = request.infer(feeds, share_inputs=True, share_outputs=True)
        return {port.any_name: found[port] for port in request.model_outputs}


def _files(folder: Path, suffix: str) -> list[Path]:
    """The graphs of an export.

    Raises:
        FileNotFoundError: some are not there.
    """
    found = sorted(folder.glob(f"*{suffix}"))
    missing = sorted({*_AUDIO, *_TEXT} - {path.stem.removeprefix("openvino_") for path in found})
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: run benchmarks/peers.py and exported.py for it")
    return found


def _stacked(hidden: Float32) -> Float32:
    """[1, positions, width] as the projector takes it: [positions / 4, 4 * width]."""
    return hidden.reshape(-1, _STACKED * hidden.shape[-1])


def _places(start: int, count: int) -> dict[str, NDArray[np.int64]]:
    """What the graphs may ask for of the positions of new tokens and of those before them."""
    places = np.arange(start, start + count)
    return {
        "position_ids": places[None],
        "cache_position": places,
        "attention_mask": np.ones((1, start + count), np.int64),
    }


def _cache(found: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values among a graph's outputs, by the names that `decode` takes them under."""
    paths = {name.removeprefix("output."): value for name, value in found.items()}
    return {f"input.{path}": value for path, value in paths.items() if path.startswith(_CACHE)}


def _chosen(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph takes.

    Raises:
        KeyError: nothing is known of one of its inputs.
    """
    return {name: given[name] for name in names}


def quantize_onnx(folder: str) -> None:
    out = Path(folder) / "int4"
    out.mkdir()
    for names, quantize in ((_AUDIO, _quantize_audio), (_TEXT, _quantize_text)):
        for name in names:
            quantize(Path(folder) / f"{name}.onnx", out / f"{name}.onnx")
            gc.collect()  # the next one needs the room


def _quantize_audio(source: Path, out: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the quantizer turns matrices over, and then finds these shapes wrong
    quantize_dynamic(
        model,
        out,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _quantize_text(source: Path, out: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=_GROUP, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=True)


def quantize_openvino(folder: str) -> None:
    import nncf
    import openvino

    four = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": _GROUP, "all_layers": True}
    out = Path(folder) / "int4"
    out.mkdir()
    for name in (*_AUDIO, *_TEXT):
        model = openvino.Core().read_model(Path(folder) / f"openvino_{name}.xml")
        compressed = nncf.compress_weights(model, **(four if name in _TEXT else {}))
        openvino.save_model(compressed, out / f"openvino_{name}.xml", compress_to_fp16=False)


_STEPS: Mapping[str, Callable[[str], None]] = {"quantize-onnx": quantize_onnx, "quantize-openvino": quantize_openvino}


if __name__ == "__main__":
    _STEPS[sys.argv[1]](*sys.argv[2:])
