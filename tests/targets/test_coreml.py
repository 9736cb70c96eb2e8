"""Core ML packages: coremltools takes them, the integers are those of ONNX, and the same inputs give the same bytes."""

import json
import logging
import math
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import Silent, build
from ossicle.compiler.quantize import Weights
from ossicle.compiler.trace import trace
from ossicle.runtimes.mil.interpreter import Program
from ossicle.targets import coreml_graph
from ossicle.targets.contract import STAGES, BuildError, CheckpointError, RecipeError, WeightFormat
from ossicle.targets.coreml import Coreml
from ossicle.targets.onnx import Onnx
from ossicle.targets.recipes import PALETTE3, PALETTE4, RECIPES
from ossicle.tests import checkpoints
from ossicle.tests.targets.conftest import LongModel

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of what a machine without Core ML lacks

import coremltools  # noqa: E402
from coremltools.converters.mil.frontend.milproto import load as milproto  # noqa: E402
from coremltools.libmilstoragepython import _BlobStorageReader  # noqa: E402

CONTEXT = 96
PALETTES = replace(
    RECIPES["fp16"], name="palettes", encoder=PALETTE4, embedding=PALETTE3, decoder=PALETTE3, lm_head=PALETTE4
)
TABLE = {"fp32": RECIPES["fp32"], "fp16": RECIPES["fp16"], "palettes": PALETTES} | {
    name: RECIPES[name] for name in ("int8", "int4", "int4-asymmetric", "int4-g128", "int3")
}
QUANTIZED = ("int8", "int4", "int4-asymmetric", "int4-g128")


class Model:
    """A tiny model with its checkpoint and graphs, and what is lowered from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.original = checkpoints.model()
        self.checkpoint = open_checkpoint(checkpoints.save_hub(folder / "checkpoint", self.original))
        self.traced = trace("voxtral", self.checkpoint.config, CONTEXT)

    def lower(self, recipe: str, target: Any = None, stages: tuple[str, ...] = STAGES) -> Path:
        """A folder with artifacts, made once."""
        target = target or Coreml()
        folder = self.folder / f"{recipe}-{target.name}"
        for name in stages:
            made = target.name != "coreml" or (folder / "coreml" / f"{name}.mlpackage").exists()
            if not made or target.name != "coreml":
                target.lower(self.traced.stage(name), TABLE[recipe], self.weights(recipe), folder, Silent())
        return folder

    def package(self, recipe: str, stage: str) -> Path:
        return self.lower(recipe, stages=(stage,)) / "coreml" / f"{stage}.mlpackage"

    def weights(self, recipe: str) -> Weights:
        return Weights(self.checkpoint.tensors, TABLE[recipe], family("voxtral"), self.checkpoint.tied)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("recipe", TABLE)
@pytest.mark.parametrize("stage", STAGES)
def test_coremltools_infers_the_types_that_are_declared(model: Model, recipe: str, stage: str) -> None:
    """Its reader makes every operation anew, by its own rules, and refuses a type that differs."""
    package = model.package(recipe, stage)
    opened = coremltools.models.MLModel(str(package), skip_model_load=True)
    program = milproto.load(opened.get_spec(), opened.get_spec().specificationVersion, str(data(package) / "weights"))
    expected = ["prefill", "decode"] if stage == "decoder" else ["main"]
    assert sorted(program.functions) == sorted(expected)
    for name, function in program.functions.items():
        described = description(opened.get_spec(), name)
        assert [value.name for value in function.outputs] == [feature.name for feature in described.output]
        assert {*function.inputs} == {feature.name for feature in (*described.input, *described.state)}
        assert all(float_type(value.dtype) in (None, compute(recipe)) for value in function.outputs)


def data(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML"


def description(spec: Any, name: str) -> Any:
    return next((one for one in spec.description.functions if one.name == name), spec.description)


def compute(recipe: str) -> str:
    return "fp32" if recipe == "fp32" else "fp16"


def float_type(dtype: Any) -> str | None:
    return {"fp32": "fp32", "fp16": "fp16"}.get(dtype.__name__)


def test_the_decoder_keeps_states_that_both_functions_share(model: Model) -> None:
    spec = coremltools.models.MLModel(str(model.package("fp16", "decoder")), skip_model_load=True).get_spec()
    states = {
        function.name: {
            state.name: (list(state.type.stateType.arrayType.shape), state.type.stateType.arrayType.dataType)
            for state in function.state
        }
        for function in spec.description.functions
    }
    half = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16
    assert states["prefill"] == states["decode"]
    assert states["decode"] == {
        f"{part}_cache_{layer}": ([1, 2, CONTEXT, 16], half) for part in ("key", "value") for layer in (0, 1)
    }
    assert spec.description.defaultFunctionName == "prefill"


def test_float32_passes_keys_and_values_in_and_out(model: Model) -> None:
    """States are float16 by Core ML's contract: coremltools refuses to write others."""
    spec = coremltools.models.MLModel(str(model.package("fp32", "decoder")), skip_model_load=True).get_spec()
    for function in spec.description.functions:
        names = [feature.name for feature in function.input if "cache" in feature.name]
        assert len(names) == 4
        assert [f"new_{name}" for name in names] == [
            feature.name for feature in function.output if "cache" in feature.name
        ]
        assert not function.state


