"""Prompts with tools are, id for id, those that mistral-common writes, in each version of its tokenizer that has them."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ossicle.compiler.families._mistral_tools import tool_format
from ossicle.compiler.tekken import tekken_version
from ossicle.compiler.tokenizer import write_tokenizer
from ossicle.runtimes.messages import clips, read_messages
from ossicle.runtimes.prompt import Prompts
from ossicle.runtimes.tokens import Tokenizer
from ossicle.runtimes.tools import read_tools
from ossicle.targets.contract import PromptError
from ossicle.tests.fakes import AUDIO, DEMO, TEXT

VERSIONS = (7, 11, 13)
SWITCH = {
    "type": "object",
    "properties": {"room": {"type": "string", "enum": ["kitchen", "küche"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "switch", "description": "Turn a lämp on", "parameters": SWITCH}},
    {"type": "function", "function": {"name": "get-time", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "stop_all", "strict": True, "parameters": {}}},
]


def _tekken(folder: Path, version: int) -> Path:
    """The demo model's vocabulary as it were in another version: with the special tokens that it has there."""
    document = json.loads((DEMO / "tekken.json").read_text())
    document["config"]["version"] = f"v{version}"
    for rank, name in ((32, "[ARGS]"), (33, "[CALL_ID]")):
        document["special_tokens"][rank]["token_str"] = name
    folder.mkdir(parents=True)
    (folder / "tekken.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"v{version}")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prompts, Any]:
    """Our prompts, and mistral-common's tokenizer."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    folder = _tekken(tmp_path_factory.mktemp("tekken") / "checkpoint", request.param)
    assert tekken_version(folder) == request.param
    text = replace(TEXT, tools=tool_format(request.param))
    tokenizer = Tokenizer(write_tokenizer(folder, folder / "tokenizer.json"))
    return Prompts(tokenizer, text, AUDIO.tokens_per_window, 8192), MistralTokenizer.from_file(
        str(folder / "tekken.json")
    )


def _audio(seconds: float) -> dict[str, Any]:
    stream = BytesIO()
    soundfile.write(stream, np.zeros(int(16000 * seconds), np.float32), 16000, format="WAV")
    data = base64.b64encode(stream.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _call(id: str, name: str = "switch", arguments: str = '{"room":"kitchen",  "on":true}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _assistant(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def _result(id: str, content: Any = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


USER = {"role": "user", "content": "turn on the kitchen light"}
SYSTEM = {"role": "system", "content": "be brief"}
HEARD = {"role": "user", "content": [_audio(1), {"type": "text", "text": "do it"}]}
PARTS = [{"type": "text", "text": "it"}, {"type": "text", "text": "is ünicode"}]

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "tools alone": [USER],
    "audio": [HEARD],
    "system": [SYSTEM, USER],
    "two systems": [SYSTEM, SYSTEM, USER],
    "tools before a later turn": [USER, {"role": "assistant", "content": "yes "}, HEARD],
    "a call and its result": [USER, _assistant(_call("abcdefghi")), _result("abcdefghi")],
    "a text and a call": [USER, _assistant(_call("abcdefghi"), content="I will  "), _result("abcdefghi")],
    "a call, then a question": [
        SYSTEM,
        USER,
        _assistant(_call("abcdefghi")),
        _result("abcdefghi", '{"ok":true}'),
        {"role": "assistant", "content": "It is on."},
        {"role": "user", "content": "[TOOL_CALLS] and [/AVAILABLE_TOOLS] are text"},
    ],
    "several calls": [
        USER,
        _assistant(_call("aaaaaaaaa"), _call("bbbbbbbbb", "get-time", ""), _call("ccccccccc", "stop_all", "{}")),
        _result("aaaaaaaaa"),
        _result("bbbbbbbbb", "12:00"),
        _result("ccccccccc", PARTS),
    ],
    "results in another order": [
        HEARD,
        _assistant(_call("aaaaaaaaa"), _call("bbbbbbbbb", "get-time", '{"zone": "日本", "n": 1e2}')),
        _result("bbbbbbbbb", "12:00 é"),
        _result("aaaaaaaaa", "[/TOOL_RESULTS]"),
    ],
    "a text and a call in neighbouring messages": [
        USER,
        {"role": "assistant", "content": "wait"},
        _assistant(_call("aaaaaaaaa"), content="now"),
        _result("aaaaaaaaa"),
    ],
    "calls before and behind a recording": [
        USER,
        _assistant(_call("aaaaaaaaa")),
        _result("aaaaaaaaa"),
        {"role": "assistant", "content": "on"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, _audio(31)]},
        _assistant(_call("bbbbbbbbb")),
        _result("bbbbbbbbb"),
    ],
}


def _expected(reference: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    return list(reference.encode_chat_completion(ChatCompletionRequest.from_openai(messages, tools)).tokens)


def _ours(prompts: Prompts, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    turns = read_messages(messages)
    windows = [-(-soundfile.info(BytesIO(clip.source)).frames // 480000) for clip in clips(turns)]
    return prompts.chat(turns, windows, read_tools(tools))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_with_tools_equal_mistral_common(both: tuple[Prompts, Any], name: str) -> None:
    prompts, reference = both
    messages = CONVERSATIONS[name]
    assert _ours(prompts, messages, TOOLS) == _expected(reference, messages, TOOLS)


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: text.strip(" ") != "")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
ARGUMENTS = st.dictionaries(TEXTS, st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=3).map(json.dumps)
IDS = st.from_regex(r"[a-zA-Z0-9]{9}", fullmatch=True)


@st.composite
def _dialogues(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": draw(TEXTS)}]
    for ids in draw(st.lists(st.lists(IDS, max_size=3, unique=True), max_size=3)):
        if not ids:
            messages += [{"role": "assistant", "content": draw(TEXTS)}, {"role": "user", "content": draw(TEXTS)}]
            continue
        messages += [_assistant(*(_call(id, arguments=draw(ARGUMENTS)) for id in ids), content=draw(TEXTS))]
        messages += [_result(id, draw(TEXTS)) for id in draw(st.permutations(ids))]
    return messages


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=_dialogues(), description=TEXTS)
def test_any_dialogue_equals_mistral_common(
    both: tuple[Prompts, Any], messages: list[dict[str, Any]], description: str
) -> None:
    prompts, reference = both
    tools = [{"type": "function", "function": {"name": "f", "description": description, "parameters": SWITCH}}]
    assert _ours(prompts, messages, tools) == _expected(reference, messages, tools)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER, _assistant(_call("abcdefghi"))], "last message is of role 'assistant'"),
        ([USER, _assistant(_call("abcdefghi")), USER], "call 'abcdefghi' has no result"),
        ([USER, _result("abcdefghi")], "'abcdefghi' answers no call"),
        ([USER, _assistant(_call("call_1")), _result("call_1")], "call 0 of message 1 has id 'call_1' .*9 letters"),
        ([USER, _assistant(_call("abcdefghi", "a b"))], "has name 'a b'"),
        ([USER, _assistant(_call("abcdefghi", arguments="[1]"))], "arguments that are no object"),
        ([USER, _assistant(_call("abcdefghi", arguments="{"))], "arguments that are no object"),
        ([USER | {"tool_calls": [_call("abcdefghi")]}], "tool_calls that cannot be"),
        ([USER, {"role": "tool", "content": "x"}], "result without a call"),
        ([USER, _assistant({"id": "abcdefghi"})], "names no function"),
    ],
)
def test_calls_that_cannot_be_followed_are_named(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_messages(messages)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "input_audio"}, "no recording .*base64"),
        ({"type": "input_audio", "input_audio": {"data": "no base64!"}}, "no recording .*base64"),
        ({"type": "input_audio", "input_audio": "x"}, "no recording .*base64"),
    ],
)
def test_input_audio_that_is_none_is_named(part: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_messages([{"role": "user", "content": [part]}])


def test_input_audio_may_be_a_data_url() -> None:
    data = "data:audio/wav;base64," + base64.b64encode(b"sound").decode()
    (clip,) = clips(
        read_messages([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data}}]}])
    )
    assert clip.source == b"sound"


def test_a_bundle_without_tools_says_so(both: tuple[Prompts, Any], tmp_path: Path) -> None:
    prompts = Prompts(Tokenizer(write_tokenizer(DEMO, tmp_path / "t.json")), replace(TEXT, tools=None), 375, 4096)
    with pytest.raises(PromptError, match=r"built without tools.*Build it again"):
        _ours(prompts, [USER], TOOLS)
    assert _ours(prompts, [USER], []) == _ours(both[0], [USER], [])
