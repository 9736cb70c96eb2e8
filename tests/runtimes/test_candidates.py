"""What could run a bundle on machines that are not here: ranks, reasons, memory, and the plans that follow."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ossicle.runtimes.accelerators import Accelerator
from ossicle.runtimes.choose import Choices, by_measurement, by_rank, distinct, misfit, simplest_best
from ossicle.runtimes.corpus_shares import memory_of
from ossicle.runtimes.device import DeviceFacts, RuntimeFacts
from ossicle.runtimes.measurements import Measurements, Row, Times, of_plan, with_threads
from ossicle.runtimes.needs import need
from ossicle.runtimes.plans import Placement, Plan, asked, one
from ossicle.runtimes.processor import Processor
from ossicle.runtimes.registry import runtimes
from ossicle.runtimes.select import Candidate, Wanted, candidates
from ossicle.targets.contract import Artifact, EngineError, Memory
from ossicle.targets.manifest import Manifest, RuntimeAdapter
from ossicle.tests.fakes import write_bundle

GB = 1_000_000_000
MISSING = "is not installed. Install it with pip"
ORT, OPENVINO, LLAMA = Placement("onnxruntime"), Placement("openvino"), Placement("llamacpp")


def told(name: str, reason: str | None = None, **facts: Any) -> RuntimeFacts:
    target = next(runtime.target for runtime in runtimes() if runtime.name == name)
    known: dict[str, Any] = {"version": None if reason else "2026.1", "inexact": None, "proof": "executed"}
    return RuntimeFacts(name, target, reason=reason, **(known | facts))


def machine(
    memory: int, *engines: RuntimeFacts, accelerators: tuple[Accelerator, ...] = (), cores: int = 8
) -> DeviceFacts:
    every = {one.name: one for one in engines}
    known = tuple(every.get(runtime.name, told(runtime.name, MISSING)) for runtime in runtimes())
    return DeviceFacts(
        "made up", "3.12", Processor("cpu", "x86_64", cores, cores, ()), memory, memory, known, accelerators
    )


RTX = Accelerator("gpu", "nvidia", "RTX 4070", driver="580.1", memory=12 * GB, capability="8.9")
MTMD = told("llamacpp-mtmd", inexact="averages pairs")
RTX_PC = machine(
    32 * GB,
    told("onnxruntime", providers={"cpu": None, "cuda": None, "directml": "is built without it", "openvino": None}),
    told("openvino", providers={"cpu": None, "gpu": "there is no Intel GPU", "auto": None}),
    told("llamacpp"),
    MTMD,
    told("tensorrt"),
    accelerators=(RTX,),
)
CORE_ULTRA = machine(
    16 * GB,
    told("onnxruntime", providers={"cpu": None, "cuda": "there is no NVIDIA GPU"}),
    told("openvino", providers={"cpu": None, "gpu": None, "npu": None, "auto": None}),
    accelerators=(Accelerator("gpu", "intel", "Arc"), Accelerator("npu", "intel", "AI Boost")),
)
MAC = machine(
    16 * GB,
    told("onnxruntime", providers={"cpu": None, "coreml": None}),
    told("coreml", providers={"cpu": None, "gpu": None, "ane": None, "all": None}),
    told("llamacpp"),
    accelerators=(Accelerator("gpu", "apple", "M4"),),
)
RASPBERRY = machine(4 * GB, told("onnxruntime", providers={"cpu": None}), told("llamacpp"), cores=4)
STAND_IN = machine(
    8 * GB,
    told("onnxruntime", providers={"cpu": None}),
    told("tensorrt", proof="same graph", absent="there is no NVIDIA driver"),
    told("coreml", proof="interpreted", absent="Core ML is part of macOS"),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A bundle of Voxtral-Mini's size for every target: 0.7 GB of encoder, 2.2 GB of decoder, 0.25 MB for each token."""
    written = write_bundle(tmp_path)
    memory = {
        "audio_encoder": Memory(700_000_000, 0, 200_000_000),
        "embed_tokens": Memory(400_000_000),
        "decoder": Memory(1_800_000_000, 250_000, 100_000_000),
    }
    artifacts = tuple(
        Artifact(target, stage, "int4", "int4", written.artifacts[0].files, (), (), {}, memory[stage])
        for target in ("onnx", "openvino", "gguf", "coreml", "tensorrt")
        for stage in memory
    )
    recipe = {"name": "int4", "compute": "float32", "integer_activations": True, "context": 32768}
    return replace(written, artifacts=artifacts, recipe=recipe)


