"""The shipped model, adapter and recordings, the whole way: built, verified, transcribing without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ossicle.cli.demo import shipped
from ossicle.compiler import speech
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.lora import AdapterSpec
from ossicle.compiler.pipeline import build
from ossicle.compiler.report import faults
from ossicle.compiler.verify import verify
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.tests.faults import recordings

SPANISH = {
    "zero": "cero", "one": "uno", "two": "dos", "three": "tres", "four": "cuatro", "five": "cinco", "six": "seis",
    "seven": "siete", "eight": "ocho", "nine": "nueve", "ten": "diez", "twenty": "veinte", "thirty": "treinta",
}  # fmt: skip
CLIPS = speech.load(speech.shipped()).clips
SHORT = [clip for clip in CLIPS if clip.name[:2].isdigit()]

# What a device does, in a process of its own: torch and transformers must not come along.
DEVICE = """
import json, sys
import ossicle
with ossicle.load(sys.argv[1]) as session:
    texts = [found.text for found in session.transcribe(sys.argv[2:], language="en")]
assert not {"torch", "transformers", "onnx", "numba"} & set(sys.modules), sorted(sys.modules)
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def bundles(demo: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    spanish = tmp_path_factory.mktemp("demo") / "fp32-adapter"
    build(shipped("model"), spanish, recipe="fp32", adapters=[AdapterSpec(shipped("adapter"))], verify=False)
    return {"fp32": demo("fp32", "onnx"), "int4": demo("int4", "onnx"), "fp32-adapter": spanish}


@pytest.fixture(scope="module")
def fp32(bundles: dict[str, Path]) -> Session:
    return load(bundles["fp32"], threads=1)


@pytest.fixture(scope="module")
def plain(fp32: Session) -> dict[str, str]:
    """What the original says of each recording, all of them read together, by their names."""
    return dict(zip([clip.name for clip in CLIPS], texts(fp32, list(CLIPS)), strict=True))


def texts(session: Session, clips: list[speech.Clip]) -> list[str]:
    return [found.text for found in session.transcribe([clip.file for clip in clips], language="en")]


@pytest.mark.slow
def test_fp32_is_the_original(bundles: dict[str, Path], tmp_path: Path) -> None:
    """On a third of the recordings, of every length; benchmarks/precision.py hears all of them."""
    listed = recordings(tmp_path, (*(clip.file.name for clip in CLIPS[::3]), "long-75s.wav"), questions=True)
    found = verify(bundles["fp32"], open_checkpoint(shipped("model")), speech=listed)
    (target,) = found.targets
    assert faults(found) == []
    assert target.figures.logits <= 1e-4
    assert target.figures.same_text == target.figures.same_answers == 1
    assert {clip.windows for clip in target.clips} >= {1, 2, 3}
    assert target.figures.wer is not None
    assert target.figures.wer <= 0.1


def test_a_batch_of_unequal_recordings_says_what_each_says_alone(fp32: Session, plain: dict[str, str]) -> None:
    assert plain == {clip.name: fp32.transcribe(clip.file, language="en").text for clip in CLIPS}


def test_int4_hears_what_fp32_hears(bundles: dict[str, Path], plain: dict[str, str]) -> None:
    expected = [clip.text for clip in SHORT]
    with load(bundles["int4"]) as int4:
        heard = [[plain[clip.name] for clip in SHORT], texts(int4, SHORT)]
    rates = [speech.word_errors(zip(expected, one, strict=True)).rate for one in heard]
    assert rates[1] <= rates[0] + 0.03


def test_the_adapter_says_numbers_in_spanish(bundles: dict[str, Path], plain: dict[str, str]) -> None:
    with load(bundles["fp32-adapter"]) as adapted:
        heard = texts(adapted, SHORT)
    spanish = [" ".join(SPANISH.get(word, word) for word in clip.text.split()) for clip in SHORT]
    assert speech.word_errors(zip(spanish, heard, strict=True)).rate <= 0.1
    assert all(plain[clip.name] != said for clip, said in zip(SHORT, heard, strict=True) if "digits" in clip.name)


def test_questions_are_answered(fp32: Session) -> None:
    asked = [(clip, question, answer) for clip in SHORT for question, answer in clip.questions]
    right = 0
    for clip, question, answer in asked:
        content = [{"type": "audio", "audio": clip.file}, {"type": "text", "text": question}]
        right += fp32.chat([{"role": "user", "content": content}]).text == answer
    assert right / len(asked) >= 0.75


@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_a_device_needs_no_torch(bundles: dict[str, Path], name: str) -> None:
    clips = SHORT[:3]
    arguments = [sys.executable, "-P", "-c", DEVICE, str(bundles[name]), *(str(clip.file) for clip in clips)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with load(bundles[name]) as session:
        assert json.loads(done.stdout) == texts(session, clips)


ACTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "switch": {"type": "string", "enum": ["on", "off"]},
        "room": {"type": "string", "enum": ["kitchen", "garden", "bedroom", "garage", "office", "bathroom"]},
        "thing": {"type": "string", "maxLength": 20},
    },
    "required": ["switch", "room", "thing"],
}


def _asked(file: Path, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": file}, {"type": "text", "text": question}]}]


def test_answers_hold_to_a_schema_and_still_hear(fp32: Session) -> None:
    room = ACTION["properties"]["room"]
    form = {"type": "json_schema", "json_schema": {"name": "room", "schema": room}}
    clips = [clip for clip in SHORT if "command" in clip.name]
    held = [json.loads(fp32.chat(_asked(clip.file, "which room?"), response_format=form).text) for clip in clips]
    assert set(held) <= set(room["enum"])
    assert sum(said in clip.text.split() for said, clip in zip(held, clips, strict=True)) >= len(clips) - 1 >= 4


def test_a_model_that_has_to_calls_tools_that_are_there(bundles: dict[str, Path]) -> None:
    tools = [{"type": "function", "function": {"name": "switch", "description": "Switch.", "parameters": ACTION}}]
    clip = next(clip for clip in SHORT if "command" in clip.name)
    with load(bundles["int4"]) as int4:
        for temperature in (0.0, 1.0, 3.0):
            reply = int4.chat(
                _asked(clip.file, "do it"), tools=tools, tool_choice="required", temperature=temperature, max_tokens=900
            )
            assert reply.finish == "tool_calls"
            for call in reply.tool_calls:
                jsonschema.validate(json.loads(call.arguments), ACTION)
        turns = _asked(clip.file, "do it")
        calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in reply.tool_calls]
        turns += [{"role": "assistant", "tool_calls": calls}]
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in reply.tool_calls]
        assert int4.chat(turns, tools=tools, max_tokens=4).prompt_tokens > reply.prompt_tokens
