"""Calls of tools: whatever the logits, what is called exists and its arguments hold to its schema."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ossicle.compiler.families._mistral_tools import tool_format
from ossicle.compiler.tokenizer import write_tokenizer
from ossicle.kernels.sampling import Chooser, Sampling
from ossicle.runtimes.constraints import Rules
from ossicle.runtimes.languages import calls_marker
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.runtimes.tokens import Tokenizer
from ossicle.runtimes.tools import CALL_ID, Choice, read_calls, read_choice, read_tools
from ossicle.targets.contract import Float32, PromptError
from ossicle.tests.fakes import DEMO, TEXT, FakeEngine, FakeRuntime, write_bundle

ROOM = {
    "type": "object",
    "properties": {
        "room": {"type": "string", "enum": ["kitchen", "küche", '"]}[TOOL_CALLS]']},
        "note": {"type": "string", "maxLength": 6},
        "level": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["room", "level"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "switch", "description": "Turn a light on", "parameters": ROOM}},
    {"type": "function", "function": {"name": "stop-all"}},
]
SCHEMAS: dict[str, Any] = {"switch": ROOM, "stop-all": {"type": "object", "maxProperties": 0}}
MESSAGES = [{"role": "user", "content": "turn on the light"}]
MARKER = 9


class Caller(FakeEngine):
    """A model that wants to call wherever it can."""

    def _logits(self, states: Float32) -> Float32:
        logits = super()._logits(states)
        logits[:, MARKER] += 1000
        return logits


class CallingRuntime(FakeRuntime):
    engine = Caller


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with load(bundle, engine=FakeRuntime()) as opened:
        yield opened


@pytest.fixture(scope="module")
def caller(bundle: Path) -> Iterator[Session]:
    with load(bundle, engine=CallingRuntime()) as opened:
        yield opened


def _held(reply: Any) -> None:
    """Every call is of a tool that is there, with arguments that hold to its schema."""
    assert (reply.finish, reply.tool_calls != ()) == ("tool_calls", True)
    for call in reply.tool_calls:
        assert CALL_ID.fullmatch(call.id)
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert len({call.id for call in reply.tool_calls}) == len(reply.tool_calls)


def test_a_model_that_has_to_calls(session: Session) -> None:
    called = [
        session.chat(MESSAGES, tools=TOOLS, tool_choice="required", temperature=2.0, seed=seed, max_tokens=900)
        for seed in range(8)
    ]
    for reply in called:
        _held(reply)
        assert reply.text == ""
    assert {call.name for reply in called for call in reply.tool_calls} == {"switch", "stop-all"}


def test_a_named_tool_is_called_and_no_other(session: Session) -> None:
    choice = {"type": "function", "function": {"name": "stop-all"}}
    reply = session.chat(MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=900)
    _held(reply)
    assert {(call.name, call.arguments) for call in reply.tool_calls} == {("stop-all", "{}")}


def test_one_call_alone_where_several_are_not_wanted(session: Session) -> None:
    for seed in range(6):
        reply = session.chat(
            MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=2.0, seed=seed
        )
        _held(reply)
        assert len(reply.tool_calls) == 1


def test_a_model_that_wants_to_calls(caller: Session) -> None:
    _held(caller.chat(MESSAGES, tools=TOOLS, max_tokens=900))
    stream = caller.stream(MESSAGES, tools=TOOLS, max_tokens=900)
    assert "".join(stream) == ""
    _held(stream.reply)
    assert stream.reply.tool_calls == caller.chat(MESSAGES, tools=TOOLS, max_tokens=900).tool_calls


def test_a_text_may_stand_before_calls(bundle: Path) -> None:
    class Hesitant(FakeRuntime):
        class engine(FakeEngine):  # noqa: N801 - the name that the runtime opens
            steps = 0

            def _logits(self, states: Float32) -> Float32:
                self.steps += 1
                logits = super()._logits(states)
                logits[:, MARKER] += 1000 if self.steps > 3 else -1000
                return logits

    with load(bundle, engine=Hesitant()) as opened:
        reply = opened.chat(MESSAGES, tools=TOOLS, max_tokens=900)
    _held(reply)
    assert reply.tokens[3] == MARKER
    assert reply.text == opened._tokenizer.decode(reply.tokens[:3])


def test_a_model_that_must_not_does_not_call(caller: Session) -> None:
    reply = caller.chat(MESSAGES, tools=TOOLS, tool_choice="none", max_tokens=20)
    assert (reply.tool_calls, MARKER in reply.tokens) == ((), False)


def test_a_model_that_need_not_may_answer(session: Session) -> None:
    reply = session.chat(MESSAGES, tools=TOOLS, max_tokens=20)
    assert (reply.tool_calls, reply.finish, len(reply.text) > 0) == ((), "length", True)


def test_a_text_of_a_schema_or_a_call(session: Session, caller: Session) -> None:
    schema: dict[str, Any] = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    assert session.chat(MESSAGES, tools=TOOLS, tool_choice="none", response_format=schema).text in ('"yes"', '"no"')
    _held(caller.chat(MESSAGES, tools=TOOLS, response_format=schema, max_tokens=900))


def test_a_call_cut_short_is_none(session: Session) -> None:
    reply = session.chat(MESSAGES, tools=TOOLS[:1], tool_choice="required", max_tokens=12)
    assert (reply.tool_calls, reply.finish, reply.text) == ((), "length", "")


def test_an_answer_says_what_its_prompt_took(session: Session) -> None:
    clip = {"type": "audio", "audio": np.zeros(16000, np.float32)}
    plain = session.chat([{"role": "user", "content": [clip]}], max_tokens=2)
    told = session.chat([{"role": "user", "content": [clip]}], tools=TOOLS, max_tokens=2)
    assert (plain.audio_tokens, plain.prompt_tokens) == (375, 379)
    assert told.prompt_tokens > plain.prompt_tokens


def test_a_conversation_goes_on_from_its_calls(session: Session) -> None:
    reply = session.chat(MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=900)
    called = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.tool_calls
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in reply.tool_calls]
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": called}, *results]
    assert len(session.chat(turns, tools=TOOLS, max_tokens=3).tokens) == 3


def _form(version: int, folder: Path) -> tuple[Tokenizer, Any]:
    """A tokenizer and the templates of tools in a version of Mistral's."""
    document = json.loads((DEMO / "tekken.json").read_text())
    for rank, name in ((32, "[ARGS]"), (33, "[CALL_ID]")):
        document["special_tokens"][rank]["token_str"] = name
    (folder / "tekken.json").write_text(json.dumps(document))
    return Tokenizer(write_tokenizer(folder, folder / "tokenizer.json")), tool_format(version)


