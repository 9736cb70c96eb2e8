"""TensorRT's runtime: states, pieces and captured graphs, on the CPU and on a GPU that is stood in for, against torch."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ossicle.compiler.pipeline import build
from ossicle.runtimes import tensorrt
from ossicle.runtimes.options import Options
from ossicle.runtimes.select import select
from ossicle.runtimes.tensorrt import TensorRtEngine
from ossicle.targets import cuda, tensorrt_profiles
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import EngineError
from ossicle.targets.manifest import file_entry
from ossicle.targets.tensorrt_engine import EngineFacts
from ossicle.targets.tensorrt_profiles import Engines
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.fake_tensorrt import Driver, package

LIMITS = Engines("none", context=600, prompt=64, batch=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return checkpoints.model()


@pytest.fixture(scope="module")
def bundle(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float32, in which a wrong slot or mask cannot hide."""
    work = tmp_path_factory.mktemp("work")
    checkpoint = checkpoints.save_hub(work / "checkpoint", model)
    build(checkpoint, work / "out", targets=("tensorrt",), recipe="fp32", engines=LIMITS, verify=False)
    return work / "out"


def with_engines(
    bundle: Path, folder: Path, kind: str = "rtx", numbers: tuple[int, ...] = (86, 89), precision: str = "fp32"
) -> Path:
    """A bundle beside another, with engines that the package stood in for opens, profiles as for a precision."""
    manifest = manifests.read(bundle)
    (folder / "tensorrt").mkdir(parents=True, exist_ok=True)
    artifacts = []
    for artifact in manifest.artifacts:
        held = tensorrt_profiles.profiles(replace(artifact, precision=precision), LIMITS)
        path = folder / "tensorrt" / f"{artifact.stage}.engine"
        path.write_text(json.dumps({"graph": str(bundle / artifact.files[0].path), "profiles": held}))
        version = "1.7.1.116" if kind == "rtx" else "11.0.0"
        facts = EngineFacts(kind, version, numbers, "", held, path.stat().st_size, 1.0, 1, ())  # type: ignore[arg-type]
        path.with_name(f"{path.name}.json").write_text(json.dumps(asdict(facts)))
        files = [file_entry(folder, one) for one in (path, path.with_name(f"{path.name}.json"))]
        artifacts.append(replace(artifact, files=tuple(files)))
    manifests.write(folder, replace(manifest, artifacts=tuple(artifacts)))
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A machine with a GPU, its driver, and both packages."""
    driver = Driver()
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    monkeypatch.setattr("ossicle.runtimes.tensorrt_cuda.driver", lambda: driver)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name)
    for name in ("tensorrt_rtx", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, package(driver, rtx=name == "tensorrt_rtx"))
    return driver


@pytest.fixture(params=["cpu", "rtx", "rtx one profile", "trt"])
def engine(request: pytest.FixtureRequest, bundle: Path, tmp_path: Path) -> Iterator[TensorRtEngine]:
    folder = bundle
    if request.param != "cpu":
        request.getfixturevalue("gpu")
        precision = "int4" if request.param == "rtx one profile" else "fp32"
        folder = with_engines(bundle, tmp_path / "bundle", request.param[:3], (89,), precision)
    opened = tensorrt.RUNTIME.open(folder, manifests.read(folder), Options(threads=1))
    assert opened.name == ("tensorrt-onnxruntime" if request.param == "cpu" else "tensorrt-gpu")
    yield opened  # type: ignore[misc]
    opened.close()


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed + length).standard_normal((length, 48)) * 0.5).astype(np.float32)


@torch.no_grad()
def logits(model: Any, embeddings: np.ndarray) -> np.ndarray:
    return model(inputs_embeds=torch.from_numpy(embeddings)[None]).logits[0].numpy()


@torch.no_grad()
def embedded(model: Any, ids: np.ndarray) -> np.ndarray:
    return model.get_input_embeddings()(torch.from_numpy(ids)).numpy()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200, 300])
def test_a_prompt_is_read_in_pieces_and_scored_from_any_place(engine: TensorRtEngine, model: Any, length: int) -> None:
    given = prompt(length)
    expected = logits(model, given)
    np.testing.assert_allclose(engine.score(given), expected, atol=1e-4)
    for last in {1, min(length, 65), length}:
        np.testing.assert_allclose(engine.score(given, last), expected[-last:], atol=1e-4)


def test_rows_step_together_across_the_edge_of_their_slots(engine: TensorRtEngine, model: Any) -> None:
    """Rows of 252 tokens and more pass 256, where the mask becomes wider, and one is dropped and two change places."""
    prompts = [prompt(252), prompt(7), prompt(130)]
    found, state = engine.prefill(prompts)
    for turn in range(12):
        for row, one in enumerate(prompts):
            np.testing.assert_allclose(found[row], logits(model, one)[-1], atol=1e-4)
        if turn == 6:
            state, prompts = engine.keep(state, [2, 0]), [prompts[2], prompts[0]]
        chosen = np.random.default_rng(turn).integers(0, 512, len(prompts))
        prompts = [np.vstack([one, embedded(model, chosen[[row]])]) for row, one in enumerate(prompts)]
        found, state = engine.step(state, chosen)
    assert state.lengths == [142, 264]


def test_a_conversation_goes_on_where_it_was(engine: TensorRtEngine, model: Any) -> None:
    first, second = prompt(90), prompt(170, 1)
    _, state = engine.prefill([first])
    found, state = engine.extend(state, second)
    np.testing.assert_allclose(found[0], logits(model, np.vstack([first, second]))[-1], atol=1e-4)
    assert state.lengths == [260]


def test_windows_and_ids_are_taken_as_many_at_a_time_as_fit(engine: TensorRtEngine, model: Any) -> None:
    mel = np.random.default_rng(5).standard_normal((7, 16, 80)).astype(np.float32)
    with torch.no_grad():
        expected = model.model.get_audio_features(torch.from_numpy(mel)).pooler_output.numpy()
    found = engine.encode(mel)
    assert np.linalg.norm(found.reshape(expected.shape) - expected) <= 1e-5 * np.linalg.norm(expected)
    ids = np.random.default_rng(6).integers(0, 512, 150)
    assert np.array_equal(engine.embed(ids), embedded(model, ids))


def test_what_it_is_not_prepared_for_is_refused_with_the_command(engine: TensorRtEngine) -> None:
    assert engine.context == 600
    with pytest.raises(EngineError, match=r"holds 600 tokens of a sequence, and 601 are given.*--context N"):
        engine.prefill([prompt(601)])
    with pytest.raises(EngineError, match=r"cannot run 4 sequences at once \(it can: 3\).*--batch N"):
        engine.prefill([prompt(1)] * 4)
    _, state = engine.prefill([prompt(600)])
    with pytest.raises(EngineError, match="601 are given"):
        engine.step(state, np.array([1]))
    _, state = engine.prefill([prompt(1)] * 2)
    with pytest.raises(EngineError, match="cannot extend 2 rows"):
        engine.extend(state, prompt(1))


def test_memory_goes_back_with_the_state_that_held_it(gpu: Driver, bundle: Path, tmp_path: Path) -> None:
    folder = with_engines(bundle, tmp_path)
    engine = tensorrt.RUNTIME.open(folder, manifests.read(folder), Options())
    _, state = engine.prefill([prompt(3)])
    with_state = len(gpu.held)
    del state
    assert len(gpu.held) == with_state - 4  # keys and values of two layers
    engine.close()
    assert not gpu.held


def test_steps_are_captured_once_and_launched_while_nothing_moves(gpu: Driver, bundle: Path, tmp_path: Path) -> None:
    """With classic TensorRT. What runs for the first time in a shape is run, for the second captured."""
    folder = with_engines(bundle, tmp_path, "trt", (89,))
    engine = tensorrt.RUNTIME.open(folder, manifests.read(folder), Options())
    _, state = engine.prefill([prompt(250)])
    launched = []
    for _ in range(10):
        _, state = engine.step(state, np.array([3]))
        launched.append(gpu.launches)
    assert launched == [0, 2, 4, 6, 8, 10, 11, 13, 15, 17]  # embedding and decoder; wider behind 256 tokens


def test_a_gpu_is_chosen_and_said_to_execute(gpu: Driver, bundle: Path, tmp_path: Path) -> None:
    del gpu
    folder = with_engines(bundle, tmp_path)
    assert (tensorrt.RUNTIME.proof, tensorrt.RUNTIME.usable(), tensorrt.RUNTIME.absent()) == ("executed", None, None)
    assert select(manifests.read(folder)) is tensorrt.RUNTIME


def test_without_a_gpu_the_graphs_are_run_by_name_alone(bundle: Path) -> None:
    manifest = manifests.read(bundle)
    assert tensorrt.RUNTIME.proof == "same graph"
    assert select(manifest, "tensorrt") is tensorrt.RUNTIME
    with pytest.raises(EngineError, match=r"tensorrt: there is no NVIDIA GPU .*\(same graph\) is only taken by name"):
        select(manifest)


@pytest.mark.parametrize(
    ("kind", "numbers", "reason"),
    [
        ("rtx", (86, 120), r"its compute capability is 89, and the engine is for 86, 120.*--compute-capability 89"),
        ("trt", (90,), "its compute capability is 89, and the engine is for 90"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_an_engine_for_another_gpu_is_refused(
    bundle: Path, tmp_path: Path, kind: str, numbers: tuple[int, ...], reason: str
) -> None:
    folder = with_engines(bundle, tmp_path, kind, numbers)
    with pytest.raises(EngineError, match=rf"cannot run 'audio_encoder' on NVIDIA Test: {reason}"):
        tensorrt.RUNTIME.open(folder, manifests.read(folder), Options())


@pytest.mark.usefixtures("gpu")
def test_a_bundle_without_engines_says_how_to_build_them(bundle: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no engine of it \(none was asked for\). Build it with: ossicle engine BUNDLE"
    ):
        tensorrt.RUNTIME.open(bundle, manifests.read(bundle), Options())


def test_engines_of_another_version_or_package_are_refused(
    gpu: Driver, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del gpu
    folder = with_engines(bundle, tmp_path, "trt", (89,))
    manifest = manifests.read(folder)
    sys.modules["tensorrt"].__version__ = "12.0.0"  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"the engine is of TensorRT 11.0.0, and 12.0.0 is installed"):
        tensorrt.RUNTIME.open(folder, manifest, Options())
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None if name == "tensorrt" else name)
    with pytest.raises(EngineError, match=r"package tensorrt is not installed.*pip install tensorrt"):
        tensorrt.RUNTIME.open(folder, manifest, Options())


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, gpu: Driver) -> None:
    del gpu
    monkeypatch.setattr(tensorrt, "find_spec", lambda _: None)
    assert r'pip install "ossicle[tensorrt]"' in (tensorrt.RUNTIME.absent() or "")
    assert r'pip install "ossicle[onnx]"' in (tensorrt.RUNTIME.usable() or "")


def test_a_failure_of_the_driver_is_an_error_with_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_reason", lambda status: f"error {status}")

    def cuInit(_: int) -> int:  # noqa: N802
        return 100

    with pytest.raises(EngineError, match=r"the NVIDIA driver failed in cuInit: error 100. See: nvidia-smi"):
        cuda.call(cuInit, 0)
