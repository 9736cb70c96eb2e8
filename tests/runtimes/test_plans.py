"""What a user says of engines, and the plans that it names."""

from typing import Any

import pytest
from ossicle.runtimes.plans import Placement, Plan, asked, one, placement
from ossicle.targets.contract import EngineError

ORT, OPENVINO, GPU = Placement("onnxruntime"), Placement("openvino"), Placement("openvino", "gpu")


@pytest.mark.parametrize(
    ("engine", "provider", "words"),
    [
        ("auto", "cpu", ["auto", "auto", "auto"]),
        ("openvino", "cpu", ["openvino", "openvino", "openvino"]),
        ("openvino", "gpu", ["openvino:gpu", "openvino:gpu", "openvino:gpu"]),
        ("openvino:gpu", "gpu", ["openvino:gpu", "openvino:gpu", "openvino:gpu"]),
        ("openvino:npu", "cpu", ["openvino:npu", "openvino:npu", "openvino:npu"]),
        ("encoder=openvino:gpu, decoder=llamacpp", "cpu", ["openvino:gpu", "llamacpp", "llamacpp"]),
        ({"decoder": "llamacpp"}, "cpu", ["auto", "llamacpp", "llamacpp"]),
        ({"prefill": "openvino", "decoder": "llamacpp"}, "cpu", ["auto", "openvino", "llamacpp"]),
        ({"encoder": "openvino"}, "cpu", ["openvino", "auto", "auto"]),
    ],
)
def test_words_for_every_stage(engine: Any, provider: str, words: list[str]) -> None:
    assert list(asked(engine, provider).values()) == words


@pytest.mark.parametrize(
    ("engine", "provider", "fault"),
    [
        (
            "encodr=openvino",
            "cpu",
            r"stages encodr are unknown \(an engine can be given to: encoder, prefill, decoder\)",
        ),
        ("encoder=a,encoder=b", "cpu", "names encoder twice"),
        ({"decoder": "onnxruntime"}, "cuda", "decoder=onnxruntime:cuda"),
        ("auto", "cuda", "none is named. Name it: --engine onnxruntime:cuda"),
        ("openvino:cpu", "gpu", "names its provider, and 'gpu' is another"),
        ("encoder=openvino,decoder", "cpu", "no engine is named for decoder"),
    ],
)
def test_impossible_words_are_refused(engine: Any, provider: str, fault: str) -> None:
    with pytest.raises(EngineError, match=fault):
        asked(engine, provider)


def test_a_plan_is_read_as_it_is_written() -> None:
    plans = [one(ORT), one(GPU), Plan(OPENVINO, ORT, ORT), Plan(OPENVINO, OPENVINO, ORT)]
    for plan in plans:
        words = asked(str(plan))
        assert Plan(*map(placement, words.values())) == plan
    assert [plan.is_single for plan in plans] == [True, True, False, False]
    assert plans[3].stages == {OPENVINO: ("encoder", "prefill"), ORT: ("decoder",)}
    assert str(Plan(None, ORT, ORT)) == "encoder=none,decoder=onnxruntime"