def choices(facts: DeviceFacts, manifest: Manifest, engine: Any = "auto", **wanted: Any) -> Choices:
    found = candidates(facts, manifest, Wanted(**wanted))
    return Choices(manifest, asked(engine), runtimes(), facts, found, may_measure=True)


def possible(found: Choices, stage: Any) -> list[str]:
    return [str(placement) for placement in found.possible(stage)]


def reason(found: Choices, stage: str, engine: str) -> str:
    (candidate,) = (one for one in found.candidates if (one.stage, str(one.placement)) == (stage, engine))
    assert candidate.reason
    return candidate.reason


@pytest.mark.parametrize(
    ("facts", "encoders", "decoders", "plan"),
    [
        (
            RTX_PC,
            ["onnxruntime:cuda", "tensorrt", "openvino", "onnxruntime"],
            ["onnxruntime:cuda", "tensorrt", "onnxruntime", "openvino", "llamacpp"],
            "onnxruntime:cuda",
        ),
        (
            CORE_ULTRA,
            ["openvino:gpu", "openvino", "onnxruntime", "openvino:npu"],
            ["openvino:gpu", "onnxruntime", "openvino", "openvino:npu"],
            "openvino:gpu",
        ),
        (
            MAC,
            ["onnxruntime:coreml", "coreml:all", "onnxruntime", "coreml"],
            ["onnxruntime:coreml", "coreml:all", "onnxruntime", "llamacpp", "coreml"],
            "onnxruntime:coreml",
        ),
        (STAND_IN, ["onnxruntime"], ["onnxruntime"], "onnxruntime"),
    ],
    ids=["RTX PC", "Core Ultra", "Mac", "stand-ins"],
)
def test_machines_that_are_not_here(
    facts: DeviceFacts, manifest: Manifest, encoders: list[str], decoders: list[str], plan: str
) -> None:
    found = choices(facts, manifest)
    assert (possible(found, "encoder"), possible(found, "decoder")) == (encoders, decoders)
    assert str(by_rank(found)[0].plan) == plan
    assert all(one.reason or one.rank for one in found.candidates)


def test_every_refusal_has_its_reason(manifest: Manifest) -> None:
    found = choices(RTX_PC, manifest)
    assert "no Intel GPU" in reason(found, "decoder", "openvino:gpu")
    assert "leaves the choice to its engine" in reason(found, "encoder", "openvino:auto")
    assert "only taken by name: averages pairs" in reason(found, "decoder", "llamacpp-mtmd")
    assert "averages pairs of frames" in reason(found, "encoder", "llamacpp")
    assert MISSING in reason(found, "decoder", "coreml")
    stand_in = choices(STAND_IN, manifest)
    assert "stands in for it here (same graph) is only taken by name" in reason(stand_in, "decoder", "tensorrt")


def test_half_precision_is_not_chosen_for_a_recipe_that_excludes_it(manifest: Manifest) -> None:
    exact = replace(manifest, recipe={"name": "fp32", "compute": "float32", "integer_activations": False})
    assert "openvino:npu" not in possible(choices(CORE_ULTRA, exact), "decoder")
    assert "float16, and recipe fp32 is float32" in reason(choices(CORE_ULTRA, exact), "encoder", "openvino:npu")


def test_a_bundle_that_keeps_adapters_is_not_chosen_for_an_engine_that_adds_none(manifest: Manifest) -> None:
    (file, *_) = manifest.files
    kept = replace(manifest, runtime_adapters=(RuntimeAdapter("legal", "onnx", file, ()),))
    found = choices(CORE_ULTRA, kept)
    assert possible(found, "decoder") == possible(found, "prefill") == ["onnxruntime"]
    assert "openvino" in possible(found, "encoder")
    assert "does not add the bundle's adapters as it runs (legal)" in reason(found, "decoder", "openvino")


