"""The tools that others build with, each step a process of its own: `python benchmarks/peers.py STEP ARGUMENTS`.

export-onnx CHECKPOINT OUT       transformers' exporter, float32
quantize-onnx FOLDER             ONNX Runtime's 4-bit quantizer, on every graph of a folder
export-openvino CHECKPOINT OUT   transformers' exporter, float32, the decoder stateful
compress-openvino FOLDER         NNCF's 4-bit weight compression, on every model of a folder
convert-coreml CHECKPOINT OUT    coremltools' converter, float16: encoder, embedding, and a decoder without a cache
quantize-coreml FOLDER           coremltools' 4-bit weight quantizer, on every package of a folder
quantize-gguf IN OUT TYPE        llama.cpp's quantizer, as package cyllama brings it
build-genai CHECKPOINT OUT       onnxruntime-genai's builder, int4 in groups of 32, of the text part alone
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROMPT = 64  # tokens of Core ML's decoder
_GGUF_TYPES = {
    "q4_0": 2,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
}


@dataclass(frozen=True)
class Step:
    """One process of a peer's way from a checkpoint to an artifact."""

    title: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    writes: Path | None = None  # the artifact, where it is the last


def onnx_steps(checkpoint: Path, folder: Path) -> list[Step]:
    """To ONNX with transformers and ONNX Runtime."""
    return [
        Step("transformers OnnxExporter, float32", _step("export-onnx", checkpoint, folder)),
        Step("ONNX Runtime MatMulNBitsQuantizer", _step("quantize-onnx", folder), writes=folder / "int4"),
    ]


def openvino_steps(checkpoint: Path, folder: Path) -> list[Step]:
    """To OpenVINO with transformers and NNCF."""
    return [
        Step("transformers OpenVINOExporter, float32", _step("export-openvino", checkpoint, folder)),
        Step("NNCF compress_weights", _step("compress-openvino", folder), writes=folder / "int4"),
    ]


def coreml_steps(checkpoint: Path, folder: Path) -> list[Step]:
    """To Core ML with coremltools."""
    return [
        Step("coremltools ct.convert, float16", _step("convert-coreml", checkpoint, folder)),
        Step("coremltools linear_quantize_weights", _step("quantize-coreml", folder), writes=folder / "int4"),
    ]


def gguf_steps(checkpoint: Path, folder: Path, sources: Path, kind: str) -> list[Step]:
    """To GGUF with the converter in llama.cpp's `sources` and its quantizer."""
    plain = with_tokenizer(checkpoint, folder / "checkpoint")
    convert = [sys.executable, str(sources / "convert_hf_to_gguf.py"), str(plain), "--outfile"]
    path = {"PYTHONPATH": str(sources)}  # its own modules, whatever PYTHONSAFEPATH says
    text, audio, last = folder / "text-bf16.gguf", folder / "mmproj-q8_0.gguf", folder / f"text-{kind}.gguf"
    return [
        Step("llama.cpp converter, text, bf16", [*convert, str(text), "--outtype", "bf16"], path),
        Step("llama.cpp converter, mmproj, q8_0", [*convert, str(audio), "--outtype", "q8_0", "--mmproj"], path),
        Step(f"llama.cpp quantizer, {kind}", _step("quantize-gguf", text, last, kind), writes=last),
    ]


def _step(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, __file__, name, *map(str, arguments)]


