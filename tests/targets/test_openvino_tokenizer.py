"""The tokenizer as OpenVINO models: what tokenizer.json makes of a text or of ids, they make of it."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ossicle.compiler.tokenizer import write_tokenizer
from ossicle.targets import openvino_tokenizer
from ossicle.targets.openvino_core import core
from tokenizers import Tokenizer

pytest.importorskip("openvino_tokenizers")
MODEL = Path(__file__).parents[2] / "demo" / "model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(MODEL, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def models(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("openvino")
    written = openvino_tokenizer.write(tokenizer, folder)
    assert sorted(written) == sorted(folder.iterdir())
    return tuple(
        core().compile_model(folder / name, "CPU")
        for name in (openvino_tokenizer.TOKENIZER, openvino_tokenizer.DETOKENIZER)
    )


@pytest.fixture(scope="module")
def reference(tokenizer: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(tokenizer))
    made.encode_special_tokens = True
    return made


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
@example(text="[INST] one </s><s>[/INST][AUDIO]<unk>")
@example(text="")
@example(text="two  spaces \n\n\t end \U0001f469\u200d\U0001f469")
def test_ids_and_text_are_those_of_the_bundles_tokenizer(
    models: tuple[Any, Any], reference: Tokenizer, text: str
) -> None:
    encode, decode = models
    ids = reference.encode(text, add_special_tokens=False).ids
    made = encode([text])
    assert made["input_ids"][0].tolist() == ids
    assert made["attention_mask"][0].tolist() == [1] * len(ids)
    assert str(decode([np.array([ids], np.int64)])[0][0]) == text


def test_no_special_token_comes_of_plain_text(models: tuple[Any, Any], tokenizer: Path) -> None:
    specials = {token["content"]: token["id"] for token in json.loads(tokenizer.read_bytes())["added_tokens"]}
    assert len(specials) > 20
    for name in specials:
        assert not {*models[0]([name])["input_ids"][0].tolist()} & {*specials.values()}, name


def test_special_tokens_are_left_out_of_a_text(models: tuple[Any, Any], reference: Tokenizer) -> None:
    ids = [1, *reference.encode("one two", add_special_tokens=False).ids, 3, 24, 2]
    assert str(models[1]([np.array([ids], np.int64)])[0][0]) == "one two"


def test_the_same_tokenizer_gives_the_same_bytes(tokenizer: Path, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        written.append([path.read_bytes() for path in openvino_tokenizer.write(tokenizer, folder)])
    assert written[0] == written[1]


def test_what_the_converter_cannot_hold_is_said_and_left_out(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads(tokenizer.read_bytes())
    document["pre_tokenizer"] = {"type": "CharDelimiterSplit", "delimiter": " "}
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        assert openvino_tokenizer.write(other, tmp_path) == ()
    assert "is not written for OpenVINO" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_what_the_models_would_take_otherwise_is_left_out(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_tokenizer, "_recognize_nothing", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert openvino_tokenizer.write(tokenizer, tmp_path) == ()
    assert "it takes '<unk>' otherwise" in caplog.text


def test_without_the_package_nothing_is_written(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    assert openvino_tokenizer.write(tokenizer, tmp_path) == ()
    assert list(tmp_path.iterdir()) == []
