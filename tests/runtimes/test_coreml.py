"""Core ML's packages behind the engine's interface: interpreted here, and by a stand-in for coremltools as on a Mac."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ossicle.cli import doctor
from ossicle.compiler.pipeline import build
from ossicle.compiler.verify import ask
from ossicle.runtimes import coreml, coreml_models
from ossicle.runtimes import device as machine
from ossicle.runtimes import select as selection
from ossicle.runtimes.base import Engine, proof
from ossicle.runtimes.opening import load
from ossicle.runtimes.options import Options
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BundleError, EngineError, Float32
from ossicle.targets.coreml import Coreml
from ossicle.targets.probe import Request
from ossicle.tests import checkpoints
from ossicle.tests.fakes import FakeRuntime, write_bundle

CHUNK, CONTEXT = 24, 96
FORMS = ("fp32", "fp16")
pytestmark = pytest.mark.filterwarnings("ignore:Torch version", "ignore::DeprecationWarning:coremltools.*")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return checkpoints.model()


@pytest.fixture(scope="module")
def bundles(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One in float32, whose caches are inputs and outputs, and one in float16, whose caches are states."""
    work = tmp_path_factory.mktemp("coreml")
    checkpoint = checkpoints.save_hub(work / "checkpoint", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coreml.__init__, "__defaults__", (CONTEXT, CHUNK))
        for form in FORMS:
            build(checkpoint, work / form, targets=("coreml",), recipe=form, verify=False)
    return {form: work / form for form in FORMS}


@pytest.fixture(params=FORMS)
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Path:
    return bundles[request.param]


@pytest.fixture
def engine(bundle: Path) -> Iterator[Engine]:
    opened = opened_engine(bundle)
    yield opened
    opened.close()


def opened_engine(bundle: Path, options: Options | None = None) -> Engine:
    return coreml.RUNTIME.open(bundle, manifests.read(bundle), options or Options())


def prompt(length: int) -> Float32:
    return (np.random.default_rng(length).standard_normal((length, 48)) * 0.5).astype(np.float32)


@torch.no_grad()
def expected(model: torch.nn.Module, text: Float32) -> Float32:
    return model(inputs_embeds=torch.from_numpy(text)[None]).logits[0].numpy()


def near(ours: Float32, theirs: Float32, bundle: Path) -> bool:
    limit = 1e-5 if bundle.name == "fp32" else 1e-2  # torch's own float16 is as far from float32 on this model
    return bool(np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs))


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_a_prompt_is_fed_in_chunks(engine: Engine, bundle: Path, model: torch.nn.Module, length: int) -> None:
    exact = expected(model, prompt(length))
    assert near(engine.score(prompt(length)), exact, bundle)
    for last in {1, min(length, CHUNK + 3), length}:
        scored = engine.score(prompt(length), last)
        assert scored.shape == (last, exact.shape[1])
        assert near(scored, exact[-last:], bundle)
    logits, state = engine.prefill([prompt(length)])
    assert near(logits, exact[-1:], bundle)
    assert state.lengths == [length]


def test_rows_of_a_batch_have_states_of_their_own(engine: Engine, bundle: Path, model: torch.nn.Module) -> None:
    prompts = [prompt(5), prompt(CHUNK + 9)]
    _, state = engine.prefill(prompts)
    tokens = np.array([[7, 300], [41, 12]], np.int64)
    for step in tokens:
        logits, state = engine.step(state, step)
        prompts = [np.concatenate([one, engine.embed(step[[row]])]) for row, one in enumerate(prompts)]
        for row, one in enumerate(prompts):
            assert near(logits[row], expected(model, one)[-1], bundle)
    assert state.lengths == [7, CHUNK + 11]


def test_kept_rows_and_those_they_are_taken_from_both_go_on(engine: Engine) -> None:
    both_go_on(engine)


def both_go_on(engine: Engine) -> None:
    prompts, token = [prompt(20), prompt(33)], np.array([7], np.int64)
    _, state = engine.prefill(prompts)
    kept = engine.keep(state, [1, 1])
    twice, _ = engine.step(kept, np.array([9, 7], np.int64))
    both, _ = engine.step(state, np.repeat(token, 2))
    assert np.array_equal(twice[1], both[1])
    assert not np.array_equal(twice[0], both[1])


def test_a_conversation_goes_on_and_is_of_one_row(engine: Engine, bundle: Path, model: torch.nn.Module) -> None:
    _, state = engine.prefill([prompt(30)])
    logits, state = engine.extend(state, prompt(CHUNK + 2))
    assert near(logits[0], expected(model, np.concatenate([prompt(30), prompt(CHUNK + 2)]))[-1], bundle)
    assert state.lengths == [32 + CHUNK]
    _, state = engine.prefill([prompt(3), prompt(4)])
    with pytest.raises(EngineError, match=r"cannot extend 2 rows at once \(it can: 1\)"):
        engine.extend(state, prompt(3))