def test_only_who_computes_as_asked_is_chosen_for_a_decoder(manifest: Manifest) -> None:
    found = choices(RTX_PC, manifest, compute="float32")
    assert possible(found, "decoder") == possible(found, "prefill") == ["llamacpp"]
    assert possible(found, "encoder") == possible(choices(RTX_PC, manifest), "encoder")
    assert "no compute 'float32' (it has: what the bundle says alone)" in reason(found, "decoder", "onnxruntime")
    none = choices(RTX_PC, manifest, compute="float64")
    assert not none.is_open
    with pytest.raises(EngineError, match=r"llamacpp: it has no compute 'float64' \(it has: float32\)"):
        by_rank(none)


def test_numbers_that_are_widened_as_they_are_loaded_count_as_that(manifest: Manifest) -> None:
    whole = {target: need(manifest, target, "decoder", "cpu", 4096) for target in ("gguf", "onnx")}
    for target, more in (("gguf", 10 * GB - 2_200_000_000), ("onnx", 0)):
        wide = need(manifest, target, "decoder", "cpu", 4096, widened=10 * GB)
        assert wide.total - whole[target].total == more
    assert need(manifest, "gguf", "encoder", "cpu", 0, widened=10 * GB) == need(manifest, "gguf", "encoder", "cpu", 0)
    assert memory_of(manifest, widened=10 * GB) - memory_of(manifest) == 10 * GB - 2_200_000_000
    assert possible(choices(RTX_PC, manifest, compute="float32", widened=10 * GB), "decoder") == ["llamacpp"]
    found = choices(RTX_PC, manifest, compute="float32", widened=40 * GB)
    assert possible(found, "decoder") == []
    assert re.search(r"it takes .*weights 4\d\.\d GB.*the CPU has", reason(found, "decoder", "llamacpp"))


def test_what_failed_verification_is_not_chosen_unless_tolerated(manifest: Manifest) -> None:
    failed = replace(manifest, verification={"openvino": {"passed": False, "failed": ["kl"]}})
    assert possible(choices(CORE_ULTRA, failed), "decoder") == ["onnxruntime"]
    assert "failed verification for target openvino (kl)" in reason(choices(CORE_ULTRA, failed), "encoder", "openvino")
    assert len(possible(choices(CORE_ULTRA, failed, allow_failed=True), "decoder")) == 4


def test_memory_is_reckoned_with_the_context_that_is_asked_for(manifest: Manifest) -> None:
    found = choices(RASPBERRY, manifest)
    assert possible(found, "decoder") == ["onnxruntime", "llamacpp"]  # 2.2 + 4096 * 0.25 MB + 0.1 = 3.3 GB
    told = reason(choices(RASPBERRY, manifest, context=8192), "decoder", "llamacpp")
    assert told == (
        "it takes 4.3 GB (weights 2.2 GB, keys and values of 8192 tokens 2.0 GB, working space 100.0 MB), and the CPU has "
        "4.0 GB free"
    )
    assert possible(choices(RASPBERRY, manifest, context=8192, kv_cache="int8"), "decoder") == [
        "onnxruntime",
        "llamacpp",
    ]
    assert memory_of(manifest) - memory_of(manifest, "int8") == 8192 * 250_000 - int(8192 * 250_000 * 1.0625 / 4)


def test_where_memory_is_too_little_for_anything_every_engine_says_why(manifest: Manifest) -> None:
    little = replace(CORE_ULTRA, memory=GB, memory_available=GB)
    found = choices(little, manifest, context=1 << 20)
    assert "and the CPU has 1.0 GB free" in reason(found, "decoder", "openvino")
    assert "leaves the choice to its engine" in reason(found, "decoder", "openvino:auto")
    with pytest.raises(EngineError, match="no engine can run bundle 'fake' here"):
        by_rank(found)


def test_a_plan_counts_the_weights_of_all_its_engines(manifest: Manifest) -> None:
    found = choices(RASPBERRY, manifest)
    with pytest.raises(EngineError, match=r"onnxruntime: its stages take 4\.2 GB together, and 4\.0 GB are free"):
        by_rank(found)
    small = choices(RASPBERRY, manifest, context=1024)
    assert [str(ranked.plan) for ranked in by_rank(small)] == ["onnxruntime", "encoder=onnxruntime,decoder=llamacpp"]
    handed = Plan(ORT, LLAMA, ORT)
    assert misfit(small, handed) == "its stages take 6.0 GB together, and 4.0 GB are free"