def test_a_chunk_may_have_any_length_and_a_step_has_fixed_shapes(model: Model) -> None:
    spec = coremltools.models.MLModel(str(model.package("int4", "decoder")), skip_model_load=True).get_spec()
    prefill, decode = (description(spec, name) for name in ("prefill", "decode"))
    ranges = {feature.name: bounds(feature) for feature in prefill.input}
    assert ranges == {
        "inputs_embeds": [(1, 1), (1, CONTEXT), (48, 48)],
        "position_ids": [(1, 1), (1, CONTEXT)],
        "logit_positions": [(1, CONTEXT)],
    }
    assert {feature.name: bounds(feature) for feature in decode.input} == {"inputs_embeds": [], "position_ids": []}
    assert [list(feature.type.multiArrayType.shape) for feature in decode.input] == [[1, 1, 48], [1, 1]]


def bounds(feature: Any) -> list[tuple[int, int]]:
    return [(size.lowerBound, size.upperBound) for size in feature.type.multiArrayType.shapeRange.sizeRanges]


def stored(package: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """What each constant of the first function is made of, by its title: (type, numbers), read by coremltools' own reader."""
    spec = coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()
    reader = _BlobStorageReader(str(data(package) / "weights" / "weight.bin"))
    function = next(iter(spec.mlProgram.functions.values()))
    found = {}
    for operation in function.block_specializations[function.opset].operations:
        title = operation.attributes["name"].immediateValue.tensor.strings.values[0]
        if operation.type.startswith("constexpr"):
            names = [name for name in ("data", "indices", "scale", "lut", "offset") if name in operation.inputs]
            given = [operation.inputs[name].arguments[0] for name in names]
            found[title] = [numbers(reader, one.value) for one in given if one.WhichOneof("binding") == "value"]
        elif operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            found[title] = [numbers(reader, operation.attributes["val"])]
    return found


def numbers(reader: Any, value: Any) -> tuple[str, np.ndarray]:
    held = value.type.tensorType
    shape = [dimension.constant.size for dimension in held.dimensions]
    kind = coremltools.proto.MIL_pb2.DataType.Name(held.dataType)
    name = {"FLOAT16": "fp16", "FLOAT32": "float"}.get(kind, kind.lower())
    read = np.asarray(getattr(reader, f"read_{name}_data")(value.blobFileValue.offset))
    if kind == "FLOAT16":
        read = read.view(np.float16)
    return kind, read[: math.prod(shape)].reshape(shape)


def onnx_integers(folder: Path) -> dict[str, list[np.ndarray]]:
    """Codes [N, K or more], scales and zero points [N, groups] of every quantized matrix, from onnx."""
    graphs = [onnx.load(path).graph for path in (folder / "onnx").glob("*.onnx")]
    held = {tensor.name: numpy_helper.to_array(tensor) for graph in graphs for tensor in graph.initializer}
    halved = {
        name.removesuffix(".codes")
        for graph in graphs
        for node in graph.node
        for name in node.input
        if name.endswith(".codes")
        and any(attribute.name == "bits" and attribute.i == 4 for attribute in node.attribute)
    }
    found = {}
    for name in [name.removesuffix(".codes") for name in held if name.endswith(".codes")]:
        rows = len(held[f"{name}.codes"])
        parts = [held[key].reshape(rows, -1) for key in (f"{name}.codes", f"{name}.zero_points") if key in held]
        scales = held[f"{name}.scales"].reshape(rows, -1)
        if name in halved:  # two to a byte
            parts = [np.stack([part & 15, part >> 4], axis=-1).reshape(rows, -1) for part in parts]
        found[name] = [parts[0], scales.astype(np.float16), *(part[:, : scales.shape[1]] for part in parts[1:])]
    return found


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_the_integers_and_scale_bits_are_those_of_onnx(model: Model, recipe: str) -> None:
    theirs = onnx_integers(model.lower(recipe, Onnx()))
    ours: dict[str, list[tuple[str, np.ndarray]]] = {}
    for stage in STAGES:
        ours |= stored(model.package(recipe, stage))
    assert {name for name, parts in ours.items() if len(parts) > 1} == theirs.keys()
    assert len(theirs) == 3 + 7 * 2 + 6 * 2 + 1  # embedding, projector; layers of both towers; head
    for name, (codes, scales, *points) in theirs.items():
        (kind, data_), (scale_kind, scale), *offsets = ours[name]
        width = min(codes.shape[1], data_.shape[1])
        middle = {"INT8": 128, "INT4": 8}.get(kind, 0)
        assert np.array_equal(data_[:, :width].astype(int) + middle, codes[:, :width]), name
        assert scale_kind == "FLOAT16"
        assert np.array_equal(scale.view(np.uint16), scales.view(np.uint16)), name
        assert len(points) == len(offsets)
        assert all(np.array_equal(offset, point) for (_, offset), point in zip(offsets, points, strict=True)), name
    assert {parts[0][0] for name, parts in ours.items() if "language_model.layers" in name and len(parts) > 1} == {
        {"int8": "INT8", "int4-asymmetric": "UINT4"}.get(recipe, "INT4")
    }


def test_floats_and_convolutions_are_those_of_the_checkpoint(model: Model) -> None:
    found = stored(model.package("fp32", "audio_encoder")) | stored(model.package("fp32", "decoder"))
    parameters = dict(model.original.named_parameters())
    names = [name for name in found if name in parameters]
    assert len(names) == len(parameters) - 1  # the embedding is in a package of its own
    for name in names:
        assert np.array_equal(found[name][0][1], parameters[name].detach().numpy()), name
    convolutions = stored(model.package("int4", "audio_encoder"))
    assert convolutions["model.audio_tower.conv1.weight"][0][0] == "FLOAT16"


def test_palettes_are_near_the_checkpoint_and_every_table_rises(model: Model) -> None:
    found = stored(model.package("palettes", "decoder"))
    parameters = dict(model.original.named_parameters())
    palettes = {name: parts for name, parts in found.items() if len(parts) > 1}
    assert len(palettes) == 7 * 2 + 1
    for name, ((kind, indices), (_, tables)) in palettes.items():
        held = 16 if name == "lm_head.weight" else 8
        assert kind == ("UINT4" if held == 16 else "UINT3")
        assert tables.shape == (len(indices) // 16, 1, held, 1)
        levels = tables.reshape(-1, held).astype(np.float32)
        assert np.all(np.diff(levels, axis=1) >= 0)
        dense = np.take_along_axis(np.repeat(levels, 16, axis=0), indices.astype(int), axis=1)
        original = parameters[name].detach().numpy()
        assert np.linalg.norm(dense - original) <= (0.1 if held == 16 else 0.19) * np.linalg.norm(original), name


def test_three_bits_are_indices_of_eight_integers_with_scales_of_their_own(model: Model) -> None:
    found = stored(model.package("int3", "decoder"))
    matrices = [name for name in found if name.endswith("proj.weight") or name == "lm_head.weight"]
    integers = [name for name in found if name.endswith(".integers")]
    assert len(matrices) == len(integers) == 7 * 2 + 1
    for name in matrices:
        ((kind, codes), (_, table)), ((_, scales),) = found[f"{name}.integers"], found[name]
        block = next(iter(model.weights("int3").quantized(name).blocks()))
        assert kind == "UINT3"
        assert table.ravel().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]
        assert np.array_equal(codes[: len(block.codes), : block.codes.shape[1]], block.codes), name
        assert np.array_equal(scales[: len(block.scales)].view(np.uint16), block.scales.view(np.uint16)), name


def test_both_functions_name_the_same_records(model: Model) -> None:
    spec = coremltools.models.MLModel(str(model.package("int4", "decoder")), skip_model_load=True).get_spec()
    offsets = [
        {
            value.blobFileValue.offset
            for operation in function.block_specializations[function.opset].operations
            for value in (
                operation.attributes["val"],
                *(one.value for given in operation.inputs.values() for one in given.arguments),
            )
            if value.WhichOneof("value") == "blobFileValue"
        }
        for function in spec.mlProgram.functions.values()
    ]
    assert offsets[0] == offsets[1]
    assert len(offsets[0]) > 30


def test_the_same_inputs_give_the_same_bytes(model: Model, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        artifact = Coreml().lower(
            model.traced.stage("decoder"), TABLE["int4-asymmetric"], model.weights("int4-asymmetric"), folder, Silent()
        )
        written.append(artifact.files)
    assert written[0] == written[1]
    listed = json.loads((folder / "coreml" / "decoder.mlpackage" / "Manifest.json").read_text())
    assert uuid.UUID(listed["rootModelIdentifier"])
    assert {entry["path"] for entry in listed["itemInfoEntries"].values()} == {
        "com.apple.CoreML/model.mlmodel",
        "com.apple.CoreML/weights",
    }
    assert str(tmp_path) not in (folder / artifact.files[1].path).read_bytes().decode("latin-1")


def test_an_artifact_says_what_it_takes_and_how_long_a_conversation_may_be(model: Model, tmp_path: Path) -> None:
    target = Coreml(context=64, chunk=20)
    stage, weights = model.traced.stage("decoder"), model.weights("fp16")
    artifact = target.lower(stage, TABLE["fp16"], weights, tmp_path, Silent())
    assert artifact.requirements["context"] == "64"
    assert artifact.requirements["chunk"] == "20"
    assert [(port.name, port.dtype, port.shape) for port in artifact.inputs] == [
        ("inputs_embeds", "float16", (1, "sequence_length", 48)),
        ("position_ids", "int32", (1, "sequence_length")),
        ("logit_positions", "int32", ("num_logits",)),
    ]
    assert artifact.memory.kv_per_token == 2 * 2 * 2 * 2 * 16  # layers, keys and values, heads, bytes, width


def test_the_length_of_the_state_is_given_to_a_build(model: Model, tmp_path: Path) -> None:
    checkpoint = model.folder / "checkpoint"
    report = build(checkpoint, tmp_path / "out", targets=("coreml",), coreml_context=600, verify=False)
    stages = {artifact.stage: artifact.requirements for artifact in report.manifest.artifacts}
    assert stages["decoder"]["context"] == "600"
    with pytest.raises(RecipeError, match=r"--coreml-context is for target coreml, and the targets are onnx"):
        build(checkpoint, tmp_path / "other", targets=("onnx",), coreml_context=600, verify=False)


def test_a_state_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"a state of 100 tokens \(from 512 on\)"):
        Coreml(context=100).check(RECIPES["int4"])


def test_every_refusal_is_listed_at_once() -> None:
    recipe = replace(RECIPES["q4_k_m"], encoder=WeightFormat(4, 33))
    with pytest.raises(RecipeError, match=r"int4-g33 for encoder.*Q4_K for decoder.*Q6_K for lm_head.*ossicle targets"):
        Coreml().check(recipe)


def test_every_operator_without_a_form_is_named(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forms = {name: form for name, form in coreml_graph._EMITTERS.items() if name not in ("Gelu", "Conv")}
    monkeypatch.setattr(coreml_graph, "_EMITTERS", forms)
    with pytest.raises(BuildError, match=r"no form for Conv, Gelu of stage 'audio_encoder'.*ossicle targets"):
        Coreml().lower(model.traced.stage("audio_encoder"), TABLE["fp16"], model.weights("fp16"), tmp_path, Silent())


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(BuildError, match=r'pip install "ossicle\[coreml\]"'):
        Coreml().check_here()


def test_a_weight_that_no_palette_holds_is_named(model: Model, tmp_path: Path) -> None:
    broken = {**model.checkpoint.tensors, "lm_head.weight": Infinite("lm_head.weight", (512, 48))}
    weights = Weights(broken, PALETTES, family("voxtral"))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' cannot be stored in palettes.*--quant fp32"):
        Coreml().lower(model.traced.stage("decoder"), PALETTES, weights, tmp_path, Silent())


class Infinite:
    dtype = "float32"

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.name, self.shape = name, shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.full((stop - start, self.shape[1]), np.inf, np.float32)


def test_nothing_is_printed_where_there_is_no_core_ml(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from ossicle.targets.coreml import Coreml\n"
        "Coreml().check_here()\nfrom ossicle.targets.coreml_mil import schema\nschema('MIL')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


class Run:
    """The decoder of a package, executed by the interpreter chunk by chunk."""

    def __init__(self, package: Path, width: int, context: int) -> None:
        program = Program(package)
        self.prefill, self.decode = program.function("prefill"), program.function("decode")
        self.states = self.prefill.states()
        self.dtype = np.float16 if self.states else np.float32
        self.caches = {}
        if not self.states:
            names = [f"{part}_cache_{layer}" for part in ("key", "value") for layer in (0, 1)]
            self.caches = {name: np.zeros((1, 2, context, width), np.float32) for name in names}

    def chunk(self, embeddings: np.ndarray, start: int, wanted: list[int] | None = None) -> np.ndarray:
        """Logits of positions `start` on; of one position by the function for one."""
        length = len(embeddings)
        runner = self.decode if length == 1 else self.prefill
        inputs = {
            "inputs_embeds": embeddings[None].astype(self.dtype),
            "position_ids": np.arange(start, start + length, dtype=np.int32)[None],
        } | self.caches
        if length > 1:
            inputs["logit_positions"] = np.array(wanted or range(length), np.int32)
        outputs, self.states = runner.run(inputs, self.states)
        self.caches = {name[4:]: value for name, value in outputs.items() if name.startswith("new_")}
        return outputs["logits"][0].astype(np.float32)


@pytest.mark.parametrize(("recipe", "limit"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_logits_are_those_of_torch_at_any_position(
    long_model: LongModel, tmp_path: Path, recipe: str, limit: float
) -> None:
    """In chunks and steps, near the beginning, at 1500 and at 8000: rotary embedding keeps its precision."""
    embeddings, expected = long_model.embeddings, long_model.logits
    weights = long_model.weights(recipe)
    Coreml(context=8192).lower(long_model.decoder, RECIPES[recipe], weights, tmp_path, Silent())
    run = Run(tmp_path / "coreml" / "decoder.mlpackage", long_model.width, 8192)
    at, ends = 0, [1, 2, 300, 700, 1100, 1500, 1501, 1502, *range(2000, 8000, 500), 8000, 8001, 8002, 8004]
    for end in ends:
        ours = run.chunk(embeddings[at:end], at)
        error = np.linalg.norm(ours - expected[at:end]) / np.linalg.norm(expected[at:end])
        assert error <= limit, (at, end)
        at = end


def test_a_conversation_goes_back_by_stepping_on_from_an_earlier_position(model: Model) -> None:
    """What later slots hold is never seen."""
    generator = np.random.default_rng(5)
    first, second = generator.standard_normal((2, 30, 48)).astype(np.float32)
    fresh, used = (Run(model.package("fp16", "decoder"), 16, CONTEXT) for _ in range(2))
    used.chunk(first[:10], 0)
    used.chunk(second, 10)
    fresh.chunk(first[:10], 0)
    again = used.chunk(second[:7], 10)
    assert np.array_equal(again, fresh.chunk(second[:7], 10))


def test_only_the_asked_for_positions_get_logits(model: Model) -> None:
    embeddings = np.random.default_rng(6).standard_normal((12, 48)).astype(np.float32)
    whole, some = (Run(model.package("int4", "decoder"), 16, CONTEXT) for _ in range(2))
    assert np.array_equal(some.chunk(embeddings, 0, [11, 3]), whole.chunk(embeddings, 0)[[11, 3]])


@pytest.mark.parametrize(("recipe", "limit"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_the_encoder_computes_what_torch_does(model: Model, recipe: str, limit: float) -> None:
    windows = np.random.default_rng(7).standard_normal((2, 16, 80)).astype(np.float32)
    with torch.no_grad():
        expected = model.original.model.get_audio_features(torch.from_numpy(windows)).pooler_output.numpy()
    runner = Program(model.package(recipe, "audio_encoder")).function()
    dtype = np.float32 if recipe == "fp32" else np.float16
    ours = [runner.run({"audio_values": one[None].astype(dtype)})[0]["audio_features"] for one in windows]
    error = np.linalg.norm(np.concatenate(ours).reshape(expected.shape).astype(np.float32) - expected)
    assert error <= limit * np.linalg.norm(expected)


@pytest.mark.parametrize("recipe", ["fp32", "int8", "palettes"])
def test_rows_of_the_embedding_are_looked_up_as_stored(model: Model, recipe: str) -> None:
    package = model.package(recipe, "embed_tokens")
    ids = np.array([[0, 511, 3, 3]], np.int32)
    ours = Program(package).function().run({"input_ids": ids})[0]["inputs_embeds"][0]
    parts = stored(package)["model.language_model.embed_tokens.weight"]
    if recipe == "int8":
        dense = parts[0][1].astype(np.float32) * np.repeat(parts[1][1].astype(np.float32), 32, axis=1)
    elif recipe == "palettes":
        tables = np.repeat(parts[1][1].reshape(-1, 8), 16, axis=0)
        dense = np.take_along_axis(tables, parts[0][1].astype(int), axis=1)
    else:
        dense = parts[0][1]
    assert ours.shape == (4, 48)
    assert np.array_equal(ours, dense[ids[0], :48].astype(ours.dtype))
