"""What OpenVINO is told and what it refuses, and that its states are its caller's."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from ossicle.compiler.pipeline import build
from ossicle.runtimes import openvino as runtime
from ossicle.runtimes import openvino_settings, openvino_stateful, openvino_static
from ossicle.runtimes.base import Engine
from ossicle.runtimes.options import Options
from ossicle.runtimes.processor import Processor
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests import checkpoints


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("bundle")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model())
    return build(checkpoint, work / "out", targets=("openvino",), recipe="fp32", verify=False).folder


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    opened = runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(threads=1))
    yield opened
    opened.close()


def prompt(length: int) -> Float32:
    return (np.random.default_rng(length).standard_normal((length, 48)) * 0.5).astype(np.float32)


def test_a_state_outlives_the_steps_taken_from_another(engine: Engine) -> None:
    _, state = engine.prefill([prompt(20)])
    engine.prefill([prompt(33)])
    engine.score(prompt(40))
    logits, _ = engine.extend(state, prompt(7))
    whole = np.concatenate([prompt(20), prompt(7)])
    assert np.abs(logits[0] - engine.score(whole)[-1]).max() < 1e-5


def test_rows_that_are_kept_leave_the_others_where_they_were(engine: Engine) -> None:
    prompts = [prompt(20), prompt(33)]
    _, state = engine.prefill(prompts)
    kept = engine.keep(state, [1])
    token = np.array([7], np.int64)
    single, _ = engine.step(kept, token)
    both, _ = engine.step(state, np.repeat(token, 2))
    for row, one in enumerate(prompts):
        expected = engine.score(np.concatenate([one, engine.embed(token)]))[-1]
        assert np.abs(both[row] - expected).max() < 1e-5
    assert np.abs(single[0] - both[1]).max() < 1e-5


def test_a_state_that_is_used_up_is_refused(engine: Engine) -> None:
    _, state = engine.prefill([prompt(5)])
    engine.step(state, np.array([1], np.int64))
    with pytest.raises(EngineError, match="used up"):
        engine.step(state, np.array([1], np.int64))
    with pytest.raises(EngineError, match="used up"):
        engine.keep(state, [0])


def test_prompts_longer_than_a_run_are_what_a_single_run_makes_of_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt(length) for length in (50, 3, 50, 41)]
    whole, _ = engine.prefill(prompts)
    scores = engine.score(prompts[0], 20)
    monkeypatch.setattr(openvino_stateful, "CHUNK", 16)
    parts, state = engine.prefill(prompts)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(engine.score(prompts[0], 20), scores, atol=1e-5)
    more, _ = engine.extend(engine.keep(state, [3]), prompt(23))
    np.testing.assert_allclose(more[0], engine.score(np.concatenate([prompts[3], prompt(23)]))[-1], atol=1e-5)


def test_hundreds_of_answers_take_no_more_requests_and_no_more_memory_than_a_few(engine: Engine) -> None:
    def answers(count: int) -> int:
        for _ in range(count):
            _, state = engine.prefill([prompt(4), prompt(9)])
            _, state = engine.step(state, np.array([1, 2], np.int64))
            engine.step(engine.keep(state, [1]), np.array([3], np.int64))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = answers(50)
    assert answers(500) - before < 16 * 2**20  # a request that stayed would take 70 kB
    assert len(engine._decoder._free) <= openvino_stateful.FREE


def test_the_last_scores_are_those_of_all(engine: Engine) -> None:
    whole = engine.score(prompt(21))
    assert whole.shape == (21, 512)
    np.testing.assert_allclose(engine.score(prompt(21), 4), whole[-4:], atol=1e-5)


def test_several_rows_are_not_continued_at_once(engine: Engine) -> None:
    _, state = engine.prefill([prompt(5), prompt(6)])
    with pytest.raises(EngineError, match="2 rows at once"):
        engine.extend(state, prompt(3))


def test_an_encoder_alone_is_the_engines(bundle: Path, engine: Engine) -> None:
    encoder = runtime.RUNTIME.open_encoder(bundle, manifests.read(bundle), Options(threads=1))
    mel = np.random.default_rng(1).standard_normal((2, 16, 80)).astype(np.float32)
    assert np.array_equal(encoder.encode(mel), engine.encode(mel))
    encoder.close()


def test_a_stage_that_is_missing_is_named(bundle: Path) -> None:
    manifest = manifests.read(bundle)
    lacking = replace(manifest, artifacts=manifest.artifacts[:2])
    with pytest.raises(EngineError, match=r"needs 'decoder' .* has: audio_encoder for openvino, embed_tokens"):
        runtime.RUNTIME.open(bundle, lacking, Options())


@pytest.mark.parametrize("file_", ["openvino_language_model.xml", "openvino_language_model.bin"])
def test_a_file_cut_short_is_named(bundle: Path, tmp_path: Path, file_: str) -> None:
    for file in (path for artifact in manifests.read(bundle).artifacts for path in artifact.files):
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).write_bytes((bundle / file.path).read_bytes())
    damaged = tmp_path / "openvino" / file_
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(EngineError, match=r"(?s)refuses '.*language_model\.xml'.*ossicle inspect"):
        runtime.RUNTIME.open(tmp_path, manifests.read(bundle), Options())


def test_an_input_of_another_size_fails_with_a_reason(engine: Engine) -> None:
    with pytest.raises(EngineError, match="'openvino' failed"):
        engine.encode(np.zeros((1, 16, 81), np.float32))


def test_a_device_that_is_not_here_is_refused(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no provider 'tpu' here \(it has: cpu.*auto\)"):
        runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(provider="tpu"))


def test_a_broken_package_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise RuntimeError('built for another numpy.\\nSee there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    told = str(runtime.RUNTIME.usable())
    assert told.startswith(
        "package openvino cannot be imported: built for another numpy. See there. Install it again with"
    )
    assert told.endswith("pip install --force-reinstall openvino")


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert 'pip install "ossicle[openvino]"' in (runtime.RUNTIME.usable() or "")
    with pytest.raises(EngineError, match="pip install"):
        runtime.RUNTIME.open(tmp_path, None, Options())  # type: ignore[arg-type]


def recipe(integers: bool, compute: str = "float32") -> dict[str, object]:
    groups = {part: {"group": group} for part, group in (("encoder", 32), ("embedding", 32), ("decoder", 64))}
    return {"integer_activations": integers, "compute": compute, **groups}


@pytest.mark.parametrize(("integers", "group"), [(True, 64), (False, 0)])
def test_activations_are_integers_only_where_the_recipe_allows_them(integers: bool, group: int) -> None:
    told = openvino_settings.settings(recipe(integers), Options(threads=3))
    assert told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group  # of the weights
    assert told["INFERENCE_NUM_THREADS"] == 3
    assert told["INFERENCE_PRECISION_HINT"] == "f32"
    floats = recipe(integers) | {"decoder": {"group": 0}}
    assert openvino_settings.settings(floats, Options())["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == (128 if integers else 0)


@pytest.mark.parametrize(
    ("flags", "integers", "hint"),
    [(("avx2", "avx512_bf16"), True, "bf16"), (("amx_bf16",), False, "f32"), (("avx512_vnni",), True, "f32")],
)
def test_the_encoder_takes_bfloat16_where_the_processor_and_the_recipe_have_it(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], integers: bool, hint: str
) -> None:
    monkeypatch.setattr(openvino_settings, "processor", lambda: Processor("", "x86_64", 2, 2, flags))
    told = openvino_settings.settings(recipe(integers), Options(), stage="audio_encoder")
    assert told["INFERENCE_PRECISION_HINT"] == hint
    assert openvino_settings.settings(recipe(integers), Options())["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells no process which of its pages are in memory")
def test_weights_that_the_engine_has_packed_are_not_in_memory_twice(bundle: Path) -> None:
    opened = runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(threads=1))
    opened.encode(np.zeros((1, 16, 80), np.float32))
    for stem in ("openvino_language_model", "openvino_audio_encoder_model"):
        assert _resident(bundle / "openvino" / f"{stem}.bin") == 0
    before = opened.score(prompt(21))
    np.testing.assert_array_equal(opened.score(prompt(21)), before)
    opened.close()


def _resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory; the file has to be mapped."""
    maps = psutil.Process().memory_maps(grouped=False)
    found = [one.rss for one in maps if one.path == str(path.resolve())]
    assert found
    return sum(found)