def test_a_gpus_own_memory_holds_what_runs_on_it(manifest: Manifest) -> None:
    little = replace(RTX_PC, accelerators=(replace(RTX, memory=3 * GB),))
    assert "an NVIDIA GPU has 3.0 GB free" in reason(choices(little, manifest), "decoder", "onnxruntime:cuda")
    assert possible(choices(little, manifest), "encoder")[0] == "onnxruntime:cuda"
    assert str(by_rank(choices(little, manifest))[0].plan) == "onnxruntime"


@pytest.mark.parametrize(
    ("engine", "plan"),
    [
        ("llamacpp", "encoder=onnxruntime:cuda,decoder=llamacpp"),
        ({"encoder": "openvino", "decoder": "llamacpp"}, "encoder=openvino,decoder=llamacpp"),
        ({"encoder": "openvino"}, "encoder=openvino,decoder=onnxruntime:cuda"),
        (
            {"prefill": "openvino", "decoder": "onnxruntime"},
            "encoder=onnxruntime,prefill=openvino,decoder=onnxruntime",
        ),
    ],
)
def test_what_is_named_is_taken(manifest: Manifest, engine: Any, plan: str) -> None:
    found = choices(RTX_PC, manifest, {"decoder": "llamacpp"} if engine == "llamacpp" else engine)
    assert str(by_rank(found)[0].plan) == plan


def rows(seconds: dict[Plan, float | str]) -> Measurements:
    """Measurements of whole plans: their seconds in all, or why they failed."""
    return Measurements(
        tuple(
            Row(of_plan(plan), reason=total)
            if isinstance(total, str)
            else Row(of_plan(plan), Times(total / 2, total / 4, total / 400))
            for plan, total in seconds.items()
        )
    )


MIX = Plan(OPENVINO, ORT, ORT)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({one(ORT): 1.0, one(OPENVINO): 2.0}, one(ORT)),
        ({one(ORT): 2.0, one(OPENVINO): 1.0}, one(OPENVINO)),
        ({one(ORT): 1.0, one(OPENVINO): 1.5, MIX: 0.98}, one(ORT)),
        ({one(ORT): 1.0, one(OPENVINO): 1.5, MIX: 0.9}, MIX),
        ({one(ORT): 1.0, one(OPENVINO): 1.5, MIX: 0.9, with_threads(MIX, ORT, 4): 0.89}, MIX),
        ({one(ORT): 1.0, MIX: 0.9, with_threads(MIX, ORT, 4): 0.8}, with_threads(MIX, ORT, 4)),
        ({one(ORT): 1.0, MIX: 1.2}, one(ORT)),
    ],
)
def test_the_simplest_of_the_fastest_is_chosen(seconds: dict[Plan, float], best: Plan) -> None:
    assert simplest_best(seconds) == best


def test_measurements_stand_above_rank_and_failures_below(manifest: Manifest) -> None:
    found = choices(RTX_PC, manifest)
    measured = rows({one(ORT): 3.0, one(OPENVINO): 2.0, MIX: 1.0, one(Placement("onnxruntime", "cuda")): "no memory"})
    order = [str(ranked.plan) for ranked in by_measurement(found, measured)]
    assert order == [
        "encoder=openvino,decoder=onnxruntime",
        "openvino",
        "onnxruntime",
        "tensorrt",
        "encoder=onnxruntime:cuda,decoder=llamacpp",
        "onnxruntime:cuda",
    ]
    assert by_measurement(found, measured)[0].why == "measured: 1.00 s for a window of audio, its prompt and 100 tokens"
    assert by_measurement(found, Measurements()) == by_rank(found)


def test_plans_that_differ_in_threads_alone_fail_together(manifest: Manifest) -> None:
    found = choices(RTX_PC, manifest)
    fast = with_threads(MIX, ORT, 4)
    ranked = by_measurement(found, rows({one(ORT): 3.0, MIX: 1.0, fast: 0.5}))
    assert [each.plan for each in ranked][:3] == [fast, MIX, one(ORT)]
    assert [each.plan for each in distinct(ranked)][:2] == [fast, one(ORT)]


def test_candidates_are_pure(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = candidates(RTX_PC, manifest, Wanted())
    for runtime in runtimes():
        monkeypatch.setattr(type(runtime), "usable", lambda _: pytest.fail("the machine was asked"), raising=True)
    assert candidates(RTX_PC, manifest, Wanted()) == expected
    assert all(isinstance(one, Candidate) for one in expected)
