"""GGUF files against those of llama.cpp's own converter: each of its keys, and each tensor to the bit.

What it made is kept in llama_cpp_files.json; llama_cpp_files.py beside it makes that anew, of any llama.cpp.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from ossicle.compiler.pipeline import build
from ossicle.tests.targets.llama_cpp_files import AUDIO, FILES, TEXT, checkpoint, described, weights

THEIRS = json.loads(FILES.read_text())
# A recipe of bfloat16 keeps the audio encoder in float32.
RECIPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "Q8_0": "int8"}
NAMED = {"general.name", "general.size_label"}  # after the converter's folder, and a rounded count
# What tokenizer.json and its configuration do not tell the converter, and tekken.json tells ossicle.
OURS = {f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token", "add_space_prefix")} | {
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.chat_template",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint(tmp_path_factory.mktemp("converted") / "checkpoint")
    assert weights(folder) == THEIRS["weights"], "other weights than were converted"
    return folder


@pytest.fixture(scope="module", params=RECIPES)
def files(request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in each file of a bundle, by the name of the file that the converter makes of it."""
    out = tmp_path_factory.mktemp("bundle") / "out"
    build(made, out, targets=("gguf",), recipe=RECIPES[request.param], verify=False)
    found = {path.stem.replace("mmproj-voxtral", "mmproj"): described(path) for path in out.glob("gguf/*.gguf")}
    return {name.replace("voxtral", "text"): told for name, told in found.items()}


def test_every_tensor_has_the_bytes_of_the_converter(files: dict[str, Any]) -> None:
    assert len(files) == 2
    for name, told in files.items():
        assert told["tensors"] == THEIRS["files"][name]["tensors"]


def test_every_key_is_the_converters(files: dict[str, Any]) -> None:
    for name, told in files.items():
        ours, theirs = told["metadata"], THEIRS["files"][name]["metadata"]
        assert {key: ours.get(key) for key in theirs} | _named(theirs) == theirs
        assert ours.keys() - theirs.keys() == (OURS if name.startswith("text") else set())


def _named(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key in NAMED}


def test_every_type_was_converted() -> None:
    assert set(THEIRS["files"]) == {f"text-{kind}" for kind in TEXT} | {f"mmproj-{kind}" for kind in AUDIO}
