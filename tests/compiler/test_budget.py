"""Bits to a budget on a tiny model: losses that are true, sizes that add up, bundles within limits, recipes that come again."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.compiler import bits, budget, limits, plan, recipe_file, sensitivity, spending, stored
from ossicle.compiler.calibrate import utterances
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.choices import Choices, uniform
from ossicle.compiler.figures import divergence
from ossicle.compiler.imatrix import Imatrix
from ossicle.compiler.plan import Model
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.compiler.readings import Utterance
from ossicle.compiler.reference import Original
from ossicle.compiler.runtime_adapters import RuntimeAdapterSpec, open_all
from ossicle.compiler.speech import load
from ossicle.runtimes.options import Options
from ossicle.runtimes.registry import runtime
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import (
    AudioError,
    BuildError,
    BundleFile,
    CheckpointError,
    OssicleError,
    RecipeError,
    WeightFormat,
)
from ossicle.targets.devices import device
from ossicle.targets.gguf_mixes import Q2_K, Q3_K, Q4_K
from ossicle.targets.recipes import FLOAT16, INT3, INT4, INT8, RECIPES
from ossicle.tests import checkpoints

AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "hidden_size": 32, "intermediate_size": 128,
    "num_hidden_layers": 1,
}  # fmt: skip
TEXT = {"hidden_size": 128, "intermediate_size": 320, "max_position_embeddings": 512}  # most of it are matrices
ALL = ("onnx", "openvino", "gguf", "coreml", "tensorrt")
HEAD, DOWN = "lm_head.weight", "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO, text=TEXT))
    return checkpoints.save_hub(tmp_path_factory.mktemp("budget") / "tiny", made)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import soundfile

    listed = tmp_path_factory.mktemp("speech") / "speech.jsonl"
    soundfile.write(listed.with_name("0.wav"), np.random.default_rng(0).standard_normal(16000) * 0.1, 16000)
    listed.write_text(json.dumps({"file": "0.wav", "text": "one two three four"}))
    return listed


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoint, spoken: Path) -> tuple[Any, bits.Measured]:
    formats = Choices.of(checkpoint, ("onnx",)).formats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "SAMPLES", 4)
        return sensitivity.measure(checkpoint, formats, "nearest", spoken)


def made_up(choices: Choices) -> dict[str, dict[WeightFormat, float]]:
    return {
        name: {form: 0.0 if form.is_float else 2.0 ** (-2 * form.bits) * (1 + form.group / 999) for form in forms}
        for name, forms in choices.formats.items()
    }


def logits(original: Original, heard: Sequence[Utterance], audio: Sequence[Any]) -> Any:
    """Of every scored position of the recordings, as they are asked to be transcribed."""
    import torch

    found = []
    for one, embeddings in zip(heard, audio, strict=True):
        inputs = original._embed(list(one.tokens), embeddings)
        with torch.inference_mode():
            found.append(original.model(inputs_embeds=inputs, logits_to_keep=one.scored).logits[0].numpy())
    return np.concatenate(found)


def test_losses_are_the_divergence_that_a_matrix_makes(
    checkpoint: Checkpoint, spoken: Path, measured: tuple[Any, bits.Measured]
) -> None:
    import torch

    original, heard = Original(checkpoint), utterances(checkpoint, load(spoken))
    audio = [original._encode(one.logmel) for one in heard]
    before, predicted, found = logits(original, heard, audio), [], []
    for name, losses in measured[0].items():
        weight, weights = original.model.get_parameter(name), weights_of(checkpoint, uniform(INT4))
        exact = weight.data.clone()
        weight.data.copy_(torch.from_numpy(stored.Rounded(name, weights).rows(0, len(exact))))
        inside = "audio" in name or "projector" in name
        after = logits(original, heard, [original._encode(one.logmel) for one in heard] if inside else audio)
        weight.data.copy_(exact)
        found.append(float(divergence(before, after).mean()))
        predicted.append(losses[INT4])
    order = [np.argsort(np.argsort(one)) for one in (predicted, found)]
    assert np.corrcoef(*order)[0, 1] > 0.8  # Spearman's
    assert 0.5 < sum(predicted) / sum(found) < 2


@pytest.mark.parametrize(
    "targets", [("onnx",), ("openvino",), ("gguf",), ("openvino", "gguf"), ("coreml", "openvino"), ALL]
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_matrices_take_adds_up_to_the_planned_size(
    checkpoint: Checkpoint, targets: tuple[str, ...], tied: bool
) -> None:
    choices = Choices.of(replace(checkpoint, tied=tied), targets)
    random = np.random.default_rng(0)
    asked = (budget.of_size(10**9), budget.on_device(replace(device("m2-8"), targets=ALL), 1000))
    limits = budget.limits(choices, asked, 30000, {})
    formats = {name: forms[random.integers(len(forms))] for name, forms in choices.formats.items()}
    if tied:
        formats[HEAD] = formats[choices.model.family.EMBEDDING]
    found = budget.allocation(choices, limits, formats, {}, "any", "nearest", None)
    recipe = bits.recipe(found, choices.model.family)
    for limit in found.limits:
        size = plan.size(choices.model, limit.target, recipe, recipe.context, targets)
        assert limit.taken - limit.beside == (size.memory(1000) if limit.in_memory else size.total)


@pytest.mark.parametrize("targets", [("onnx",), ("gguf",), ("onnx", "gguf"), ALL])
def test_formats_are_what_every_target_holds(checkpoint: Checkpoint, targets: tuple[str, ...]) -> None:
    held = {form.name for form in Choices.of(checkpoint, targets).formats[HEAD]}
    assert {"float16", "int8-g32", "int4-g32"} <= held
    wide = {"int4-g128", "int8-g64", "int8-g128"}
    assert wide & held == (set() if "gguf" in targets else wide)
    assert ("int4-g32-asymmetric" in held) == ("tensorrt" not in targets)


@pytest.mark.parametrize(
    ("targets", "head", "embedding"),
    [
        (("openvino",), True, False),
        (("coreml",), True, True),
        (("openvino", "coreml"), True, False),
        (("openvino", "onnx"), False, False),
        (("openvino", "gguf"), False, False),
    ],
)
def test_three_bits_are_for_targets_that_all_hold_them(
    checkpoint: Checkpoint, targets: tuple[str, ...], head: bool, embedding: bool
) -> None:
    choices = Choices.of(checkpoint, targets)
    held = [INT3 in choices.formats[name] for name in (HEAD, DOWN, choices.model.family.EMBEDDING)]
    assert held == [head, head, embedding]


def test_three_bits_take_what_four_do_in_openvinos_memory_and_less_in_files(checkpoint: Checkpoint) -> None:
    choices = Choices.of(checkpoint, ("openvino",))
    for in_memory, scale in ((False, 3 / 4), (True, 1)):
        limit = bits.Limit("any", "openvino", 0, 0, in_memory=in_memory)
        three, four = (choices.takes(limit, DOWN, form) for form in (INT3, INT4))
        scales = 2 * 128 * 320 // 32
        assert three - scales == scale * (four - scales)


def test_core_mls_tables_are_as_long_as_its_state() -> None:
    from ossicle.compiler.families import family

    fixed = {}
    for positions in (4096, 8192):
        config = checkpoints.tiny_config(text={"max_position_embeddings": positions})
        choices = Choices(Model("tiny", family("voxtral"), config, tied=False), ("coreml", "openvino"))
        fixed[positions] = [limit.fixed for limit in budget.limits(choices, [budget.of_size(10**9)], 0, {})]
    more = [after - before for before, after in zip(fixed[4096], fixed[8192], strict=True)]
    assert more == [0, 2 * 4096 * 8 * 4]  # sines and cosines of half of a head of 16, in float32


def test_gguf_alone_may_hold_blocks_in_its_decoder() -> None:
    config = checkpoints.tiny_config(text={"hidden_size": 256, "intermediate_size": 256})
    from ossicle.compiler.families import family

    choices = Choices(Model("tiny", family("voxtral"), config, tied=False), ("gguf",))
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"} <= {form.name for form in choices.formats[DOWN]}
    assert not any(form.is_block for form in choices.formats["model.audio_tower.layers.0.fc1.weight"])


def test_a_tied_head_has_its_embeddings_format(checkpoint: Checkpoint) -> None:
    choices = Choices.of(replace(checkpoint, tied=True), ("onnx",))
    limits = budget.limits(choices, [budget.of_size(10**9)], 0, {})
    losses = made_up(choices)
    losses[HEAD] = dict.fromkeys(losses[HEAD], 0.0)
    found = budget.spend(choices, limits, losses, "any", bits.Measured("", "nearest", "", ""))
    assert found.tensors[HEAD].format == found.tensors[choices.model.family.EMBEDDING].format == FLOAT16


def within(folder: Path, out: Path, spent: spending.Budget, **options: Any) -> spending.BuildReport:
    return spending.build(folder, out, spent=spent, verify=False, **options)


def files(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def on(memory: float) -> budget.Asked:
    """A device that lends a model so many bytes, with 300 tokens kept."""
    one = device("m2-8")
    return budget.on_device(replace(one, memory=memory * one.memory / one.usable, targets=ALL), 300)


def asked_between(
    checkpoint: Checkpoint, targets: tuple[str, ...], share: float, kind: Callable[[int], budget.Asked] = budget.of_size
) -> budget.Asked:
    """A limit so far from the least to that of eight bits everywhere."""
    choices = Choices.of(checkpoint, targets)
    (limit, *_) = budget.limits(choices, [kind(10**9)], checkpoint.tokenizer.stat().st_size, {})
    ends = [
        sum(choices.takes(limit, name, pick(forms)) for name, forms in choices.formats.items())
        for pick in (lambda forms: forms[-1], lambda _: INT8)
    ]
    return kind(int(limit.fixed + ends[0] + share * (ends[1] - ends[0])))


@pytest.fixture(scope="module")
def bundle(
    folder: Path,
    checkpoint: Checkpoint,
    spoken: Path,
    measured: tuple[Any, bits.Measured],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, budget.Asked]:
    out = tmp_path_factory.mktemp("bundles") / "within"
    asked = asked_between(checkpoint, ("onnx",), 0.5)
    fitted = asked_between(checkpoint, ("onnx",), 0.5, on)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "measure", lambda *_: measured)
        within(folder, out, spending.Budget((asked, fitted), spoken), targets=("onnx",))
    return out, asked


def test_a_bundle_keeps_its_size_and_spends_it(bundle: tuple[Path, budget.Asked]) -> None:
    held = recipe_file.read(bundle[0] / recipe_file.NAME)
    size = sum(path.stat().st_size for path in (bundle[0] / "onnx").iterdir())
    assert size <= bundle[1].size
    assert len({one.format for one in held.tensors.values()}) > 1
    assert held.limits[0].taken > 0.97 * bundle[1].size
    assert held.loss is not None
    assert held.loss > 0


def test_running_a_bundle_fits_the_device_it_was_made_for(bundle: tuple[Path, budget.Asked]) -> None:
    limit = recipe_file.read(bundle[0] / recipe_file.NAME).limits[1]
    artifacts = manifests.read(bundle[0]).artifacts
    taken = limits.memory(artifacts, limit.context)
    assert (limit.in_memory, limit.context) == (True, 300)
    assert limit.taken - limit.beside <= taken <= limit.size
    assert taken > 0.9 * limit.size
    assert limits.memory(artifacts, 301) - taken == max(one.memory.kv_per_token for one in artifacts) > 0


def test_its_recipe_builds_it_again_to_the_byte(
    folder: Path, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    within(folder, again, spending.Budget(recipe=bundle[0] / recipe_file.NAME), targets=("onnx",))
    assert files(again) == files(bundle[0])


def edited(bundle: Path, out: Path, formats: Mapping[str, str], **other: Any) -> Path:
    document = json.loads((bundle / recipe_file.NAME).read_text()) | other
    for name, form in formats.items():
        document["tensors"].setdefault(name, {})["format"] = form
    out.write_text(json.dumps(document))
    return out


def test_an_edited_format_is_built_and_reckoned_with(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    before = recipe_file.read(bundle[0] / recipe_file.NAME)
    assert before.tensors[HEAD].format != FLOAT16
    path = edited(bundle[0], tmp_path / "edited.json", {HEAD: "float16"})
    found = spending.allocation(checkpoint, ("onnx",), spending.Budget(recipe=path))
    assert found is not None
    assert found.tensors[HEAD].format == FLOAT16
    assert found.limits[0].taken - before.limits[0].taken == found.tensors[HEAD].bytes - before.tensors[HEAD].bytes > 0
    assert found.loss is not None
    assert before.loss is not None
    assert found.loss < before.loss


def test_the_quantizer_that_was_named_stands_in_the_bundles_recipe(
    folder: Path, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    held = spending.Budget(recipe=bundle[0] / recipe_file.NAME)
    assert recipe_file.read(bundle[0] / recipe_file.NAME).quantizer == "nearest"
    within(folder, tmp_path / "out", held, quantizer="mse")
    again = spending.Budget(recipe=tmp_path / "out" / recipe_file.NAME)
    within(folder, tmp_path / "again", again)
    assert files(tmp_path / "again") == files(tmp_path / "out") != files(bundle[0])


def test_a_recipes_losses_are_spent_on_another_size(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("nothing is to be measured again"))
    asked = asked_between(checkpoint, ("onnx",), 0.8)
    found = spending.allocation(checkpoint, ("onnx",), spending.Budget((asked,), recipe=bundle[0] / recipe_file.NAME))
    before = recipe_file.read(bundle[0] / recipe_file.NAME)
    assert found is not None
    assert found.loss is not None
    assert before.loss is not None
    assert found.loss < before.loss
    assert found.limits[0].taken <= asked.size


def test_what_was_measured_outlives_an_attempt_that_does_not(
    folder: Path,
    bundle: tuple[Path, budget.Asked],
    spoken: Path,
    measured: tuple[Any, bits.Measured],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, spent = tmp_path / "parts" / "out", spending.Budget((bundle[1],), spoken)
    kept = out.with_name(".out.ossicle-losses.json")
    monkeypatch.setattr(sensitivity, "measure", lambda *_: measured)
    monkeypatch.setattr(spending, "build_bundle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        within(folder, out, spent)
    monkeypatch.undo()
    assert [path.name for path in out.parent.iterdir()] == [kept.name]
    monkeypatch.setattr(sensitivity, "measure", unmeasured)
    with pytest.raises(LookupError):  # another quantizer's integers lose something else
        within(folder, out, spent, quantizer="mse")
    before = kept.read_bytes()
    kept.write_bytes(b"{" + before)
    with pytest.raises(LookupError):
        within(folder, out, spent)
    kept.write_bytes(before)
    with caplog.at_level("INFO", "ossicle"):
        within(folder, out, spent)
    assert "measured by an earlier attempt" in caplog.text
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert recipe_file.read(out / recipe_file.NAME).measured == measured[1]


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def unmeasured(*_: Any) -> None:
    raise LookupError


@pytest.fixture(scope="module")
def three_bits(
    folder: Path, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, budget.Asked]:
    """A bundle for OpenVINO in fewer bytes than four bits everywhere take."""
    choices = Choices.of(checkpoint, ("openvino",))
    asked, out = asked_between(checkpoint, ("openvino",), 0), tmp_path_factory.mktemp("bundles") / "three"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "measure", lambda *_: (made_up(choices), bits.Measured("", "nearest", "", "")))
        within(folder, out, spending.Budget((asked,)), targets=("openvino",))
    return out, asked


def test_three_bits_keep_a_limit_that_four_cannot(
    checkpoint: Checkpoint, three_bits: tuple[Path, budget.Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = three_bits
    held = recipe_file.read(out / recipe_file.NAME)
    assert sum(path.stat().st_size for path in (out / "openvino").iterdir()) <= asked.size
    assert {held.tensors[name].format for name in (HEAD, DOWN)} == {INT3}
    monkeypatch.setattr(bits, "SHARED", tuple(form for form in bits.SHARED if form != INT3))
    assert "cannot be kept" in refused(checkpoint, spending.Budget((asked,)), ("openvino",))


def test_openvino_computes_with_three_bits_wherever_they_are(
    checkpoint: Checkpoint, three_bits: tuple[Path, budget.Asked]
) -> None:
    import torch

    manifest = manifests.read(three_bits[0])
    recipe = stored.recipe_of(manifest.recipe)
    assert {artifact.precision for artifact in manifest.artifacts if artifact.stage != "embed_tokens"} == {"int3"}
    exact = replace(manifest, recipe={**manifest.recipe, "integer_activations": False})
    rounded, random = Original(stored.rounded(checkpoint, recipe)), np.random.default_rng(0)
    mel = random.standard_normal((1, 128, 3000)).astype(np.float32)
    prompt = random.standard_normal((20, 128)).astype(np.float32)
    with closing(runtime("openvino").open(three_bits[0], exact, Options(threads=1))) as engine:
        np.testing.assert_allclose(engine.encode(mel), rounded._encode(mel).numpy(), rtol=1e-4, atol=1e-4)
        expected = rounded.model(inputs_embeds=torch.from_numpy(prompt)[None]).logits[0].detach().numpy()
        np.testing.assert_allclose(engine.score(prompt), expected, rtol=1e-4, atol=1e-4)


def test_a_recipe_of_three_bits_is_read_as_it_was_and_built_where_they_are_held(
    folder: Path, checkpoint: Checkpoint, three_bits: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    path = three_bits[0] / recipe_file.NAME
    found = spending.allocation(checkpoint, ("openvino",), spending.Budget(recipe=path))
    assert found == recipe_file.read(path)
    with pytest.raises(RecipeError, match=r"target 'onnx' cannot hold int3-g32 for encoder, .*int3-g32 for lm_head"):
        within(folder, tmp_path / "onnx", spending.Budget(recipe=path), targets=("onnx",))


@pytest.mark.parametrize(
    ("held", "loss", "kl", "as_of"),
    [
        ([INT4], 1e-2, 0.04, "int4"),
        ([INT4, INT3], 1e-2, 0.04, "int3"),
        ([INT8, INT3], 1e-4, 2e-3, "int8"),
        ([INT3], 1.0, 0.05, "int3"),
        ([Q4_K, Q2_K], 1.0, 0.1, "q2_k"),
        ([Q4_K, Q3_K], None, 0.05, "int4"),
    ],
)
def test_what_verification_allows_follows_from_the_loss_and_the_formats(
    held: list[WeightFormat], loss: float | None, kl: float, as_of: str
) -> None:
    assert bits._thresholds(loss, held) == replace(RECIPES[as_of].thresholds, kl=kl)


def test_narrow_floats_in_a_wide_graph_are_the_rounded_model(
    folder: Path, checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    import onnxruntime

    names = recipe_file.read(bundle[0] / recipe_file.NAME).tensors
    path = edited(bundle[0], tmp_path / "half.json", dict.fromkeys(names, "float16"))
    within(folder, tmp_path / "half", spending.Budget(recipe=path), targets=("onnx",))
    held = spending.allocation(checkpoint, ("onnx",), spending.Budget(recipe=path))
    assert held is not None
    choices = Choices.of(checkpoint, ("onnx",))
    rounded = Original(stored.rounded(checkpoint, bits.recipe(held, choices.model.family)))
    mel = np.random.default_rng(0).standard_normal((1, 128, 3000)).astype(np.float32)
    graphs = {path.name.split("_")[0]: path for path in (tmp_path / "half" / "onnx").glob("*.onnx")}
    encode = onnxruntime.InferenceSession(graphs["audio"])
    (audio,) = encode.run(None, {encode.get_inputs()[0].name: mel})
    np.testing.assert_allclose(audio, rounded._encode(mel).numpy(), rtol=1e-4, atol=1e-4)
    look_up = onnxruntime.InferenceSession(graphs["embed"])
    (rows,) = look_up.run(None, {look_up.get_inputs()[0].name: np.array([[5, 9]])})
    table = stored.rounded(checkpoint, bits.recipe(held, choices.model.family)).tensors[choices.model.family.EMBEDDING]
    np.testing.assert_array_equal(rows[0], np.stack([table.rows(one, one + 1)[0] for one in (5, 9)]))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO, text=TEXT))
    folder = tmp_path_factory.mktemp("adapters") / "legal"
    checkpoints.save_adapter(folder, made, target_modules=r".*language_model.*\.(q_proj|down_proj)", r=8)
    return folder


def test_adapters_kept_for_run_time_are_among_all_else(checkpoint: Checkpoint, adapter: Path) -> None:
    targets = ("onnx", "openvino")
    kept = open_all([RuntimeAdapterSpec(adapter), RuntimeAdapterSpec(adapter, "polite")], checkpoint, targets)
    numbers = 2 * 8 * 2 * (128 + 64 + 320 + 128)  # two adapters of rank 8, two layers
    asked = [budget.of_size(100_000), on(1e5)]
    plain, held = (budget.limits(Choices.of(checkpoint, targets, one), asked, 0, {}) for one in ((), kept))
    for without, limit in zip(plain, held, strict=True):
        assert limit.adapters == (4 * numbers if limit.target == "onnx" else 0)
        assert limit.fixed - without.fixed == limit.adapters + limit.beside - without.beside
    with pytest.raises(
        RecipeError, match=r"target 'onnx' takes .*graphs, 0\.08 MB of adapters kept for run time, tables"
    ):
        budget.check_possible(Choices.of(checkpoint, targets, kept), held)


def test_a_bundle_keeps_its_limits_with_its_adapters(
    folder: Path, checkpoint: Checkpoint, adapter: Path, measured: tuple[Any, bits.Measured], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "ossicle")
    monkeypatch.setattr(sensitivity, "measure", lambda *_: measured)
    asked = tuple(asked_between(checkpoint, ("onnx",), 0.6, kind) for kind in (budget.of_size, on))
    specs = [RuntimeAdapterSpec(adapter)]
    out = within(folder, tmp_path / "out", spending.Budget(asked), targets=("onnx",), runtime_adapters=specs).folder
    held, manifest = recipe_file.read(out / recipe_file.NAME), manifests.read(out)
    (added,) = manifest.runtime_adapters
    taken = sum(path.stat().st_size for path in (out / "onnx").iterdir())
    assert 0.97 * asked[0].size < taken <= asked[0].size
    assert limits.memory(manifest.artifacts, 300) + added.file.size <= asked[1].size
    assert 0 < held.limits[0].adapters <= added.file.size <= held.limits[0].adapters + held.limits[0].beside
    assert "0.04 MB of it adapters kept for run time" in caplog.text
    apart = [replace(one, size=one.taken) for one in held.limits]
    big = replace(added, file=replace(added.file, size=10**7))
    with pytest.raises(limits.OverBudgetError, match="target 'onnx' takes 10,"):
        limits.check(replace(held, limits=tuple(apart)), manifest.artifacts, stored.recipe_of(manifest.recipe), [big])
    found = spending.allocation(checkpoint, ("onnx",), spending.Budget(recipe=out / recipe_file.NAME))
    assert found is not None  # the same formats without the adapter
    assert held.limits[0].taken - found.limits[0].taken == held.limits[0].adapters


def refused(checkpoint: Checkpoint, spent: spending.Budget, targets: tuple[str, ...] = ("onnx",)) -> str:
    with pytest.raises(OssicleError) as caught:
        spending.allocation(checkpoint, targets, spent)
    return str(caught.value)


def test_what_cannot_be_kept_is_refused_with_the_least(checkpoint: Checkpoint) -> None:
    said = refused(checkpoint, spending.Budget((budget.of_size(100_000),)))
    assert "--max-size 0.10MB cannot be kept" in said
    least = float(said.split("target 'onnx' takes ")[1].split(" MB")[0]) * 1e6
    choices = Choices.of(checkpoint, ("onnx",))
    for count, kept in ((least - 20_000, False), (least + 20_000, True)):
        limits = budget.limits(choices, [budget.of_size(int(count))], checkpoint.tokenizer.stat().st_size, {})
        if kept:
            budget.check_possible(choices, limits)
        else:
            with pytest.raises(RecipeError):
                budget.check_possible(choices, limits)


def test_more_than_float16_takes_float16_and_says_so(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ossicle")
    assert spending.allocation(checkpoint, ("onnx",), spending.Budget((budget.of_size(10**10),))) is None
    assert "float16 keeps --max-size 10.00GB: nothing has to be quantized" in caplog.text


def test_a_device_without_an_engine_is_refused(checkpoint: Checkpoint) -> None:
    said = refused(checkpoint, spending.Budget((budget.on_device(device("rtx-4060"), 100),)), ("gguf",))
    assert "device 'rtx-4060' has no engine for target gguf (it has: tensorrt, onnx)" in said


def test_speech_that_cannot_be_used_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    asked = (asked_between(checkpoint, ("onnx",), 0.5),)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "other.jsonl").write_text('{"audio": "a.wav"}\n{"file": "b.wav"}')
    with pytest.raises(AudioError, match="it has no lines"):
        spending.allocation(checkpoint, ("onnx",), spending.Budget(asked, tmp_path / "empty.jsonl"))
    with pytest.raises(AudioError, match=r"line 1: it has no 'file'; 'b.wav' is missing"):
        spending.allocation(checkpoint, ("onnx",), spending.Budget(asked, tmp_path / "other.jsonl"))


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ({HEAD: "int5"}, "'lm_head.weight' has 'int5', and the formats are float32, float16, int8-g32"),
        ({"model.nothing.weight": "float16"}, "'model.nothing.weight' is no matrix of this model"),
    ],
)
def test_an_edit_that_means_nothing_is_refused(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], tmp_path: Path, formats: dict[str, str], said: str
) -> None:
    assert said in refused(checkpoint, spending.Budget(recipe=edited(bundle[0], tmp_path / "edited", formats)))


def test_a_format_that_a_target_cannot_hold_is_refused_by_its_matrix(
    folder: Path, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    path = edited(bundle[0], tmp_path / "edited", {DOWN: "Q4_K"})
    with pytest.raises(RecipeError, match=rf"target 'onnx' cannot hold Q4_K for '{DOWN}'"):
        within(folder, tmp_path / "out", spending.Budget(recipe=path))
    assert [one.name for one in tmp_path.iterdir()] == ["edited"]


@pytest.mark.parametrize("loss", [-1.0, float("nan"), float("inf"), "little"])
def test_a_loss_that_is_none_is_refused(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], tmp_path: Path, loss: object
) -> None:
    document = json.loads((bundle[0] / recipe_file.NAME).read_text())
    document["tensors"][HEAD]["losses"]["float16"] = loss
    (tmp_path / "edited").write_text(json.dumps(document))
    assert str(loss) in refused(checkpoint, spending.Budget(recipe=tmp_path / "edited"))


def test_what_a_build_would_refuse_is_refused_before_losses_are_measured(
    folder: Path, bundle: tuple[Path, budget.Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("it measured"))
    with pytest.raises(BuildError, match=r"exists\. Give another --out"):
        within(folder, bundle[0], spending.Budget((bundle[1],)))
    with pytest.raises(AudioError, match=r"'.*gone\.jsonl' cannot be read"):
        spending.build(folder, tmp_path / "out", spent=spending.Budget((bundle[1],)), speech=tmp_path / "gone.jsonl")
    with pytest.raises(RecipeError, match="no target is named"):
        spending.build(folder, tmp_path / "out", spent=spending.Budget((bundle[1],)), targets=(), verify=False)


def test_a_model_that_gives_no_numbers_has_no_losses(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLES", 1)
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO, text=TEXT))
    made.model.language_model.norm.weight.data[0] = float("nan")
    broken = open_checkpoint(checkpoints.save_hub(tmp_path / "broken", made))
    with pytest.raises(CheckpointError, match=r"loses is no number: the model itself gives none on .*Repair"):
        sensitivity.measure(broken, dict.fromkeys(Choices.of(broken, ("onnx",)).formats, (INT8,)), "nearest", spoken)


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "recipe", "version": 9}', '{"kind": "recipe", "version": 1}'])
def test_a_file_that_is_no_recipe_is_refused(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    (tmp_path / "not").write_text(text)
    assert "cannot be used as a recipe" in refused(checkpoint, spending.Budget(recipe=tmp_path / "not"))


def test_losses_of_another_checkpoint_are_not_spent(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], tmp_path: Path
) -> None:
    asked = (asked_between(checkpoint, ("onnx",), 0.4),)
    held = json.loads((bundle[0] / recipe_file.NAME).read_text())["measured"]
    path = edited(bundle[0], tmp_path / "other", {}, measured=held | {"checkpoint": "another"})
    assert "not of this checkpoint" in refused(checkpoint, spending.Budget(asked, recipe=path))


def test_artifacts_larger_than_reckoned_are_made_room_for(
    checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked]
) -> None:
    """Once the bytes beside the weights are known, the same budget is spent with them set apart."""
    manifest, held = manifests.read(bundle[0]), recipe_file.read(bundle[0] / recipe_file.NAME)
    recipe = stored.recipe_of(manifest.recipe)
    limits.check(held, manifest.artifacts, recipe)
    size, memory = held.limits
    taken = sum(file.size for one in manifest.artifacts for file in one.files)
    held_in_memory = limits.memory(manifest.artifacts, memory.context)
    tight = replace(
        held,
        limits=(
            replace(size, size=taken - 1, taken=taken - 30_000),
            replace(memory, size=held_in_memory - 1, taken=held_in_memory - 20_000),
        ),
    )
    with pytest.raises(
        limits.OverBudgetError, match=r"target 'onnx' takes .*--max-size.*m2-8 with 300 tokens"
    ) as caught:
        limits.check(tight, manifest.artifacts, recipe)
    spare = size.beside // 8
    assert caught.value.more == {size.key: 30_000 + spare, memory.key: 20_000 + spare}
    again = spending.spend_again(checkpoint, held, spending.Budget((bundle[1],)), caught.value.more)
    choices = Choices.of(checkpoint, ("onnx",))
    (first,) = budget.limits(choices, [bundle[1]], checkpoint.tokenizer.stat().st_size, {})
    assert again.limits[0].beside == first.beside + 30_000 + spare
    assert again.limits[0].taken <= bundle[1].size


def test_a_recipe_of_the_users_own_is_told_from_others_of_its_name() -> None:
    from ossicle.targets.recipes import RECIPES

    one = uniform(INT4)
    assert stored._own(RECIPES["int4"]) == []
    assert stored._own(replace(RECIPES["int4"], quantizer="mse")) == []
    assert stored._own(one) != stored._own(replace(one, decoder=INT8)) != []


def test_a_budget_for_gptq_counts_what_it_leaves_and_its_integers_are_built(
    folder: Path,
    checkpoint: Checkpoint,
    spoken: Path,
    measured: tuple[Any, bits.Measured],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLES", 4)
    asked = asked_between(checkpoint, ("onnx",), 0.3)
    count, path = spending.quantize(
        checkpoint,
        tmp_path / "made.safetensors",
        spent=spending.Budget((asked,), spoken),
        targets=("onnx",),
        quantizer="gptq",
    )
    held, model = recipe_file.read(path), Choices.of(checkpoint, ("onnx",)).model.family
    assert path == tmp_path / "made.recipe.json"
    assert (held.quantizer, held.name) == ("gptq", asked.name)
    solved = [name for name, one in held.tensors.items() if model.linear(name) and not one.format.is_float]
    assert 0 < count == len(solved)
    shares = {name: one.losses[INT4] / measured[0][name][INT4] for name, one in held.tensors.items()}
    assert shares.pop(model.EMBEDDING) > 0.45  # by mse, and by other signs
    assert max(shares.values()) < 0.45
    out = tmp_path / "out"
    within(folder, out, spending.Budget(recipe=path), targets=("onnx",), quantized=tmp_path / "made.safetensors")
    assert sum(path.stat().st_size for path in (out / "onnx").iterdir()) <= asked.size
    assert manifests.read(out).recipe["quantizer"] == "gptq"


def test_verification_goes_by_what_would_be_lost_without_gptq(checkpoint: Checkpoint) -> None:
    model = Choices.of(checkpoint, ("onnx",)).model.family
    formats = dict.fromkeys(Choices.of(checkpoint, ("onnx",)).formats, FLOAT16) | {HEAD: INT4, model.EMBEDDING: INT4}
    tensors = {name: bits.Spent(form, 0, {form: 0.0 if form.is_float else 1e-3}) for name, form in formats.items()}
    for quantizer, expected in (("mse", 2e-3), ("gptq", 4e-3 + 1e-3), ("mse,lm_head=gptq", 5e-3), ("awq", 2e-3)):
        made = bits.Allocation("any", ("onnx",), quantizer, (), tensors, bits.Measured("", quantizer, "", ""))
        assert bits.recipe(made, model).thresholds.kl == pytest.approx(4 * expected)


def test_a_budget_for_a_quantizer_that_sees_nothing_is_refused_before_it_is_measured(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured in vain"))
    spent = spending.Budget((asked_between(checkpoint, ("onnx",), 0.3),))
    with pytest.raises(RecipeError, match=r"quantizer 'mse' needs no file.*Build with --quantizer mse"):
        spending.quantize(checkpoint, tmp_path / "made", spent=spent, targets=("onnx",), quantizer="mse")


def test_more_than_float16_has_no_integers_to_find(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spent = spending.Budget((budget.of_size(10**9),))
    with pytest.raises(RecipeError, match=r"--max-size 1\.00GB leaves room for float16.*--quant fp16"):
        spending.quantize(checkpoint, tmp_path / "made", spent=spent, targets=("onnx",), quantizer="gptq")
    assert not list(tmp_path.iterdir())


def test_gptq_makes_the_integers_of_a_budget_and_less_is_lost(
    folder: Path, checkpoint: Checkpoint, bundle: tuple[Path, budget.Asked], spoken: Path, tmp_path: Path
) -> None:
    path = bundle[0] / recipe_file.NAME
    held, recipe = recipe_file.read(path), recipe_file.recipe_in(path, checkpoint.family)
    quantize(checkpoint, recipe, "gptq", tmp_path / "made", spoken)
    opened, solved = open_checkpoint(folder, quantized=tmp_path / "made"), replace(recipe, quantizer="gptq")
    assert opened.quantized is not None
    opened.quantized.check(weights_of(opened, solved), ())
    model = Choices.of(checkpoint, ("onnx",)).model.family
    assert opened.quantized.formats == {
        name: one.format for name, one in held.tensors.items() if model.linear(name) and not one.format.is_float
    }
    original, heard = Original(checkpoint), utterances(checkpoint, load(spoken))
    audio = [original._encode(one.logmel) for one in heard]
    before = logits(original, heard, audio)  # of the same audio, so that what the decoder and head lose is compared
    nearest = logits(Original(stored.rounded(checkpoint, recipe)), heard, audio)
    after = logits(Original(stored.rounded(opened, solved)), heard, audio)
    assert divergence(before, after).mean() < 0.7 * divergence(before, nearest).mean()


@pytest.mark.parametrize("options", [{"quantizer": "gptq"}, {"quantized": Path("made.safetensors")}])
def test_a_budget_has_to_be_spent_before_integers_are_made_of_inputs(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(
        RecipeError, match=r"makes integers before a build.*ossicle quantize CHECKPOINT --max-size SIZE"
    ):
        within(folder, tmp_path / "out", spending.Budget((budget.of_size(10**6),)), **options)


def test_an_imatrix_that_no_choice_has_a_use_for_is_refused_before_it_is_measured(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", unmeasured)
    weighed = replace(checkpoint, imatrix=Imatrix(BundleFile("x.gguf", 1, "0" * 64), {}))
    spent = spending.Budget((asked_between(checkpoint, ("onnx",), 0.3),))
    assert "no format that target onnx can hold has a use for an imatrix" in refused(weighed, spent)
    with pytest.raises(LookupError):
        spending.allocation(weighed, ("onnx",), spent, "decoder=mse")
    with pytest.raises(LookupError):
        spending.allocation(weighed, ("gguf",), spending.Budget((asked_between(checkpoint, ("gguf",), 0.3),)))


def test_a_budget_for_what_cannot_be_written_here_is_refused_before_it_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured in vain"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BuildError, match=r'target .openvino. needs.*pip install "ossicle\[openvino\]"'):
        within(folder, tmp_path / "out", spending.Budget((budget.of_size(10**6),)), targets=("openvino",))
