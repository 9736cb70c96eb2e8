"""Plans: sizes against published files and real bundles, what fits where, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ossicle.benchmarks.checkpoints import MINI_3B, SMALL_24B
from ossicle.cli.main import app
from ossicle.compiler.families import family
from ossicle.compiler.forecast import Forecast, best, encoder_seconds, forecast, nearest, prompt_seconds, step_seconds
from ossicle.compiler.pace import LAYER, NUMBER, pace
from ossicle.compiler.plan import Model, described, holds, plan, size
from ossicle.targets import registry
from ossicle.targets.contract import CheckpointError, OssicleError, RecipeError, WeightFormat
from ossicle.targets.devices import DEVICES, USABLE, Device, device
from ossicle.targets.recipes import FLOAT8, PALETTE3, RECIPES
from ossicle.targets.sizes import bits, tensor_bytes
from typer.testing import CliRunner

PARTS = ("encoder", "decoder", "lm_head")
MINI = Model("mini", family("voxtral"), MINI_3B, False)
SMALL = Model("small", family("voxtral"), SMALL_24B, False)


@pytest.mark.parametrize(
    ("recipe", "published"), [("fp16", 48e9), ("int8", 26e9), ("q4_k_m", 15e9), ("int4", 13.5e9), ("q3_k_m", 11.5e9)]
)
def test_voxtral_small_takes_what_is_published_of_it(recipe: str, published: float) -> None:
    """Files of Voxtral-Small-24B-2507 for llama.cpp as they are listed on the hub, rounded to half a gigabyte."""
    text = size(SMALL, "gguf", RECIPES[recipe], 32768).stored["gguf decoder"]
    audio = size(SMALL, "gguf", RECIPES[recipe], 32768).stored["gguf audio_encoder"]
    assert min(abs(text - published), abs(text + audio - published)) <= 0.035 * published


# Weights of artifacts that were built of a checkpoint of this shape: bytes of encoder, embedding and decoder.
BUILT = {
    ("int4", "onnx"): (768189440, 452984832, 2274586624),
    ("int4", "openvino"): (727298048, 427819008, 2048880640),
    ("int4", "gguf"): (715685888, 0, 2459922432),
    ("int4", "coreml"): (710905216, 427819200, 2033103552),
    ("int4", "tensorrt"): (710920704, 427819008, 2040242176),
    ("fp16", "onnx"): (1324337664, 805306368, 7231479808),
    ("fp16", "openvino"): (1324474368, 805306368, 7239868416),
    ("fp16", "gguf"): (1329102848, 0, 8028647424),
    ("fp16", "coreml"): (1324309760, 805306496, 7224327680),
    ("fp16", "tensorrt"): (1324337664, 805306368, 7231479808),
}


@pytest.mark.parametrize(("recipe", "target"), BUILT)
def test_voxtral_mini_takes_what_was_built_of_it(recipe: str, target: str) -> None:
    stored = size(MINI, target, RECIPES[recipe], 32768).stored
    planned = [stored.get(f"{target} {stage}", 0) for stage in ("audio_encoder", "embed_tokens", "decoder")]
    for here, there in zip(planned, BUILT[recipe, target], strict=True):
        assert abs(here - there) <= 0.015 * there


def test_a_weight_takes_its_codes_scales_and_zero_points() -> None:
    assert tensor_bytes((10, 100), WeightFormat(4, 32), 4, 2, True) == 10 * (128 // 2 + 4 * 2)
    assert tensor_bytes((10, 100), WeightFormat(4, 32), 4, 2, False) == 10 * (100 // 2 + 4 * 2)
    assert tensor_bytes((10, 96), WeightFormat(4, 32, symmetric=False), 4, 2, True) == 10 * (96 // 2 + 3 * 2 + 2)
    assert tensor_bytes((10, 96), WeightFormat(8, 32, symmetric=False), 4, 4, True) == 10 * (96 + 3 * 4 + 3)
    assert tensor_bytes((3, 4, 5), WeightFormat(16), 2, 2, True) == 120
    assert tensor_bytes((10, 96), FLOAT8, 2, 2, True) == 10 * 96 + 20
    assert tensor_bytes((10, 100), WeightFormat(3, 32), 2, 2, True) == 10 * (128 * 3 // 8 + 4 * 2)
    assert tensor_bytes((32, 96), PALETTE3, 2, 2, True) == 32 * 96 * 3 // 8 + 2 * 8 * 2


def test_three_bits_take_the_memory_of_four_on_openvino() -> None:
    three, four = (size(MINI, "openvino", RECIPES[name], 8192) for name in ("int3", "int4"))
    assert three.stored["openvino decoder"] < 0.8 * four.stored["openvino decoder"]
    assert three.memory(8192) == four.memory(8192)
    assert size(MINI, "coreml", RECIPES["int3"], 8192).decoder < 0.8 * four.decoder


def test_every_recipe_is_planned_in_the_targets_that_hold_it() -> None:
    found = {(one.target, one.recipe) for one in plan(MINI, registry.names(), list(RECIPES.values()))}
    assert ("gguf", "q4_k_m") in found
    assert ("onnx", "q4_k_m") not in found
    assert {target for target, recipe in found if recipe == "fp8"} == {"tensorrt"}
    assert {target for target, recipe in found if recipe == "int3"} == {"openvino", "coreml"}
    assert {target for target, recipe in found if recipe == "palette3"} == {"coreml"}
    assert holds("coreml", RECIPES["palette4"])
    assert not holds("tensorrt", RECIPES["palette4"])
    with pytest.raises(RecipeError, match="none of the targets onnx, gguf holds 'fp8', 'int3'"):
        plan(MINI, ["onnx", "gguf"], [RECIPES["fp8"], RECIPES["int3"]])


def test_llama_cpp_is_planned_with_the_encoder_that_serves_it() -> None:
    one = size(MINI, "gguf", RECIPES["q4_k_m"], 8192)
    assert set(one.stored) == {"onnx audio_encoder", "gguf audio_encoder", "gguf embed_tokens", "gguf decoder"}
    assert one.encoder == one.stored["onnx audio_encoder"]
    assert one.embedding + one.decoder == one.stored["gguf decoder"]


def test_the_arithmetic_is_that_of_the_shapes() -> None:
    one = size(MINI, "tensorrt", RECIPES["int4"], 8192)
    numbers = {part: sum(some.numbers for some in one.matrices if some.part == part) for part in PARTS}
    assert numbers["decoder"] == 30 * (3072 * (4096 + 1024 + 1024) + 4096 * 3072 + 3 * 3072 * 8192)
    assert numbers["lm_head"] == 131072 * 3072
    assert numbers["encoder"] == 32 * (4 * 1280 * 1280 + 2 * 1280 * 5120) + 5120 * 3072 + 3072 * 3072
    attention = 4 * 1500**2 * 1280 * 32
    operations = encoder_seconds(MINI, one, device("h100")) * device("h100").achieved_operations
    assert operations == pytest.approx(2 * 1500 * numbers["encoder"] + attention)


def test_a_cache_grows_with_the_context_and_weights_do_not() -> None:
    one = size(MINI, "onnx", RECIPES["int4"], 8192)
    assert one.memory(2000) - one.memory(1000) == 1000 * one.kv_per_token == 1000 * 2 * 30 * 8 * 128 * 4


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    big = size(SMALL, "tensorrt", RECIPES["fp16"], 8192)
    told = forecast(SMALL, big, device("rtx-4060"), 8192)
    assert told.reason is not None
    assert "needs 50.9 GB" in told.reason
    assert forecast(MINI, size(MINI, "tensorrt", RECIPES["int4"], 8192), device("rtx-4060"), 8192).reason is None


def _forecasts(model: Model, name: str, *recipes: str) -> list[Forecast]:
    found = plan(model, registry.names(), [RECIPES[recipe] for recipe in recipes or RECIPES])
    return [forecast(model, one, device(name), 8192) for one in found]


def test_the_best_is_the_most_exact_that_fits() -> None:
    told = _forecasts(MINI, "rtx-4060")
    fitting = best(told)
    assert fitting is not None
    assert fitting.size.recipe == "int8"
    assert fitting.size.bits == max(one.size.bits for one in told if one.reason is None)
    assert best(one for one in told if one.reason) is None


def test_of_the_same_numbers_the_fastest_is_the_best_whatever_its_files_hold_beside() -> None:
    told = _forecasts(MINI, "core-ultra-258v", "int8")
    assert max(told, key=lambda one: one.size.total).size.target == "gguf"  # with two audio encoders
    assert len({one.size.bits for one in told}) == 1
    fitting = best(told)
    assert fitting is not None
    assert fitting.size.target == "openvino"


def test_bits_of_a_number_are_those_of_its_codes_and_scales() -> None:
    assert [bits(RECIPES[name].decoder) for name in ("fp16", "bf16", "int8", "int4", "int4-g128")] == [
        *(16, 16, 8.5, 4.5, 4.125)
    ]
    assert bits(RECIPES["int4-asymmetric"].decoder) == 4 + 20 / 32
    assert [bits(RECIPES[name].decoder) for name in ("q4_k_m", "q6_k", "palette3")] == [4.5, 6.5625, 3]


def test_what_comes_nearest_to_fitting_has_an_engine_there() -> None:
    told = _forecasts(SMALL, "iphone-15-pro", "int4", "int4-g128", "q2_k")
    assert best(told) is None
    assert (nearest(told, device("iphone-15-pro")).size.target) == "coreml"
    assert nearest(told, device("iphone-15-pro")).size.recipe == "int4-g128"
    elsewhere = [one for one in told if one.size.target == "onnx"]
    assert "no engine there" in str(nearest(elsewhere, device("iphone-15-pro")).reason)


def test_no_more_tokens_are_kept_than_a_bundle_is_prepared_for() -> None:
    whole, short = (size(MINI, target, RECIPES["int4"], 8192) for target in ("onnx", "coreml"))
    assert (whole.kept(99999), short.kept(99999), short.kept(1000)) == (32768, 4096, 1000)
    told = forecast(MINI, short, device("m2-8"), 8192)
    assert (told.context, told.memory) == (4096, short.memory(4096))
    (built,) = plan(MINI, ["onnx"], [RECIPES["int4"]])
    assert built.decoder - whole.decoder == (32768 - 8192) * 128 * 4  # tables, as long as those that are built


def test_devices_are_many_and_plausible() -> None:
    assert len(DEVICES) >= 25
    for one in DEVICES.values():
        assert one.memory > 1e9 * 7
        assert 10e9 < one.bandwidth < 10e12
        assert 1e11 < one.operations < 1e15
        assert set(one.targets) <= set(registry.names())
        assert one.kind in USABLE
    assert device("jetson-orin-nano-8").usable == 0.85 * 8 * 2**30


def test_an_unknown_device_is_told_the_nearest() -> None:
    with pytest.raises(OssicleError, match=r"'rtx-4600' is unknown \(nearest: .*rtx-4060"):
        device("rtx-4600")


def test_a_configuration_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINI_3B))
    assert described(tmp_path).tensors.keys() == MINI.tensors.keys()
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="describes no model"):
        described(tmp_path)


def test_the_command_line_prints_sizes_and_forecasts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINI_3B))
    run = CliRunner()
    sizes = run.invoke(app, ["plan", str(tmp_path), "--quant", "int4,q4_k_m", "--json"])
    found = {(one["recipe"], one["target"]): one["total"] for one in json.loads(sizes.output)}
    assert found["int4", "onnx"] == size(MINI, "onnx", RECIPES["int4"], 32768).total
    table = run.invoke(app, ["plan", str(tmp_path), "--all-devices"])
    assert table.exit_code == 0, table.output
    assert table.output.count("best fit") > len(DEVICES) * 0.9
    assert all(f"({name})" in table.output for name in DEVICES)
    one = run.invoke(app, ["plan", str(tmp_path), *["--device", "m2-16"] * 2, "--quant", "int4"])
    assert one.output.count("best fit") == 1
    assert "at 4096" in one.output
    wrong = run.invoke(app, ["plan", str(tmp_path), "--device", "rtx-4600"])
    assert wrong.exit_code == 1


def test_nothing_has_to_be_installed_for_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("openvino", "coremltools", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "config.json").write_text(json.dumps(MINI_3B))
    told = CliRunner().invoke(app, ["plan", str(tmp_path), "--device", "m2-16", "--json"])
    assert told.exit_code == 0, told.output
    assert {one["size"]["target"] for one in json.loads(told.output)["m2-16"]} == set(registry.names())


HERE = Device("here", "a test's", "here", 64e9, 40e9, 2e11, ("onnx", "openvino", "gguf"))


@pytest.mark.parametrize("target", HERE.targets)
def test_a_step_on_a_cpu_reads_and_then_multiplies(target: str) -> None:
    one = size(MINI, target, RECIPES["int4"], 8192)
    read = (one.decoder + 500 * one.kv_per_token) / 40e9
    layers = 30 * LAYER
    multiplying = step_seconds(one, HERE, 500) - read - layers
    assert multiplying == pytest.approx(NUMBER * (30 * 106954752 + 131072 * 3072) / 2e11)
    assert step_seconds(one, replace(HERE, operations=4e11), 500) == pytest.approx(read + multiplying / 2 + layers)
    assert step_seconds(one, replace(HERE, bandwidth=80e9), 500) == pytest.approx(read / 2 + multiplying + layers)


def test_groups_cost_what_their_scales_do() -> None:
    for target in ("onnx", "openvino"):
        narrow, wide = (size(MINI, target, RECIPES[name], 8192) for name in ("int4", "int4-g128"))
        assert prompt_seconds(narrow, HERE, 400) > 1.1 * prompt_seconds(wide, HERE, 400)


def test_where_nobody_measured_the_longer_of_reading_and_multiplying_counts() -> None:
    one = size(MINI, "tensorrt", RECIPES["int4"], 8192)
    assert pace("tensorrt", "gpu") is None
    assert pace("onnx", "gpu") is None
    read = (one.decoder + 500 * one.kv_per_token) / device("h100").achieved_bandwidth
    assert step_seconds(one, device("h100"), 500) == pytest.approx(read)
    slow = replace(device("h100"), operations=1e9)
    numbers = sum(some.numbers for some in one.matrices if some.part != "encoder")
    assert step_seconds(one, slow, 500) == pytest.approx(2 * numbers / slow.achieved_operations)
