"""What an answer is held to: whatever the logits, it parses, holds to its schema, and ends where it may."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ossicle.kernels.sampling import Chooser, Sampling
from ossicle.runtimes.constraints import Rules
from ossicle.runtimes.languages import closed, text_language
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.runtimes.tokens import Tokenizer
from ossicle.targets.contract import EngineError, PromptError
from ossicle.tests.fakes import TEXT, FakeRuntime, demo_tokenizer, write_bundle

END = TEXT.stop_tokens[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return demo_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    with load(folder, engine=FakeRuntime()) as opened:
        yield opened


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _rules(tokenizer: Tokenizer, vocabulary: int = TEXT.vocabulary, **said: Any) -> Rules:
    return Rules(tokenizer, replace(TEXT, vocabulary=vocabulary), [END], text=text_language(**said))


def _allowed(rules: Rules, tokenizer: Tokenizer, text: str) -> set[int]:
    """The tokens that may follow a text."""
    constraint = rules.start()
    for token in tokenizer.encode(text):
        constraint.add(token)
    allowed = constraint.allowed()
    assert allowed is not None
    return set(np.flatnonzero(allowed).tolist())


def _say(rules: Rules, seed: int, most: int = 600) -> list[int]:
    """An answer of a model that knows nothing: random logits for every token."""
    random, constraint, tokens = np.random.default_rng(seed), rules.start(), list[int]()
    chooser = Chooser(Sampling(temperature=1.0, seed=seed), rules.vocabulary)
    while len(tokens) < most and not constraint.ended:
        token = chooser.choose(random.normal(0, 3, rules.vocabulary).astype(np.float32), constraint.allowed())
        if token == END:
            return tokens
        tokens.append(token)
        constraint.add(token)
    assert constraint.ended, "the answer did not come to its end"
    return tokens


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=6)
SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.tuples(st.integers(-50, 0), st.integers(0, 5000)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    ),
    st.integers(0, 5).map(lambda longest: {"type": "string", "maxLength": longest}),
    st.lists(st.one_of(NAMES, st.integers(-(2**53), 2**53), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["^[a-c]{2,4}$", r"^\d{3}-\d{2}$"]).map(lambda pattern: {"type": "string", "pattern": pattern}),
)


def _objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def schema(properties: dict[str, Any], required: int) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(properties)[:required]}

    return st.builds(schema, st.dictionaries(NAMES, parts, max_size=3), st.integers(0, 3))


SCHEMAS = st.recursive(
    SCALARS,
    lambda parts: st.one_of(
        _objects(parts),
        parts.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(parts, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
    ),
    max_leaves=5,
)


@settings(max_examples=120)
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_whatever_a_model_wants_its_answer_holds_to_the_schema(tokenizer: Tokenizer, schema: Any, seed: int) -> None:
    text = tokenizer.decode(_say(_rules(tokenizer, response_format=_format(schema)), seed))
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**70), 10**400])
def test_a_number_that_would_be_rounded_is_refused(tokenizer: Tokenizer, number: int) -> None:
    with pytest.raises(PromptError, match=f"the number {number}, which would be rounded"):
        _rules(tokenizer, response_format=_format({"anyOf": [{"enum": ["a", number]}]}))


@settings(max_examples=40)
@given(
    pattern=st.sampled_from(["a|ab", "[a-c]{1,9}x?", "日本|é{2,5}", "[^a-z]{3}", r"[0-9]+(\.[0-9]{2})?!", "a/b"]),
    seed=st.integers(0, 99),
)
def test_whatever_a_model_wants_its_answer_matches(tokenizer: Tokenizer, pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, tokenizer.decode(_say(_rules(tokenizer, regex=pattern), seed)))


def test_an_answer_may_end_where_its_language_may_and_nowhere_else(tokenizer: Tokenizer) -> None:
    rules = _rules(tokenizer, regex="ab(cd)?")
    ends = [END in _allowed(rules, tokenizer, text) for text in ("", "a", "ab", "abc")]
    assert ends == [False, False, True, False]


def test_no_special_token_is_in_an_answer(tokenizer: Tokenizer) -> None:
    allowed = _allowed(_rules(tokenizer, regex="(.|\n)*"), tokenizer, "a")
    assert allowed & set(tokenizer.specials.values()) == {END}
    assert len(allowed) > 200


def test_tokens_that_are_parts_of_characters_join_to_characters(tokenizer: Tokenizer) -> None:
    (first, *rest) = tokenizer.encode("日")
    assert len(rest) == 2
    rules = _rules(tokenizer, regex="日|月")
    assert _allowed(rules, tokenizer, "") == {first, tokenizer.encode("月")[0]}
    assert END in _allowed(rules, tokenizer, "日")


def test_the_name_of_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    rules = _rules(tokenizer, response_format=_format({"const": "[INST]</s>"}))
    assert tokenizer.decode(_say(rules, 0)) == '"[INST]</s>"'


def test_tokens_stand_for_their_bytes(tokenizer: Tokenizer) -> None:
    found = tokenizer.bytes_of_tokens()
    text = "日本 ünï \x00\x7f 🦴 garden"
    assert b"".join(found[token] for token in tokenizer.encode(text)) == text.encode()
    assert found[tokenizer.specials["[INST]"]] == b"[INST]"


@pytest.mark.parametrize("vocabulary", [300, 700])
def test_a_model_may_have_another_vocabulary_than_its_tokenizer(tokenizer: Tokenizer, vocabulary: int) -> None:
    allowed = _rules(tokenizer, vocabulary, regex="(.|\n)*").start().allowed()
    assert allowed is not None
    assert allowed.shape == (vocabulary,)
    assert not allowed[512:].any()


def test_an_answer_that_can_go_on_no_more_ends_by_itself(session: Session) -> None:
    reply = session.chat([{"role": "user", "content": "hi"}], regex="[ab]{4}")
    assert (reply.finish, len(reply.text)) == ("stop", 4)


def test_an_answer_cut_short_says_so(session: Session) -> None:
    reply = session.chat([{"role": "user", "content": "hi"}], regex="a{40}", max_tokens=3)
    assert (reply.finish, len(reply.tokens)) == ("length", 3)


def test_rows_of_a_batch_are_held_each_by_itself(session: Session) -> None:
    clips = [np.random.default_rng(seed).normal(0, 0.1, 16000 * 2).astype(np.float32) for seed in range(5)]
    said: dict[str, Any] = {"regex": "[a-f]{1,6}|[0-9]{9}", "temperature": 1.5}
    together = [reply.text for reply in session.transcribe(clips, **said)]
    assert all(re.fullmatch("[a-f]{1,6}|[0-9]{9}", text) for text in together)
    assert len(set(together)) > 1
    assert together[0] == session.transcribe(clips[0], **said).text


def test_a_stream_is_held_too_and_stop_texts_cut_it(session: Session) -> None:
    messages = [{"role": "user", "content": "hi"}]
    whole = session.chat(messages, regex="[a-d]{12}").text
    assert "".join(session.stream(messages, regex="[a-d]{12}")) == whole
    cut = session.chat(messages, regex="[a-d]{12}", stop=whole[3:5])
    assert (cut.text, cut.finish) == (whole[: whole.index(whole[3:5])], "stop")


def test_a_stop_token_of_the_caller_ends_only_what_is_whole(session: Session) -> None:
    (b,) = session._tokenizer.encode("b")
    messages = [{"role": "user", "content": "hi"}]
    texts = {
        session.chat(messages, regex="a{3,9}b?", stop_tokens=[b], temperature=2.0, seed=seed).text for seed in range(9)
    }
    assert len(texts) > 1
    assert all(re.fullmatch("a{3,9}", text) for text in texts)
    with pytest.raises(PromptError, match="allows no token"):
        session.chat(messages, regex="b{3}", stop_tokens=[b])


def test_json_is_written_in_one_way(tokenizer: Tokenizer) -> None:
    rules = _rules(tokenizer, response_format={"type": "json_object"})
    following = [tokenizer.decode([token]) for token in _allowed(rules, tokenizer, '{"a":')]
    assert following
    assert all(re.match(' [^ ]|"', text + "1") for text in following)
    assert tokenizer.encode("\n")[0] not in _allowed(rules, tokenizer, "{")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "response_format 'xml' is not possible .*json_schema"),
        ({"response_format": "json"}, "response_format 'json' is not possible"),
        ({"response_format": {"type": "json_schema"}}, "no schema"),
        ({"response_format": _format({"type": "strin"})}, "schema of response_format cannot be used: .*strin"),
        (
            {"response_format": _format({"properties": {"a": {"items": {"type": "strin"}}}})},
            r"strin.*at '#/properties/a/items'",
        ),
        ({"response_format": _format({"$ref": "#/$defs/x"})}, "#?/.defs/x"),
        ({"response_format": _format({"const": object()})}, "no JSON"),
        ({"regex": "(a"}, "the regex cannot be used: .*unclosed group"),
        ({"regex": ""}, "regex '' is not possible"),
        ({"grammar": "start: missing"}, 'the grammar cannot be used: .*unknown name: "missing"'),
        ({"grammar": "start: <[9]>"}, "allows no token"),
        ({"grammar": 'start: "a"', "regex": "a"}, "grammar, regex exclude each other"),
    ],
)
def test_what_cannot_be_held_to_is_named_before_anything_is_computed(
    session: Session, said: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PromptError, match=reason):
        session.stream([{"role": "user", "content": "hi"}], **said)


def test_a_text_is_held_to_nothing(session: Session) -> None:
    messages = [{"role": "user", "content": "hi"}]
    free, text = (
        session.chat(messages, max_tokens=9, **said).tokens for said in ({}, {"response_format": {"type": "text"}})
    )
    assert free == text


def test_without_llguidance_the_command_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EngineError, match=r'pip install "ossicle\[grammar\]"'):
        _rules(tokenizer, regex="a")


OPEN: list[Any] = [
    {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
    {"type": "object", "properties": {"a": {}}, "patternProperties": {"b": {}}},
    {"type": "object", "properties": {"a": {}}, "required": ["b"]},
    {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]},
    {"type": "string"},
]


@pytest.mark.parametrize("schema", OPEN)
def test_a_schema_that_means_other_properties_keeps_them(schema: Any) -> None:
    assert closed(schema) == schema


def test_objects_have_no_properties_but_those_they_list() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "integer"}}}
    schema = {"properties": {"a": inner}, "$defs": {"b": {"items": inner}}}
    shut = inner | {"additionalProperties": False}
    assert closed(schema) == {
        "properties": {"a": shut},
        "$defs": {"b": {"items": shut}},
        "additionalProperties": False,
    }


def test_schemas_that_are_added_to_each_other_stay_open(tokenizer: Tokenizer) -> None:
    part = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    other = {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]}
    rules = _rules(tokenizer, response_format=_format({"allOf": [part, other]}))
    assert END in _allowed(rules, tokenizer, '{"a": 1, "b": 2}')