def with_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint again, as links, with tokenizer.json for tekken.json: the converter reads no other vocabulary here."""
    from ossicle.compiler.tokenizer import write_tokenizer

    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != "tekken.json":
            (folder / path.name).symlink_to(path.resolve())
    write_tokenizer(checkpoint, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def export_onnx(checkpoint: str, out: str) -> None:
    from transformers.exporters import OnnxConfig, OnnxExporter

    form = OnnxConfig(dynamic=True, ort_fusions="cpu")
    OnnxExporter().export_for_generation(*_model(checkpoint), form, multi_token_decode=True).save_pretrained(out)


def export_openvino(checkpoint: str, out: str) -> None:
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    form = OpenVINOConfig(dynamic=True)
    OpenVINOExporter().export_for_generation(*_model(checkpoint), form, multi_token_decode=True).save_pretrained(out)


def quantize_onnx(folder: str) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    out = _out(folder)
    for graph in sorted(Path(folder).glob("*.onnx")):
        quantizer = MatMulNBitsQuantizer(onnx.load(graph), block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out / graph.name), use_external_data_format=True)


def compress_openvino(folder: str) -> None:
    import nncf
    import openvino

    out = _out(folder)
    for path in sorted(Path(folder).glob("*.xml")):
        model = openvino.Core().read_model(path)
        compressed = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, all_layers=True
        )
        openvino.save_model(compressed, out / path.name, compress_to_fp16=False)


def convert_coreml(checkpoint: str, out: str) -> None:
    """Three packages; the decoder takes a prompt of a fixed length and keeps nothing, which is less than ossicle's does."""
    import coremltools as ct
    import numpy as np
    import torch

    model, inputs = _model(checkpoint)
    prompt = torch.zeros(1, _PROMPT, model.config.text_config.hidden_size)
    mask = torch.full((1, 1, _PROMPT, _PROMPT), -1e4).triu(1)
    for name, call, given in (
        ("audio_encoder", lambda mel: model.get_audio_features(mel).pooler_output, inputs["input_features"]),
        ("embed_tokens", model.get_input_embeddings(), inputs["input_ids"].int()),
        ("decoder", lambda rows: model(inputs_embeds=rows, attention_mask=mask, use_cache=False).logits, prompt),
    ):
        with torch.no_grad():
            traced = torch.jit.trace(_module(model, call), given, check_trace=False)
        package = ct.convert(
            traced,
            inputs=[ct.TensorType("given", given.shape, np.int32 if name == "embed_tokens" else np.float32)],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,
        )
        package.save(str(Path(out) / f"{name}.mlpackage"))
        del traced, package


def _module(model: Any, call: Callable[[Any], Any]) -> Any:
    """A call of a model as a module of its own, which is what the converter takes."""
    import torch

    class Call(torch.nn.Module):  # type: ignore[misc] # torch is not typed
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, given: Any) -> Any:
            return call(given)

    return Call().eval()


def quantize_coreml(folder: str) -> None:
    import coremltools as ct
    import coremltools.optimize.coreml as optimize

    form = optimize.OpLinearQuantizerConfig("linear_symmetric", "int4", "per_block", 32, weight_threshold=0)
    config = optimize.OptimizationConfig(global_config=form)
    out = _out(folder)
    for path in sorted(Path(folder).glob("*.mlpackage")):
        package = ct.models.MLModel(str(path), skip_model_load=True)
        optimize.linear_quantize_weights(package, config).save(str(out / path.name))


def _out(folder: str) -> Path:
    """Where the last step of a peer writes, new."""
    out = Path(folder) / "int4"
    out.mkdir()
    return out


def quantize_gguf(source: str, out: str, kind: str) -> None:
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = _GGUF_TYPES[kind], 0
    llama_cpp.model_quantize(source, out, params)


def build_genai(checkpoint: str, out: str) -> None:
    """The text part under OUT/text as a checkpoint of its own, and what the builder makes of it in OUT."""
    from onnxruntime_genai.models.builder import create_model
    from ossicle.compiler.tokenizer import write_tokenizer
    from safetensors import safe_open
    from safetensors.torch import save_file

    text, prefix = Path(out) / "text", "language_model."
    text.mkdir(parents=True)
    with safe_open(Path(checkpoint) / "model.safetensors", "pt") as stored:
        names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        save_file({name.removeprefix(prefix): stored.get_tensor(name) for name in names}, text / "model.safetensors")
    config = json.loads((Path(checkpoint) / "config.json").read_text())["text_config"]
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    (text / "config.json").write_text(json.dumps(config | ends | {"architectures": ["LlamaForCausalLM"]}))
    write_tokenizer(Path(checkpoint), text / "tokenizer.json")
    (text / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    create_model("", str(text), out, "int4", "cpu", f"{out}/cache", int4_block_size=32, int4_accuracy_level=4)


def _model(checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """The model in float32, and inputs of one window of silence."""
    import torch
    from transformers import VoxtralForConditionalGeneration

    model = VoxtralForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    positions = model.config.audio_config.max_source_positions
    ids = torch.full((1, positions // 4 + 3), model.config.audio_token_id)
    ids[0, 0] = ids[0, -1] = ids[0, -2] = 3
    features = torch.zeros(1, model.config.audio_config.num_mel_bins, 2 * positions)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "input_features": features}


_STEPS: Mapping[str, Callable[..., None]] = {
    "export-onnx": export_onnx,
    "quantize-onnx": quantize_onnx,
    "export-openvino": export_openvino,
    "compress-openvino": compress_openvino,
    "convert-coreml": convert_coreml,
    "quantize-coreml": quantize_coreml,
    "quantize-gguf": quantize_gguf,
    "build-genai": build_genai,
}


if __name__ == "__main__":
    _STEPS[sys.argv[1]](*sys.argv[2:])