@pytest.mark.parametrize(
    ("provider", "compute", "integers", "told"),
    [
        ("gpu", "float32", False, {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}),
        ("gpu", "float32", True, {"INFERENCE_PRECISION_HINT": "f16", "KV_CACHE_PRECISION": "f32"}),
        ("gpu", "float16", False, {"INFERENCE_PRECISION_HINT": "f16", "KV_CACHE_PRECISION": "f16"}),
        ("cpu", "float16", False, {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}),
    ],
)
def test_what_is_computed_in_is_what_the_recipe_says(
    provider: str, compute: str, integers: bool, told: dict[str, str]
) -> None:
    assert told.items() <= openvino_settings.settings(recipe(integers, compute), Options(provider=provider)).items()
    chosen = openvino_settings.settings(recipe(integers, compute), Options(provider="auto"), ["CPU", "GPU.0", "NPU"])
    every = chosen["DEVICE_PROPERTIES"]
    assert told.items() <= every[{"gpu": "GPU.0", "cpu": "CPU"}[provider]].items()
    assert every["NPU"] == {}


@pytest.mark.parametrize("provider", ["cpu", "auto"])
@pytest.mark.parametrize(
    ("cache", "kind", "bound"), [("float32", "f32", 1e-5), ("float16", "f16", 0.02), ("int8", "u8", 0.3)]
)
def test_keys_and_values_are_kept_as_asked(
    bundle: Path, engine: Engine, provider: str, cache: str, kind: str, bound: float
) -> None:
    opened = runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(1, provider, cache))
    held = opened._decoder._model.get_runtime_model()  # type: ignore[attr-defined]
    inputs = [node for node in held.get_ops() if node.get_rt_info()["layerType"].astype(str) == "MemoryInput"]
    assert {node.get_output_element_type(0).get_type_name() for node in inputs} <= {kind, "f32"}
    text, token = prompt(200), np.array([5], np.int64)
    _, state = opened.prefill([text])
    ours, _ = opened.step(state, token)
    expected = engine.score(np.concatenate([text, engine.embed(token)]), 1)
    assert np.abs(ours - expected).max() < bound
    assert (np.abs(ours - expected).max() > 1e-5) == (cache != "float32")  # what was asked for was done
    opened.close()


