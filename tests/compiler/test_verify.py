"""What verification measures, what it refuses, and what it says. References come from torch."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from ossicle.compiler import marking, report, stored, verify
from ossicle.compiler.figures import (
    Comparison,
    Said,
    Verification,
    agreement,
    difference,
    divergence,
    judge,
    relative,
    summarize,
)
from ossicle.compiler.provenance import check_source
from ossicle.compiler.readings import Reading, Reply
from ossicle.compiler.speech import Clip
from ossicle.kernels import groupwise
from ossicle.targets.contract import (
    BundleFile,
    QuantizedRows,
    QuantizedTensor,
    Thresholds,
    VerificationError,
    WeightFormat,
)
from ossicle.targets.manifest import AdapterSource, Source
from ossicle.targets.probe import Answer
from ossicle.targets.recipes import RECIPES

GOLDEN = Path(__file__).parents[1] / "golden" / "verification.md"


def comparison(clip="a.wav", **figures):
    said = (
        Said("en", None, "turn on the light", "turn on the light", "turn on the light"),
        Said(None, "which room?", "kitchen", "kitchen", "garage"),
    )
    base = Comparison(
        clip, 1, logmel=1e-6, embeddings=2e-6, embeddings_relative=1e-6, logits=3e-6, kl=1e-9, kl_max=1e-8, top1=1.0,
        positions=5, said=said,
    )  # fmt: skip
    return replace(base, **figures)


def verification(*clips, thresholds=None):
    thresholds = thresholds or Thresholds(
        embeddings=1e-4, logits=1e-4, embeddings_stored=1e-3, kl_stored=1e-4, same_text=True
    )
    target = judge("onnx", "onnxruntime-cpu", "executed", clips or (comparison(),), thresholds)
    return Verification("demo", "fp32", "speech.jsonl", "0" * 64, thresholds, (target,))


def logits(seed, scale=3.0):
    return (np.random.default_rng(seed).standard_normal((7, 50)) * scale).astype(np.float32)


def test_an_interpreter_is_held_closer_than_an_engine():
    clip = comparison(embeddings_relative=3e-3, embeddings_stored=3e-3, kl_stored=5e-5)
    thresholds = Thresholds(embeddings=1e-2, embeddings_stored=1e-2, kl_stored=8e-4)
    failed = {
        proof: [
            check.figure for check in judge("coreml", "coreml", proof, (clip,), thresholds).checks if not check.passed
        ]
        for proof in ("executed", "interpreted")
    }
    assert failed == {"executed": [], "interpreted": ["embeddings_relative", "embeddings_stored", "kl_stored"]}


def test_divergence_is_that_of_torch():
    torch = pytest.importorskip("torch")
    original, artifact = logits(0), logits(1)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.from_numpy(artifact).double(), -1),
        torch.log_softmax(torch.from_numpy(original).double(), -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    np.testing.assert_allclose(divergence(original, artifact), expected.numpy(), rtol=1e-12)


def test_equal_logits_diverge_by_nothing():
    assert divergence(logits(0), logits(0)).max() == 0.0
    assert agreement(logits(0), logits(0)) == 1.0


def test_differences_are_largest_and_relative():
    original = np.array([[3.0, 4.0]], np.float32)
    artifact = np.array([[3.0, 4.5]], np.float32)
    assert difference(original, artifact) == 0.5
    assert relative(original, artifact) == pytest.approx(0.1)


@pytest.mark.parametrize("measure", [difference, relative, lambda a, b: divergence(a, b).min()])
def test_another_shape_is_infinitely_far(measure):
    assert measure(logits(0), logits(0)[:, :-1]) == math.inf
    assert agreement(logits(0), logits(0)[:-1]) == 0.0


def test_what_is_no_number_fails_and_is_named():
    verdict = verification(comparison("a.wav"), comparison("b.wav", logits=math.nan), comparison("c.wav"))
    (failed,) = [check for check in verdict.targets[0].checks if not check.passed]
    assert (failed.figure, failed.worst) == ("logits", "b.wav")
    assert "NaN" not in json.dumps(marking.section(verdict), allow_nan=False)


def test_figures_weigh_positions_and_keep_the_worst_clip():
    figures = summarize([comparison(kl=0.1, positions=1, top1=0.0), comparison(kl=0.01, positions=9, logits=2.0)])
    assert figures.kl == pytest.approx(0.019)
    assert figures.kl_clip == 0.1
    assert figures.top1 == pytest.approx(0.9)
    assert figures.logits == 2.0
    assert (figures.wer, figures.wer_original, figures.answers) == (0.0, 0.0, 0.0)


def test_without_references_there_is_no_word_error_rate():
    figures = summarize([comparison(said=(Said(None, None, "on", "on", None),))])
    assert (figures.wer, figures.wer_original, figures.answers, figures.same_answers) == (None, None, None, 1.0)


@pytest.mark.parametrize(
    ("fault", "figure"),
    [
        ({"logmel": 2e-4}, "logmel"),
        ({"embeddings_relative": 2e-4}, "embeddings_relative"),
        ({"logits": 2e-4}, "logits"),
        ({"kl": 2e-4}, "kl"),
        ({"kl_stored": 2e-4}, "kl_stored"),
        ({"embeddings_stored": math.nan}, "embeddings_stored"),
        ({"top1": 0.8}, "top1"),
        ({"said": (Said("en", None, "turn on", "turn off", "turn on"),)}, "same_text"),
        ({"said": (Said(None, "q", "yes", "no", "no"),)}, "same_answers"),
    ],
)
def test_each_figure_can_fail(fault, figure):
    verdict = verification(comparison("good.wav"), comparison("bad.wav", **fault))
    failed = {check.figure: check.worst for check in verdict.targets[0].checks if not check.passed}
    assert failed[figure] == "bad.wav"
    assert not verdict.passed
    assert any("bad.wav" in fault for fault in report.faults(verdict))


def test_the_word_error_rate_is_held_against_the_original():
    said = Said(None, None, "turn on the light", "turn on the night", "turn on the light")
    clip = comparison(said=(said,))
    assert not verification(clip, thresholds=Thresholds(wer=0.2)).passed
    assert verification(clip, thresholds=Thresholds(wer=0.25)).passed


def test_one_bad_clip_among_many_shows():
    clips = [comparison(f"{number}.wav", kl=1e-4) for number in range(50)] + [comparison("bad.wav", kl=0.3)]
    mean_alone, by_clip = Thresholds(kl=0.02), Thresholds(kl=0.02, kl_clip=0.1)
    assert verification(*clips, thresholds=mean_alone).passed
    assert not verification(*clips, thresholds=by_clip).passed


def test_a_recipe_is_read_back_from_a_manifest():
    for recipe in RECIPES.values():
        assert stored.recipe_of(json.loads(json.dumps(asdict(recipe)))) == recipe
        assert stored.rounds(recipe) == (recipe.name != "fp32")


@pytest.mark.parametrize("form", [WeightFormat(4, 32), WeightFormat(4, 32, symmetric=False), WeightFormat(8, 32)])
@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 5), (8, 9)])
def test_rounded_rows_are_the_stored_integers(form, start, stop):
    values = np.random.default_rng(0).standard_normal((9, 80)).astype(np.float32)

    class Weights:
        def source(self, _):
            return values

        def format(self, _):
            return form

        def quantized(self, name):
            def blocks():
                for first in range(0, 9, 4):
                    rows = values[first : first + 4]
                    if form.symmetric:
                        yield QuantizedRows(first, *groupwise.quantize_symmetric(rows, form.bits, form.group), None)
                    else:
                        yield QuantizedRows(first, *groupwise.quantize_asymmetric(rows, form.bits, form.group))

            return QuantizedTensor(name, values.shape, form, blocks)

    found = stored.Rounded("w", Weights()).rows(start, stop)
    whole = [
        groupwise.dequantize(rows.codes, rows.scales, rows.zero_points, form.bits, form.group)
        for rows in Weights().quantized("w").blocks()
    ]
    np.testing.assert_allclose(found, np.concatenate(whole)[start:stop], rtol=1e-6)
    assert 0 < np.abs(found - values[start:stop]).max() < 0.5


def test_a_reading_is_asked_and_compared_in_order(tmp_path):
    clip = Clip("a.wav", tmp_path / "a.wav", "on", "en", (("which room?", "kitchen"),))
    mel, audio = np.ones((1, 4, 6), np.float32), np.ones((1, 3, 2), np.float32)
    plain, spoken = logits(0)[:3], logits(1)[:2]
    replies = (
        Reply(None, None, "on", (5, 6, 2), plain),
        Reply("en", None, "on", (5, 2), spoken),
        Reply(None, "which room?", "kitchen", (9, 2)),
    )
    reading = Reading(clip, mel, audio, replies)
    asked = verify.requests(reading)
    assert [request.kind for request in asked] == [
        "logmel", "audio", "score", "transcribe", "score", "transcribe", "ask",
    ]  # fmt: skip
    assert [request.language for request in asked[2:6]] == [None, None, "en", "en"]
    answers = [
        Answer("logmel", 0.1, mel + 0.5),
        Answer("audio", 0.1, audio),
        Answer("score", 0.1, plain),
        Answer("transcribe", 0.1, text="on"),
        Answer("score", 0.1, spoken[:, ::-1]),
        Answer("transcribe", 0.1, text="off"),
        Answer("ask", 0.1, text="garage"),
    ]
    found = verify.compare(reading, answers)
    assert (found.logmel, found.embeddings, found.positions) == (0.5, 0.0, 5)
    assert found.top1 == pytest.approx(3 / 5)
    assert [said.artifact for said in found.said] == ["on", "off", "garage"]
    assert [said.expected for said in found.said] == ["on", "on", "kitchen"]


class Original:
    imatrix = quantized = None

    def __init__(self, source, adapters=()):
        self.source, self.adapters = source, adapters


class Built(Original):
    name = "demo"


SOURCE = Source("demo", (BundleFile("model.safetensors", 3, "a" * 64),))
ADAPTER = AdapterSource("lora", 1.0, (BundleFile("adapter_model.safetensors", 3, "b" * 64),))


def test_the_bundles_own_checkpoint_is_taken():
    check_source(Built(SOURCE, (ADAPTER,)), Original(Source("elsewhere", SOURCE.files), (ADAPTER,)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Original(replace(SOURCE, files=(replace(SOURCE.files[0], sha256="c" * 64),)), (ADAPTER,)), "another sha256"),
        (Original(replace(SOURCE, files=()), (ADAPTER,)), "model.safetensors is missing"),
        (Original(SOURCE), "lora:1"),
        (Original(SOURCE, (replace(ADAPTER, weight=0.5),)), "weight 1, not 0.5"),
        (Original(SOURCE, (replace(ADAPTER, files=()),)), "'lora': adapter_model.safetensors is missing"),
    ],
)
def test_another_checkpoint_is_refused(given, words):
    with pytest.raises(VerificationError, match=words):
        check_source(Built(SOURCE, (ADAPTER,)), given)


def test_the_page_is_the_golden_one():
    said = (
        Said("en", None, "turn on the light", "turn on the | night", "turn on the light"),
        Said(None, "which room?", "kitchen", "garage", "kitchen"),
    )
    page = report.markdown(verification(comparison(), comparison("b.wav", kl=0.2, top1=0.6, said=said)))
    assert page == GOLDEN.read_text(encoding="utf-8")


def test_the_record_is_json_with_every_clip(tmp_path):
    verdict = verification(comparison(), comparison("b.wav", kl=math.inf))
    page, record = report.write(tmp_path / "report", verdict)
    document = json.loads(record.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document["passed"] is False
    assert [clip["clip"] for clip in document["targets"][0]["clips"]] == ["a.wav", "b.wav"]
    assert document["targets"][0]["clips"][1]["kl"] == "inf"
    assert "FAILED" in page.read_text(encoding="utf-8")


def test_the_manifests_section_holds_no_time_and_two_digits():
    (entry,) = marking.section(verification(comparison(logits=1.23456e-5))).values()
    assert entry["figures"]["logits"] == 1.2e-5
    assert (entry["passed"], entry["failed"], entry["proof"]) == (True, [], "executed")
    assert entry["thresholds"]["logits"] == 1e-4
    assert not {"seconds", "date", "time"} & set(entry)