def test_what_is_longer_than_the_state_is_refused(engine: Engine) -> None:
    logits, state = engine.prefill([prompt(CONTEXT)])
    assert np.isfinite(logits).all()
    for call in (
        lambda: engine.prefill([prompt(CONTEXT + 1)]),
        lambda: engine.step(state, np.array([3], np.int64)),
        lambda: engine.extend(state, prompt(1)),
        lambda: engine.score(prompt(CONTEXT + 1)),
    ):
        with pytest.raises(EngineError, match=rf"has room for {CONTEXT} tokens .* not for {CONTEXT + 1}"):
            call()


def test_a_session_knows_how_much_room_there_is(bundles: dict[str, Path]) -> None:
    with load(bundles["fp16"], engine="coreml") as session:
        assert session.engine == "coreml-interpreted"
        question = [{"type": "text", "text": "one two"}]
        reply = session.chat([{"role": "user", "content": question}], max_tokens=2 * CONTEXT)
    assert len(reply.tokens) < CONTEXT


def test_windows_are_encoded_one_by_one(engine: Engine, bundle: Path, model: torch.nn.Module) -> None:
    audio = manifests.read(bundle).audio
    shape = (3, audio.mel_bins, audio.window_frames)
    mel = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        exact = model.get_audio_features(torch.from_numpy(mel)).pooler_output.numpy()
    ours = engine.encode(mel)
    assert ours.dtype == np.float32
    assert near(ours.reshape(exact.shape), exact, bundle)
    encoder = coreml.RUNTIME.open_encoder(bundle, manifests.read(bundle), Options())
    assert np.array_equal(encoder.encode(mel), ours)
    encoder.close()


def test_more_tokens_are_embedded_than_a_chunk_holds(engine: Engine, bundle: Path, model: torch.nn.Module) -> None:
    ids = np.arange(3 * CHUNK + 1) % 512
    exact = model.get_input_embeddings().weight[ids].detach().numpy()
    assert near(engine.embed(ids), exact, bundle)


def test_what_a_stand_in_cannot_do_is_refused(bundles: dict[str, Path]) -> None:
    for options, fault in (
        (Options(provider="ane"), r"no provider 'ane' here \(it has: cpu\)"),
        (Options(kv_cache="int8"), "no kv_cache 'int8'"),
        (Options(adapters={"a": 1.0}), "no adapters at run time"),
    ):
        with pytest.raises(EngineError, match=fault):
            opened_engine(bundles["fp16"], options)


def test_a_stand_in_is_taken_by_name_alone(bundles: dict[str, Path]) -> None:
    manifest = manifests.read(bundles["fp16"])
    assert proof(coreml.RUNTIME) == "interpreted"
    assert selection.select(manifest, "coreml") is coreml.RUNTIME
    with pytest.raises(EngineError, match=r"coreml: .*stands in for it here \(interpreted\) is only taken by name"):
        selection.select(manifest)


def test_an_engine_is_chosen_before_a_stand_in_for_another(tmp_path: Path) -> None:
    class StandIn(FakeRuntime):
        name = "stand-in"
        proof = "same graph"

        def absent(self) -> str:
            return "there is no such device"

    manifest = write_bundle(tmp_path)
    real = FakeRuntime()
    assert selection.select(manifest, known=[StandIn(), real]) is real
    assert selection.select(manifest, "stand-in", [StandIn(), real]).name == "stand-in"


def test_a_process_without_torch_says_how_its_answers_were_had(bundles: dict[str, Path], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 16000)
    report = ask(bundles["fp16"], [Request("audio", str(tmp_path / "noise.wav"))], engine="coreml")
    assert (report.engine, report.proof) == ("coreml-interpreted", "interpreted")
    assert not {"torch", "coremltools", "google"} & set(report.modules)
    assert report.answers[0].array is not None


def test_the_doctor_says_what_it_is_here() -> None:
    (facts,) = (one for one in machine.doctor().runtimes if one.name == "coreml")
    assert (facts.target, facts.proof, facts.reason) == ("coreml", "interpreted", None)
    assert doctor._state(doctor._runtime(facts)).startswith("interpreted only")


def test_a_package_that_is_damaged_is_an_error_that_names_it(bundles: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundles["fp16"], copy)
    weights = copy / "coreml/decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:-4000])
    with pytest.raises(BundleError, match=r"decoder\.mlpackage.*weight\.bin has \d+ bytes instead of"):
        load(copy, engine="coreml")
    with pytest.raises(BundleError, match=r"decoder\.mlpackage.*weight\.bin' is damaged"):
        opened_engine(copy).score(prompt(3))