def test_an_unknown_cache_is_refused_with_what_there_is(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no kv_cache 'int2' \(it has: float32, float16, int8\)"):
        runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(kv_cache="int2"))


@pytest.fixture(scope="module")
def static(bundle: Path) -> Iterator[Engine]:
    """What runs on a device of fixed shapes, run on the CPU, with room for few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_static, "COLUMNS", 150)
        opened = runtime.OpenVino(static=("cpu",)).open(bundle, manifests.read(bundle), Options(threads=1))
    yield opened
    opened.close()


def test_fixed_shapes_give_the_same_answers(engine: Engine, static: Engine) -> None:
    for last in (0, 3):
        np.testing.assert_allclose(static.score(prompt(70), last), engine.score(prompt(70), last), atol=1e-4)
    prompts = [prompt(length) for length in (1, 64, 90)]
    ours, state = static.prefill(prompts)
    theirs, reference = engine.prefill(prompts)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    state, reference = static.keep(state, [2, 0]), engine.keep(reference, [2, 0])
    tokens = np.array([3, 7], np.int64)
    (ours, state), (theirs, reference) = static.step(state, tokens), engine.step(reference, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert state.lengths == reference.lengths


def test_fixed_shapes_are_filled_to_the_last_token_and_no_further(engine: Engine, static: Engine) -> None:
    _, state = static.prefill([prompt(70)])
    more, state = static.extend(state, prompt(79))  # fills what the blocks' blanks took
    whole = np.concatenate([prompt(70), prompt(79)])
    np.testing.assert_allclose(more[0], engine.score(whole, 1)[0], atol=1e-4)
    last, state = static.step(state, np.array([4], np.int64))
    whole = np.concatenate([whole, engine.embed(np.array([4], np.int64))])
    np.testing.assert_allclose(last[0], engine.score(whole, 1)[0], atol=1e-4)
    with pytest.raises(EngineError, match="holds 150 tokens on this device, and was given 151"):
        static.step(state, np.array([4], np.int64))


def test_compiled_models_are_kept_where_the_environment_says(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openvino_settings.CACHE, str(tmp_path))
    runtime.RUNTIME.open_encoder(bundle, manifests.read(bundle), Options(threads=1)).close()
    assert list(tmp_path.glob("*.blob"))


INTERRUPTED = """
import os, pathlib, signal, sys
from ossicle.runtimes.options import Options
from ossicle.runtimes.openvino import RUNTIME
from ossicle.targets import manifest
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = pathlib.Path(sys.argv[1])
engines = [RUNTIME.open(folder, manifest.read(folder), Options(threads=1)) for _ in range(3)]
while engines:
    engines.pop(0).close()
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_finds_a_stack_after_engines_went_in_the_order_they_came(bundle: Path) -> None:
    child = subprocess.run([sys.executable, "-P", "-c", INTERRUPTED, str(bundle)], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "interrupted\n")
