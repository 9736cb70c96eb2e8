"""OpenVINO models: the integers are those of ONNX and stay compressed in the engine; the same inputs give the same bytes."""

import math
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from openvino import opset13 as operators
from openvino._offline_transformations import paged_attention_transformation
from ossicle.compiler.pipeline import Silent, build
from ossicle.compiler.trace import trace
from ossicle.kernels import groupwise
from ossicle.runtimes import openvino_models
from ossicle.targets import manifest as manifests
from ossicle.targets import openvino_graph
from ossicle.targets.contract import BuildError, QuantizedRows, QuantizedTensor, RecipeError, WeightFormat
from ossicle.targets.openvino import STATELESS, STEMS, Openvino
from ossicle.targets.openvino_core import core
from ossicle.targets.recipes import INT3, RECIPES
from ossicle.targets.streaming import fill
from ossicle.tests import checkpoints


@pytest.fixture(scope="module", params=["int4", "int4-asymmetric", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("bundle")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model())
    return build(checkpoint, work / "out", targets=("onnx", "openvino"), recipe=request.param, verify=False).folder


def halves(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def onnx_integers(folder: Path) -> dict[str, list[np.ndarray]]:
    """Codes [N, K or more], scales and zero points [N, groups] of every quantized matrix, from onnx."""
    held = {
        tensor.name: numpy_helper.to_array(tensor)
        for path in (folder / "onnx").glob("*.onnx")
        for tensor in onnx.load(path).graph.initializer
    }
    found = {}
    for name in [name.removesuffix(".codes") for name in held if name.endswith(".codes")]:
        rows = len(held[f"{name}.codes"])
        parts = [held[key].reshape(rows, -1) for key in (f"{name}.codes", f"{name}.zero_points") if key in held]
        scales = held[f"{name}.scales"].reshape(rows, -1)
        if parts[0].shape[1] < 24 * scales.shape[1]:  # two to a byte
            parts = [halves(part) for part in parts]
        found[name] = [parts[0], scales.astype(np.float16), *(part[:, : scales.shape[1]] for part in parts[1:])]
    return found


def openvino_integers(folder: Path) -> dict[str, list[np.ndarray]]:
    """The same from OpenVINO's reader, signed codes moved to where ONNX has them."""
    held = {
        node.get_friendly_name(): node
        for stem in STEMS.values()
        for node in core().read_model(folder / "openvino" / f"{stem}.xml").get_ops()
        if node.get_type_name() == "Constant"
    }
    parts = ("codes", "scales", "zero_points")
    return {
        name: [unsigned(held[f"{name}.{part}"]) for part in parts if f"{name}.{part}" in held]
        for name in [name.removesuffix(".codes") for name in held if name.endswith(".codes")]
    }


def unsigned(node: openvino.Node) -> np.ndarray:
    kind, rows = node.get_element_type().get_type_name(), node.shape[0]
    if kind == "f16":
        return node.data.reshape(rows, -1)
    values = node.data.view(np.uint8).reshape(1, -1)
    if kind.endswith("4"):
        values = halves(values)[:, : int(np.prod(node.shape))]
    return values.reshape(rows, -1) ^ np.uint8({"i8": 128, "i4": 8}.get(kind, 0))


def test_the_integers_and_scale_bits_are_those_of_onnx(bundle: Path) -> None:
    ours, theirs = openvino_integers(bundle), onnx_integers(bundle)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 3 + 7 * 2 + 6 * 2 + 1  # embedding, projector; layers of both towers; head
    for name, parts in theirs.items():
        width = min(ours[name][0].shape[1], parts[0].shape[1])
        assert np.array_equal(ours[name][0][:, :width], parts[0][:, :width]), name
        assert np.array_equal(ours[name][1].view(np.uint16), parts[1].view(np.uint16)), name
        assert len(ours[name]) == len(parts)
        assert all(np.array_equal(ours[name][2], zeros) for zeros in parts[2:]), name


@pytest.mark.parametrize("stage", ["audio_encoder", "decoder"])
def test_matrices_stay_compressed_in_the_engine(bundle: Path, stage: str) -> None:
    path = bundle / "openvino" / f"{STEMS[stage]}.xml"
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = Counter(
        node.input(1).get_element_type().get_type_name()
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    )
    bits = 4 if stage == "decoder" and manifests.read(bundle).recipe["name"].startswith("int4") else 8
    assert sum(kinds.values()) >= 14
    assert kinds.keys() <= {f"i{bits}", f"u{bits}"}


def test_three_bits_are_four_in_the_engine_once_our_runtime_has_read_them(tmp_path: Path) -> None:
    """The plugin alone makes floats of them; the numbers are the same. The manifest tells of the memory of four."""
    decoder = trace("voxtral", checkpoints.tiny_config(), 128).stage("decoder")
    artifact = Openvino().lower(decoder, RECIPES["int3"], Random(INT3), tmp_path, Silent())
    root, kinds, logits = tmp_path / "openvino", [], []
    embeddings = np.random.default_rng(0).standard_normal((1, 5, 48)).astype(np.float32)
    inputs = past(1) | {
        "inputs_embeds": embeddings,
        "attention_mask": np.ones((1, 5), np.int64),
        "position_ids": np.arange(5)[None],
    }
    for read in (core().read_model, partial(openvino_models.read, core())):
        model = core().compile_model(read(root / f"{STATELESS}.xml", root / f"{STEMS['decoder']}.bin"), "CPU", EXACT)
        products = [node for node in model.get_runtime_model().get_ops() if kind(node) == "FullyConnected"]
        kinds.append({node.input(1).get_element_type().get_type_name() for node in products})
        logits.append(model(inputs)["logits"])
    assert kinds == [{"f32"}, {"i4"}]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    codes = [node for node in core().read_model(root / f"{STEMS['decoder']}.xml").get_ops() if three_bits(node)]
    assert len(codes) == 7 * 2 + 1
    stored = (root / f"{STEMS['decoder']}.bin").stat().st_size
    assert artifact.memory.weights == stored + sum(math.prod(node.shape) for node in codes) // 8


def three_bits(node: openvino.Node) -> bool:
    return node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.u3


def layers(model: openvino.Model) -> Counter[str]:
    return Counter(kind(node) for node in model.get_ops())


def kind(node: openvino.Node) -> str:
    return node.get_rt_info()["layerType"].astype(str)


@pytest.mark.parametrize("cache", ["f32", "f16", "u8"])
def test_attention_takes_the_cache_into_itself_in_the_engine(bundle: Path, cache: str) -> None:
    path = bundle / "openvino" / f"{STEMS['decoder']}.xml"
    told = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": cache}
    model = core().compile_model(path, "CPU", told).get_runtime_model()
    held = layers(model)
    assert held["ScaledDotProductAttention"] == 2
    assert held["RoPE"] == held["MemoryInput"] == held["MemoryOutput"] == 4  # two layers, keys and values
    readers = [
        kind(target.get_node())
        for node in model.get_ops()
        if kind(node) == "MemoryInput"
        for target in node.output(0).get_target_inputs()
    ]
    assert set(readers) <= {"ScaledDotProductAttention", "MemoryOutput"}  # no Gather and no Concat touches the cache
    assert "Broadcast" not in held or held["Broadcast"] <= 1  # heads that share keys are not written out


def test_servers_of_many_requests_find_the_cache(bundle: Path) -> None:
    """What OpenVINO's own servers make of a decoder before they batch requests continuously."""
    model = core().read_model(bundle / "openvino" / f"{STEMS['decoder']}.xml")
    paged_attention_transformation(model)
    assert Counter(node.get_type_name() for node in model.get_ops())["PagedAttentionExtension"] == 2
    assert "beam_idx" not in {port.get_any_name() for port in model.inputs}


def test_a_bundle_names_what_decided_its_bytes(bundle: Path) -> None:
    tools = manifests.read(bundle).tools
    assert tools["openvino"] == version("openvino")
    assert tools["openvino-tokenizers"] == version("openvino-tokenizers")


def test_encoder_attention_is_not_taken_apart_in_the_engine(bundle: Path) -> None:
    path = bundle / "openvino" / f"{STEMS['audio_encoder']}.xml"
    held = layers(core().compile_model(path, "CPU").get_runtime_model())
    assert not {"Softmax", "MatMul"} & held.keys()


def test_both_forms_of_the_decoder_are_one_set_of_weights(bundle: Path) -> None:
    root, random = bundle / "openvino", np.random.default_rng(0)
    inputs = {
        "inputs_embeds": random.standard_normal((2, 7, 48)).astype(np.float32),
        "attention_mask": np.array([[1] * 7, [0] * 3 + [1] * 4]),
        "position_ids": np.array([range(7), [0, 0, 0, *range(4)]]),
    }
    data = root / f"{STEMS['decoder']}.bin"
    stateless = core().compile_model(core().read_model(root / f"{STATELESS}.xml", data), "CPU", EXACT)(inputs | past(2))
    stateful = core().compile_model(root / f"{STEMS['decoder']}.xml", "CPU", EXACT).create_infer_request()
    logits = stateful.infer(inputs | {"beam_idx": np.arange(2, dtype=np.int32)})["logits"]
    np.testing.assert_allclose(logits[:, 3:], stateless["logits"][:, 3:], atol=1e-4)
    for variable in stateful.query_state():
        name = variable.name.partition("present")[2]
        np.testing.assert_allclose(variable.state.data, stateless[f"present{name}"], atol=1e-5)


def past(rows: int) -> dict[str, np.ndarray]:
    """The keys and values of no tokens."""
    names = [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    return {name: np.zeros((rows, 2, 0, 16), np.float32) for name in names}


def test_models_carry_no_path_and_no_counter_of_the_process(bundle: Path) -> None:
    for path in (bundle / "openvino").glob("*.xml"):
        text = path.read_text()
        assert str(bundle.parent) not in text
        data = path.with_name(path.name.replace("_stateless", "")).with_suffix(".bin")
        names = [node.get_friendly_name() for node in core().read_model(path, data).get_ops()]
        assert len(set(names)) == len(names)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    stage = trace("voxtral", checkpoints.tiny_config(), 128).stage("decoder")
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        artifact = Openvino().lower(stage, RECIPES["int4"], Random(INT4), folder, Silent())
        written.append([file.sha256 for file in artifact.files])
    assert written[0] == written[1]
    assert [port.name for port in artifact.inputs] == ["inputs_embeds", "attention_mask", "position_ids", "beam_idx"]
    assert [port.name for port in artifact.outputs] == ["logits"]


INT4 = WeightFormat(4, 32)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


class Random:
    """A `WeightStore` of random numbers: matrices in one format, all else in float32; the same for the same name."""

    def __init__(self, form: WeightFormat) -> None:
        self._form = form
        self._shapes = {name: tuple(parameter.shape) for name, parameter in checkpoints.model().named_parameters()}

    def source(self, name: str) -> "Rows":
        return Rows(name, self._shapes[name])

    def format(self, name: str) -> WeightFormat:
        return self._form if name.endswith(("proj.weight", "lm_head.weight")) else WeightFormat(32)

    def quantized(self, name: str) -> QuantizedTensor:
        return quantized(name, Rows(name, self._shapes[name]).rows(0, self._shapes[name][0]), self._form)


class Rows:
    """A `TensorSource` of random float32 numbers."""

    dtype = "float32"

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        generator = np.random.default_rng(sum(self.name.encode()))
        return generator.standard_normal(self.shape).astype(np.float32)[start:stop]


def quantized(name: str, values: np.ndarray, form: WeightFormat, height: int = 3) -> QuantizedTensor:
    """`values` as integers, in blocks of `height` rows."""

    def blocks():
        for start in range(0, len(values), height):
            block = np.ascontiguousarray(values[start : start + height])
            if form.symmetric:
                yield QuantizedRows(start, *groupwise.quantize_symmetric(block, form.bits, form.group), None)
            else:
                yield QuantizedRows(start, *groupwise.quantize_asymmetric(block, form.bits, form.group))

    return QuantizedTensor(name, values.shape, form, blocks)


FORMS = st.sampled_from(
    [WeightFormat(bits, group, symmetric) for bits in (4, 8) for group in (16, 32, 128) for symmetric in (True, False)]
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=FORMS, rows=st.integers(1, 40), columns=st.integers(1, 150), gather=st.booleans())
def test_any_matrix_is_multiplied_and_looked_up_as_stored(
    tmp_path: Path, form: WeightFormat, rows: int, columns: int, gather: bool
) -> None:
    """Against numpy: short last groups, odd counts of nibbles, blocks that end anywhere."""
    values = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)
    tensor = quantized("w", values, form)
    blocks = list(tensor.blocks())
    whole = np.concatenate(
        [groupwise.dequantize(one.codes, one.scales, one.zero_points, form.bits, form.group) for one in blocks]
    )
    model = graph(rows, columns, gather)
    constants = openvino_graph.place(model, One(tensor), ["w"], {})
    path = tmp_path / "model.xml"
    openvino_graph.write(model, constants, path)
    fill(constants.layout, [path.with_suffix(".bin")], Silent(), "writing")
    given_ = np.arange(rows)[None] if gather else np.random.default_rng(1).standard_normal((1, 3, columns))
    run = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    ours = run([given_.astype(np.int64 if gather else np.float32)])[0]
    if gather:
        assert np.array_equal(ours[0], whole)
    else:
        np.testing.assert_allclose(ours, given_.astype(np.float32) @ whole.T, atol=1e-4)


class One:
    """A `WeightStore` of one tensor."""

    def __init__(self, tensor: QuantizedTensor) -> None:
        self._tensor = tensor

    def format(self, _name: str) -> WeightFormat:
        return self._tensor.format

    def quantized(self, _name: str) -> QuantizedTensor:
        return self._tensor


def graph(rows: int, columns: int, gather: bool) -> openvino.Model:
    """A matrix [rows, columns] multiplied with, or looked up in, as tracing leaves it."""
    weight = operators.parameter([rows, columns], openvino.Type.f32, name="w")
    if gather:
        given_ = operators.parameter([1, -1], openvino.Type.i64, name="x")
        result = operators.gather(weight, given_, operators.constant(np.array(0, np.int64)))
    else:
        given_ = operators.parameter([1, -1, columns], openvino.Type.f32, name="x")
        turned = operators.transpose(weight, operators.constant(np.array([1, 0], np.int64)))
        result = operators.matmul(given_, turned, False, False)
    return openvino.Model([operators.result(result)], [given_, weight])


def test_three_bits_that_are_looked_up_or_have_zero_points_are_refused() -> None:
    recipe = replace(
        RECIPES["int3"], embedding=INT3, decoder=replace(INT3, symmetric=False), lm_head=WeightFormat(3, 12)
    )
    with pytest.raises(
        RecipeError, match=r"int3-g32 for embedding, int3-g32-asymmetric for decoder, int3-g12 for lm_head"
    ):
        Openvino().check(recipe)


def test_what_it_cannot_hold_is_refused_part_by_part() -> None:
    recipe = replace(RECIPES["q4_k_m"], embedding=INT4, decoder=WeightFormat(4, 33))
    with pytest.raises(RecipeError, match=r"int4-g33 for decoder, Q6_K for lm_head.*ossicle targets"):
        Openvino().check(recipe)


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BuildError, match=r'pip install "ossicle\[openvino\]"'):
        Openvino().check_here()