FAKE = '''
"""coremltools as a Mac has it, over the interpreter: states are written in place, float16 is taken as float32."""
import sys
from enum import Enum
from pathlib import Path
import numpy as np

try:
    import torch
    HAS_TORCH = True
except ImportError:
    HAS_TORCH = False

ComputeUnit = Enum("ComputeUnit", ["ALL", "CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE"])
LOADED = []

class MLState:
    def __init__(self, values):
        self.values = values
    def read_state(self, name):
        return self.values[name].array
    def write_state(self, name, value):
        from ossicle.runtimes.mil.tensors import Tensor
        self.values[name] = Tensor(self.values[name].element, np.array(value))

class MLModel:
    def __init__(self, model, compute_units=ComputeUnit.ALL, function_name=None):
        from ossicle.runtimes.mil.interpreter import Program
        if "refused" in model:
            import warnings
            warnings.warn("You will not be able to run predict(): no such unit", RuntimeWarning)
        LOADED.append((Path(model).name, compute_units.name, function_name))
        self._function = Program(Path(model)).function(function_name or "")
    def make_state(self):
        return MLState(self._function.states())
    def predict(self, data, state=None):
        types = {i.name: i.type.element.stored for i in self._function.function.inputs if not i.is_state}
        outputs, after = self._function.run({n: np.asarray(v, types[n]) for n, v in data.items()},
                                            None if state is None else state.values)
        if state is not None:
            state.values.update(after)
        return {name: value.astype(np.float32) for name, value in outputs.items()}

class models:
    MLModel = MLModel
'''


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that says it is a Mac, with a coremltools that computes by the interpreter."""
    package = tmp_path / "site" / "coremltools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "coremltools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coreml_models.platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    yield
    sys.modules.pop("coremltools", None)


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize(
    ("provider", "unit"), [("cpu", "CPU_ONLY"), ("gpu", "CPU_AND_GPU"), ("ane", "CPU_AND_NE"), ("all", "ALL")]
)
def test_a_mac_runs_each_function_on_the_unit_asked_for(bundles: dict[str, Path], provider: str, unit: str) -> None:
    assert proof(coreml.RUNTIME) == "executed"
    engine = opened_engine(bundles["fp16"], Options(provider=provider))
    assert engine.name == f"coreml-{provider}"
    loaded = sys.modules["coremltools"].LOADED
    assert {units for _, units, _ in loaded} == {unit}
    packages = {(name, function) for name, _, function in loaded}
    assert packages == {
        ("audio_encoder.mlpackage", None),
        ("embed_tokens.mlpackage", None),
        ("decoder.mlpackage", "prefill"),
        ("decoder.mlpackage", "decode"),
    }


@pytest.mark.usefixtures("mac")
def test_a_mac_gives_what_the_interpreter_gives(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = opened_engine(bundle)
    both_go_on(native)
    text, token = prompt(CHUNK + 3), np.array([5], np.int64)
    logits, state = native.prefill([text])
    stepped, _ = native.step(state, token)
    monkeypatch.setattr(sys, "platform", "linux")
    interpreted = opened_engine(bundle)
    same, state = interpreted.prefill([text])
    assert np.array_equal(logits, same)
    assert np.array_equal(stepped, interpreted.step(state, token)[0])
    assert np.array_equal(native.score(text), interpreted.score(text))


@pytest.mark.usefixtures("mac")
def test_a_mac_imports_no_torch_for_it(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "torch" or name.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)
    opened_engine(bundles["fp16"]).close()
    assert not sys.modules["coremltools"].HAS_TORCH
    assert "torch" not in sys.modules


@pytest.mark.usefixtures("mac")
def test_what_core_ml_refuses_is_told_with_its_reason(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "refused").symlink_to(bundles["fp16"])
    with pytest.raises(EngineError, match=r"engine 'coreml' refuses .*audio_encoder\.mlpackage.*no such unit"):
        opened_engine(tmp_path / "refused")
    engine = opened_engine(bundles["fp16"])
    with pytest.raises(EngineError, match=r"engine 'coreml' failed: .*described as"):
        engine.encode(np.zeros((1, 3, 5), np.float32))


@pytest.mark.usefixtures("mac")
def test_a_mac_that_cannot_says_why(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml_models.platform, "mac_ver", lambda: ("14.7.1", ("", "", ""), "arm64"))
    assert "from macOS 15 on, and this is macOS 14.7.1" in (coreml.RUNTIME.usable() or "")
    monkeypatch.setattr(coreml_models.platform, "mac_ver", lambda: ("15.0", ("", "", ""), "arm64"))
    assert coreml.RUNTIME.usable() is None
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert 'pip install "ossicle[coreml]"' in (coreml.RUNTIME.usable() or "")
    with pytest.raises(EngineError, match=r"coreml: package coremltools is not installed"):
        selection.select(manifests.read(bundles["fp16"]), "auto", [coreml.RUNTIME])
