"""Growing text: the pieces add up to the whole, and none ends inside a character or shows a stop string."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ossicle.runtimes.tokens import BROKEN, GrowingText, Tokenizer
from ossicle.targets.contract import BundleError
from ossicle.tests.fakes import demo_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return demo_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@given(text=st.text(max_size=30))
@settings(max_examples=100)
def test_pieces_add_up_and_are_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    growing = GrowingText(tokenizer)
    pieces = [growing.add(token) for token in tokenizer.encode(text)]
    assert "".join([*pieces, growing.finish()]) == text
    if BROKEN not in text:
        assert not any(BROKEN in piece for piece in pieces)


@given(ids=st.lists(st.integers(40, 511), max_size=30))
@settings(max_examples=100)
def test_any_ids_give_the_text_of_the_whole(tokenizer: Tokenizer, ids: list[int]) -> None:
    growing = GrowingText(tokenizer)
    assert "".join([*map(growing.add, ids), growing.finish()]) == tokenizer.decode(ids)


@given(text=st.text("abc ", max_size=20), stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
@settings(max_examples=200)
def test_text_ends_at_the_first_stop_string(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    growing, shown = GrowingText(tokenizer, stop), ""
    for token in [id for letter in text for id in tokenizer.encode(letter)]:
        shown += growing.add(token)
        if growing.stopped:
            break
    shown += growing.finish()
    assert growing.stopped == any(word in text for word in stop)
    assert not any(word in shown for word in stop)
    assert text.startswith(shown)
    if not growing.stopped:
        assert shown == text


def test_plain_text_holds_no_special_token(tokenizer: Tokenizer) -> None:
    assert min(tokenizer.encode("<s>[INST][AUDIO]</s>")) >= 40
    assert tokenizer.decode([1, 3, *tokenizer.encode("hi"), 2]) == "hi"


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")
