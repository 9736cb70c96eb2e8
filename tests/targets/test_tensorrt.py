"""TensorRT's graphs: the integers of ONNX to the bit, the same bytes each time, and engines built of them without a GPU."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from ossicle.compiler import engine_room, pipeline
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.pipeline import Silent, build
from ossicle.runtimes.tensorrt_decoder import Decoder, Limits
from ossicle.runtimes.tensorrt_same_graph import SameGraph
from ossicle.targets import manifest as manifests
from ossicle.targets import memory, registry, tensorrt_engine, tensorrt_profiles
from ossicle.targets.contract import Artifact, BuildError, QuantizedRows, RecipeError, WeightFormat
from ossicle.targets.recipes import RECIPES
from ossicle.targets.tensorrt import Tensorrt
from ossicle.targets.tensorrt_profiles import Engines
from ossicle.targets.tensorrt_weights import _even
from ossicle.tests import checkpoints
from ossicle.tests.targets.conftest import LongModel

NONE = Engines("none", context=512, prompt=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("work") / "checkpoint", checkpoints.model())


@pytest.fixture(scope="module", params=["int4", "int4-g128"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "out"
    build(checkpoint, out, targets=("onnx", "tensorrt"), recipe=request.param, engines=NONE, verify=False)
    return out


def decoder(folder: Path) -> Artifact:
    held = manifests.read(folder).artifacts
    return next(one for one in held if (one.target, one.stage) == ("tensorrt", "decoder"))


def initializers(folder: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for path in folder.glob("*.onnx")
        for tensor in onnx.load(path).graph.initializer
    }


def theirs(held: dict[str, np.ndarray], name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Unsigned codes [N, K or more] and scales [N, groups] of the `onnx` artifacts."""
    packed, rows = held[f"{name}.codes"], len(held[f"{name}.codes"])
    codes, scales = packed.reshape(rows, -1), held[f"{name}.scales"].reshape(rows, -1).astype(np.float16)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, -1)
    return codes, scales