@pytest.fixture(scope="module", params=[7, 11, 13], ids=lambda version: f"v{version}")
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    return _form(request.param, tmp_path_factory.mktemp("tekken"))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31))
def test_any_calls_of_any_version_are_read(form: tuple[Tokenizer, Any], seed: int) -> None:
    tokenizer, written = form
    tools = read_tools(TOOLS)
    rules = Rules(tokenizer, replace(TEXT, tools=written), [2], choice=Choice(tools, forced=True, several=True))
    constraint, chooser = rules.start(), Chooser(Sampling(temperature=1.0, seed=seed), rules.vocabulary)
    random, tokens = np.random.default_rng(seed), list[int]()
    while not constraint.ended:
        logits = random.normal(0, 3, rules.vocabulary).astype(np.float32)
        token = chooser.choose(logits, constraint.allowed())
        if token == 2:
            break
        tokens.append(token)
        constraint.add(token)
    calls = read_calls(tokenizer.decode(tokens, specials=True), written, b"")
    assert tokens[0] == calls_marker(tokenizer, written) == MARKER
    assert calls
    for call in calls:
        assert CALL_ID.fullmatch(call.id)
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_ids_of_the_model_are_kept_and_others_made() -> None:
    written = tool_format(7)
    assert written is not None
    text = (
        '[TOOL_CALLS][{"name": "a", "arguments": {"x": "}]"}, "id": "abcdefghi"}, '
        '{"name": "b", "arguments": {}, "id": "abcdefghi"}, {"name": "c", "arguments": {}}, {"name": "d", "argu'
    )
    first, second, third = read_calls(text, written, b"seed")
    assert (first.id, first.name, first.arguments) == ("abcdefghi", "a", '{"x": "}]"}')
    assert len({first.id, second.id, third.id}) == 3
    assert read_calls(text, written, b"seed") == (first, second, third)
    assert read_calls(text, written, b"other")[2].id != third.id


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("switch", "tools are a list"),
        ([{}], "tool 0 is no function"),
        ([{"type": "web_search"}], "tool 0 is no function"),
        ([{"type": "function", "function": {"name": "a b"}}], "tool 0 has name 'a b'"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "'a', has parameters that are no object"),
        ([{"function": {"name": "a", "parameters": {"type": "string"}}}], "parameters that are no object"),
        ([{"function": {"name": "a", "description": 5}}], "description that is no text"),
        ([*TOOLS, *TOOLS], "name 'stop-all' is that of several tools; name 'switch'"),
        ([{}, {}], "tool 0.*tool 1"),
    ],
)
def test_tools_that_cannot_be_used_are_named(tools: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_tools(tools)


def test_a_schema_that_cannot_be_held_to_names_its_tool(session: Session) -> None:
    bad = {"type": "object", "properties": {"z": {"type": "array", "uniqueItems": True}}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "sort", "parameters": bad}}]
    with pytest.raises(PromptError, match=r"tool 'sort' cannot be used: .*uniqueItems.*at '#/properties/z'"):
        session.chat(MESSAGES, tools=tools)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("maybe", "tool_choice 'maybe' is not possible .*auto, none, required"),
        ({"type": "function", "function": {"name": "fly"}}, "names function 'fly' .*switch, stop-all"),
        ({"type": "function"}, "names function None"),
        (None, "tool_choice None is not possible"),
    ],
)
def test_choices_that_cannot_be_are_named(choice: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_choice(choice, read_tools(TOOLS), several=True)


def test_what_is_required_has_to_be_there(session: Session) -> None:
    with pytest.raises(PromptError, match="'required' needs tools"):
        session.chat(MESSAGES, tool_choice="required")


def test_a_transcription_calls_nothing(session: Session) -> None:
    with pytest.raises(PromptError, match="a transcription calls no tools"):
        session.stream(np.zeros(16000, np.float32), tools=TOOLS)