def ours(held: dict[str, np.ndarray], name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of the `tensorrt` artifacts: columns turned to rows, or words taken apart."""
    codes, scales = held[f"{name}.codes"], held[f"{name}.scales"]
    if codes.dtype == np.int32:
        return codes.view(np.uint8).reshape(len(codes), -1), scales
    return (codes.astype(np.int16).T + (1 << (bits - 1))).astype(np.uint8), scales.T


def test_the_integers_and_scale_bits_are_those_of_onnx(bundle: Path) -> None:
    mine, reference = initializers(bundle / "tensorrt"), initializers(bundle / "onnx")
    names = [name.removesuffix(".codes") for name in reference if name.endswith(".codes")]
    assert {name for name in mine if name.endswith(".codes")} == {f"{name}.codes" for name in names}
    assert len(names) == 3 + 7 * 2 + 6 * 2 + 1  # embedding, projector; layers of both towers; head
    for name in names:
        bits = 4 if mine[f"{name}.codes"].dtype.name == "int4" else 8
        (codes, scales), (expected, widened) = ours(mine, name, bits), theirs(reference, name, bits)
        width = min(codes.shape[1], expected.shape[1])
        assert np.array_equal(codes[:, :width], expected[:, :width]), name
        assert scales.dtype == np.float16
        assert np.array_equal(scales.view(np.uint16), widened.view(np.uint16)), name
        assert (scales > 0).all()


def test_graphs_have_onnxs_own_operators_alone_and_no_path(bundle: Path) -> None:
    for path in (bundle / "tensorrt").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}
        assert [(one.domain, one.version) for one in model.opset_import if not one.domain] == [("", 24)]
        assert str(bundle.parent).encode() not in path.read_bytes()


def test_caches_are_scattered_into_and_are_of_one_length(bundle: Path) -> None:
    artifact = decoder(bundle)
    caches = [port for port in (*artifact.inputs, *artifact.outputs) if ".key" in port.name or ".value" in port.name]
    assert {port.shape for port in caches} == {("batch_size", 2, 512, 16)}
    assert {port.dtype for port in caches} == {"float16"}
    graph = onnx.load(bundle / "tensorrt" / "decoder.onnx", load_external_data=False).graph
    assert sum(node.op_type == "TensorScatter" for node in graph.node) == 4


@pytest.mark.parametrize("bundle", ["int4"], indirect=True)
def test_the_same_inputs_give_the_same_bytes(bundle: Path, built: Path) -> None:
    """Of graphs and numbers, whether beside another target or alone; not of engines."""
    first, again = (
        {file.path: file.sha256 for one in manifests.read(folder).artifacts for file in one.files}
        for folder in (bundle, built)
    )
    graphs = {path: digest for path, digest in again.items() if ".onnx" in path}
    assert len(graphs) == 6
    assert graphs.items() <= first.items()


@pytest.mark.parametrize(("recipe", "limit"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_logits_are_those_of_torch_at_any_position(
    long_model: LongModel, tmp_path: Path, recipe: str, limit: float
) -> None:
    """In pieces and steps, near the beginning, at 1500 and at 8000: rotary embedding keeps its precision in float16."""
    target = Tensorrt(Engines("none", context=8192, prompt=512))
    artifact = target.lower(long_model.decoder, RECIPES[recipe], long_model.weights(recipe), tmp_path, Silent())
    graph = SameGraph(tmp_path / "tensorrt" / "decoder.onnx", threads=2)
    embeddings, expected = long_model.embeddings, long_model.logits
    run = Decoder("same graph", graph, artifact.inputs, expected.shape[1], Limits(8192, 512, 1))
    logits, state = run.prefill([embeddings[:1]])
    found = {0: logits[0]}
    for at in (1, 299, 1499, 1500, 1501, 7999, 8000, 8001, 8003):
        start = state.lengths[0]
        one = at == start
        logits, state = (
            run.step(state, embeddings[at : at + 1]) if one else run.extend(state, embeddings[start : at + 1])
        )
        found[at] = logits[0]
    errors = {at: np.linalg.norm(row - expected[at]) / np.linalg.norm(expected[at]) for at, row in found.items()}
    assert max(errors.values()) <= limit, errors


@pytest.mark.parametrize("heights", [[1, 1, 1], [3, 1, 5], [4, 2], [7]])
def test_blocks_of_rows_begin_at_even_ones(heights: list[int]) -> None:
    starts = np.cumsum([0, *heights])[:-1]
    codes = np.arange(sum(heights) * 6, dtype=np.uint8).reshape(-1, 6)
    blocks = [
        QuantizedRows(
            int(start), codes[start : start + height], codes[start : start + height, :2].astype(np.float16), None
        )
        for start, height in zip(starts, heights, strict=True)
    ]
    found = list(_even(iter(blocks)))
    assert all(block.start % 2 == 0 for block in found)
    assert np.array_equal(np.concatenate([block.codes for block in found]), codes)
    assert np.array_equal(np.concatenate([block.scales for block in found]), codes[:, :2].astype(np.float16))


@pytest.mark.parametrize(
    ("recipe", "faults"),
    [
        ("int4-asymmetric", "int4-g32-asymmetric for decoder, int4-g32-asymmetric for lm_head"),
        ("bf16", "bfloat16 for embedding, bfloat16 for decoder, bfloat16 for lm_head"),
    ],
)
def test_what_it_cannot_hold_is_refused_part_by_part(recipe: str, faults: str) -> None:
    with pytest.raises(RecipeError, match=rf"target 'tensorrt' cannot hold {faults}.*ossicle targets"):
        Tensorrt().check(RECIPES[recipe])
    narrow = replace(RECIPES["int4"], embedding=WeightFormat(4, 32))
    with pytest.raises(RecipeError, match=r"int4-g32 for embedding"):
        Tensorrt().check(narrow)


@pytest.mark.parametrize("target", ["onnx", "openvino", "gguf"])
def test_float8_is_for_tensorrt_alone(target: str) -> None:
    with pytest.raises(RecipeError, match="float8_e4m3fn for encoder"):
        registry.target(target).check(RECIPES["fp8"])


def test_everything_that_speaks_against_engines_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"context 0 .*; batch -1 .*; package tensorrt is not installed.*pip install"):
        Tensorrt(Engines("trt", context=0, batch=-1)).check_here()
    with pytest.raises(BuildError, match=r"engine 'cuda' is unknown \(it can be: auto, rtx, trt, none\)"):
        Tensorrt(Engines("cuda")).check_here()
    with pytest.raises(BuildError, match="not for --engine trt"):
        Tensorrt(Engines("trt", (89,))).check_here()
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda _: None)
    with pytest.raises(BuildError, match=r'package tensorrt-rtx is not installed.*pip install "ossicle\[tensorrt\]"'):
        Tensorrt(Engines("rtx", (89,))).check_here()


def test_engines_are_for_tensorrt_alone(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is for target tensorrt, and the targets are onnx"):
        build(checkpoint, tmp_path / "out", engines=Engines("none"), verify=False)


@pytest.mark.parametrize("bundle", ["int4"], indirect=True)
def test_without_memory_graphs_are_written_and_an_engine_that_was_asked_for_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = decoder(bundle)
    large = replace(artifact, memory=replace(artifact.memory, weights=13_000_000_000))
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: name)
    monkeypatch.setattr(memory, "available", lambda: 21_000_000_000)
    needed = "52.4 GB of memory for its 13.0 GB of weights, and 21.0 GB are"
    kept = tensorrt_engine.build(large, Engines(), tmp_path, Silent())
    assert needed in kept.requirements["no_engine"]
    assert "ossicle engine BUNDLE" in kept.requirements["no_engine"]
    assert kept.files == artifact.files
    with pytest.raises(BuildError, match=needed):
        tensorrt_engine.build(large, Engines("rtx"), tmp_path, Silent())


def test_engines_without_memory_are_refused_with_every_number_before_anything_is_built(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: name)
    monkeypatch.setattr(memory, "available", lambda: 300_000_000)
    monkeypatch.setattr(pipeline, "trace", pytest.fail)
    with pytest.raises(BuildError) as refused:
        build(checkpoint, tmp_path / "out", targets=("tensorrt",), recipe="int4", engines=Engines("rtx"), verify=False)
    for stage in ("audio_encoder", "embed_tokens", "decoder"):
        assert f"engine of '{stage}' takes about 0.4 GB" in str(refused.value)
    assert "0.3 GB are free here" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (300_000_000, "building the engine of 'decoder' takes about 0.4 GB of memory .*: it will be left out"),
        (9_000_000_000, "building TensorRT's engines takes about 0.4 GB of memory, and 9.0 GB are free"),
    ],
)
def test_whether_there_is_memory_for_engines_is_said_before_a_build(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, said: str
) -> None:
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: name)
    monkeypatch.setattr(memory, "available", lambda: free)
    caplog.set_level("INFO", "ossicle")
    engine_room.check(open_checkpoint(checkpoint), RECIPES["int4"], ("decoder",), None)
    assert re.search(said, caplog.text)
    caplog.clear()
    engine_room.check(open_checkpoint(checkpoint), RECIPES["int4"], ("decoder",), Engines("none"))
    assert not caplog.text


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path_factory.mktemp("engines") / "out"
    engines = Engines("rtx", (86, 89), context=512, prompt=64, batch=4)
    build(checkpoint, out, targets=("tensorrt",), recipe="int4", engines=engines, verify=False)
    return out


class TestEngines:
    """Engines of TensorRT for RTX, built and described; nothing here can run them."""

    def test_every_stage_has_one_and_its_facts(self, built: Path) -> None:
        manifest = manifests.read(built)
        manifests.check_files(built, manifest)
        for artifact in manifest.artifacts:
            facts = tensorrt_engine.facts(built, artifact)
            assert facts is not None
            assert (facts.kind, facts.compute_capabilities, facts.device) == ("rtx", (86, 89), "")
            path = built / "tensorrt" / f"{artifact.stage}.engine"
            assert path.stat().st_size == facts.size > artifact.memory.weights
            assert path.read_bytes()[1:4] == b"trt"  # as TensorRT marks its plans
            assert facts.seconds > 0
            assert facts.peak_memory > facts.size
            assert "no_engine" not in artifact.requirements
            assert artifact.requirements["built_by"] == f"tensorrt-rtx {facts.version}"
            assert artifact.requirements["compute_capability"] == "86, 89"

    def test_integers_have_one_profile_for_steps_and_prompts(self, built: Path) -> None:
        facts = tensorrt_engine.facts(built, decoder(built))
        assert facts is not None
        (shapes,) = facts.profiles
        assert shapes["inputs_embeds"] == [[1, 1, 48], [1, 1, 48], [4, 64, 48]]
        assert shapes["past_key_values.0.key"] == [[1, 2, 512, 16], [1, 2, 512, 16], [4, 2, 512, 16]]
        assert shapes["num_logits_to_keep"] == [[1], [1], [64]]

    def test_floats_have_a_profile_for_each(self, built: Path) -> None:
        floats = replace(decoder(built), precision="fp16")
        step, prompt = tensorrt_profiles.profiles(floats, Engines("rtx", context=512, prompt=32, batch=4))
        assert step["inputs_embeds"] == [[1, 1, 48], [1, 1, 48], [4, 1, 48]]
        assert prompt["inputs_embeds"] == [[1, 1, 48], [1, 32, 48], [1, 32, 48]]
        assert (step["num_logits_to_keep"], prompt["num_logits_to_keep"]) == ([[1], [1], [1]], [[1], [1], [32]])

    def test_they_are_built_anew_of_a_bundle_alone(self, built: Path) -> None:
        before = manifests.read(built)
        after = tensorrt_engine.add(built, Engines("rtx", (120,), context=512, prompt=32), Silent())
        assert after == manifests.read(built)
        manifests.check_files(built, after)
        for old, new in zip(before.artifacts, after.artifacts, strict=True):
            assert [file.path for file in old.files] == [file.path for file in new.files]
            facts = tensorrt_engine.facts(built, new)
            assert facts is not None
            assert facts.compute_capabilities == (120,)
            assert new.requirements["prompt"] == "32"

    def test_a_graph_that_tensorrt_refuses_is_an_error_with_its_word(self, built: Path) -> None:
        artifact = next(one for one in manifests.read(built).artifacts if one.stage == "embed_tokens")
        path = built / tensorrt_engine.graph_file(artifact).path
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"Gather", b"Gathor"))
        try:
            with pytest.raises(BuildError, match=r"the engine of 'embed_tokens' was not built: .*Gathor"):
                tensorrt_engine.build(artifact, Engines("rtx"), built, Silent())
        finally:
            path.write_bytes(whole)

    def test_a_compute_capability_that_it_does_not_build_for_is_refused(self) -> None:
        pytest.importorskip("tensorrt_rtx")
        with pytest.raises(BuildError, match=r"compute capability 70, 90 cannot be built for \(it can be: 75, .*120"):
            Tensorrt(Engines("rtx", (70, 89, 90))).check_here()


def test_a_bundle_without_graphs_for_it_gets_no_engines() -> None:
    golden = Path(__file__).parents[1] / "golden" / "bundle-v1"
    with pytest.raises(BuildError, match=r"has no artifacts for target tensorrt.*--target tensorrt"):
        tensorrt_engine.add(golden, Engines("rtx"), Silent())


@pytest.mark.parametrize("bundle", ["int4"], indirect=True)
def test_classic_tensorrt_builds_for_the_gpu_of_this_machine(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a package of that name that notes what it is told, in the builder's process."""
    shutil.copy(Path(__file__).parent / "classic_tensorrt.py", tmp_path / "tensorrt.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(tensorrt_engine.CACHE, str(tmp_path / "timings"))
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: name)
    artifact = decoder(bundle)
    for number in (1, 2):
        made = tensorrt_engine.build(artifact, Engines("trt", context=512, prompt=64), bundle, Silent())
        facts = tensorrt_engine.facts(bundle, made)
        assert facts is not None
        assert (facts.kind, facts.version, facts.compute_capabilities) == ("trt", "11.0.0", (90,))
        assert (facts.device, facts.warnings) == ("NVIDIA Test", ("a warning",))
        told = json.loads((bundle / "tensorrt" / "decoder.engine").read_text())
        assert told["flags"] == 1 << 3
        assert len(told["profiles"]) == 1
        assert told["timings"] == "x" * (number - 1)
        assert (tmp_path / "timings" / "tensorrt-11.0.0-sm90.cache").read_bytes() == b"x" * number
        wanted = {"built_by": "tensorrt 11.0.0", "compute_capability": "90"}
        assert wanted | {"timing_cache": "tensorrt-11.0.0-sm90.cache"} == {
            name: made.requirements[name] for name in (*wanted, "timing_cache")
        }
