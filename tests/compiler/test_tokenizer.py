"""tokenizer.json against mistral-common's own reading of the same tekken.json."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import SpecialTokenPolicy, Tekkenizer
from ossicle.compiler.tekken import Tekken, read_tekken
from ossicle.compiler.tokenizer import tokenizer_json, write_tokenizer
from ossicle.targets.contract import CheckpointError
from tokenizers import Tokenizer

DEMO = Path(__file__).parents[2] / "demo" / "model" / "tekken.json"
REAL = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"

MULTILINGUAL = [
    "Hello world! It's 3.14159, isn't it?\r\n\r\n  indented\tand tabbed   ",
    "Ça coûte 12 € à l'Été ; œuvre, naïve, cœur",
    "Große Straße, Übermut, ẞ",
    "日本語のテキスト、漢字かな交じり文。「括弧」",
    "한국어 텍스트입니다",
    "नमस्ते दुनिया, यह हिन्दी है",
    "مرحبا بالعالم، هذا نص",
    "Привет, мир! Ёлка",
    "สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ☕️",
    "[INST]<s></s>[AUDIO][BEGIN_AUDIO]<SPECIAL_30>",
    "\ufeff\u0085\u001c\u2028\u00a0a\u3000b",
    "aaaaaaaaaaaaaaaa" * 40,
    " \n \n\n" * 60,
    "lang:en[TRANSCRIBE]",
]


class Pair:
    """The same file read by mistral-common and through tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self.theirs = Tekkenizer.from_file(path)
        self.ours = Tokenizer.from_str(tokenizer_json(read_tekken(path)))
        # Text is text: only a template's special tokens are ever recognized.
        self.ours.encode_special_tokens = True

    def agree(self, text: str) -> None:
        ids = self.theirs.encode(text, bos=False, eos=False)
        assert self.ours.encode(text, add_special_tokens=False).ids == ids
        assert self.ours.decode(ids) == self.theirs.decode(ids)


@pytest.fixture(scope="module")
def real() -> Pair:
    return Pair(REAL)


@pytest.fixture(scope="module")
def demo() -> Pair:
    return Pair(DEMO)


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_ids_are_those_of_mistral_common(real: Pair, demo: Pair, text: str) -> None:
    real.agree(text)
    demo.agree(text)


@settings(max_examples=400)
@given(text=st.text(max_size=60))
def test_any_text_gives_the_same_ids(real: Pair, demo: Pair, text: str) -> None:
    real.agree(text)
    demo.agree(text)


@settings(max_examples=200)
@given(text=st.text(alphabet="abAB12 \n\r\t'/.-_é漢", max_size=200))
def test_text_of_few_letters_gives_the_same_ids(real: Pair, demo: Pair, text: str) -> None:
    real.agree(text)
    demo.agree(text)


def test_source_code_gives_the_same_ids(real: Pair) -> None:
    real.agree(Path(mistral_common.__file__).parent.joinpath("tokens/tokenizers/tekken.py").read_text())


@settings(max_examples=200)
@given(ids=st.lists(st.integers(1000, 131071), max_size=12))
def test_any_ids_decode_to_the_same_text(real: Pair, ids: list[int]) -> None:
    assert real.ours.decode(ids) == real.theirs.decode(ids)


@pytest.mark.parametrize(("path", "count"), [(REAL, 1000), (DEMO, 40)])
def test_special_tokens_stand_at_their_ranks(path: Path, count: int) -> None:
    theirs = Tekkenizer.from_file(path)
    ours = Tokenizer.from_str(tokenizer_json(read_tekken(path)))
    names = [theirs.decode([id], SpecialTokenPolicy.KEEP) for id in range(count)]
    assert ours.get_vocab_size() == theirs.n_words
    assert ours.encode("".join(names), add_special_tokens=False).ids == list(range(count))
    assert ours.decode(list(range(count))) == ""


# Short words over two letters, in any order of rank: tables that no training gives, words reached in several ways.
ENDS = ("aa", "ab", "ba", "bb")
WORDS = st.permutations([start + end for start in ("", "a", "b", *ENDS) for end in ENDS])


@settings(max_examples=300)
@given(words=WORDS, kept=st.integers(1, 28), text=st.text(alphabet="ab", max_size=40))
def test_merges_join_as_ranks_do_in_any_table(words: list[str], kept: int, text: str) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in dict.fromkeys(words[:kept])]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("test", pat_str="[ab]+", mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_str(tokenizer_json(Tekken("[ab]+", (), tuple(tokens))))
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode_ordinary(text)


def test_a_checkpoints_own_tokenizer_json_is_used_as_it_is(tmp_path: Path) -> None:
    own = tokenizer_json(read_tekken(DEMO)).replace(",", ", ", 3)
    (tmp_path / "tokenizer.json").write_text(own)
    shutil.copy(REAL, tmp_path / "tekken.json")
    written = write_tokenizer(tmp_path, tmp_path / "out.json")
    assert written.read_text() == own


def test_conversion_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    shutil.copy(DEMO, tmp_path / "tekken.json")
    first = write_tokenizer(tmp_path, tmp_path / "first.json").read_bytes()
    assert first == write_tokenizer(tmp_path, tmp_path / "second.json").read_bytes()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tekken\.json"):
        write_tokenizer(tmp_path, tmp_path / "out.json")


def test_a_broken_tokenizer_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json' cannot be read"):
        write_tokenizer(tmp_path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def _drop_specials(document: dict[str, Any]) -> None:
    document["special_tokens"] = None


def _later_without_specials(document: dict[str, Any]) -> None:
    document["special_tokens"], document["config"]["version"] = None, "v11"


def _unknown_version(document: dict[str, Any]) -> None:
    document["special_tokens"], document["config"]["version"] = None, "seven"


def _repeat_special(document: dict[str, Any]) -> None:
    document["special_tokens"][5]["token_str"] = "<s>"


def _skip_special_rank(document: dict[str, Any]) -> None:
    document["special_tokens"][5]["rank"] = 90


def _too_many_specials(document: dict[str, Any]) -> None:
    document["config"]["default_num_special_tokens"] = 39


def _cut_vocabulary(document: dict[str, Any]) -> None:
    document["vocab"] = document["vocab"][:400]


def _skip_rank(document: dict[str, Any]) -> None:
    document["vocab"][300]["rank"] = 7


def _wrong_bytes(document: dict[str, Any]) -> None:
    document["vocab"][3]["token_bytes"] = base64.b64encode(b"xyz").decode()


def _not_base64(document: dict[str, Any]) -> None:
    document["vocab"][300]["token_bytes"] = "###"


def _repeat_token(document: dict[str, Any]) -> None:
    document["vocab"][300]["token_bytes"] = document["vocab"][301]["token_bytes"]


def _special_is_word(document: dict[str, Any]) -> None:
    document["vocab"][300]["token_bytes"] = base64.b64encode(b"[INST]").decode()


def _no_config(document: dict[str, Any]) -> None:
    del document["config"]


def _size_is_text(document: dict[str, Any]) -> None:
    document["config"]["default_vocab_size"] = "512"


def _all_special(document: dict[str, Any]) -> None:
    document["config"]["default_num_special_tokens"] = 512


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_later_without_specials, "v11 has to list its special tokens"),
        (_unknown_version, "version 'seven' is unknown"),
        (_repeat_special, "'<s>' is listed twice"),
        (_skip_special_rank, "ranks of its 40 special tokens"),
        (_too_many_specials, "lists 40 special tokens .* room for 39"),
        (_cut_vocabulary, "400 byte-pair tokens where its sizes ask for 472"),
        (_skip_rank, "token 300 of its vocabulary has rank 7"),
        (_wrong_bytes, "are not the 256 bytes"),
        (_not_base64, "base64"),
        (_repeat_token, "is in its vocabulary twice"),
        (_special_is_word, r"'\[INST\]' is both a special token and a word"),
        (_no_config, "a field is missing .*config"),
        (_size_is_text, "default_vocab_size is '512'"),
        (_all_special, "512 special tokens leave nothing"),
    ],
)
def test_a_malformed_file_is_refused_with_its_reason(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], reason: str
) -> None:
    document = json.loads(DEMO.read_text())
    spoil(document)
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=reason):
        read_tekken(path)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"config": 3, "vocab": []}', '"text"', "\u00ff"])
def test_what_is_no_tekken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tekken.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tekken(path)


def test_an_older_file_without_a_list_gets_the_special_tokens_of_its_time(tmp_path: Path) -> None:
    document = json.loads(DEMO.read_text())
    _drop_specials(document)
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(document))
    theirs = Tekkenizer.from_file(path)
    names = [theirs.decode([id], SpecialTokenPolicy.KEEP) for id in range(40)]
    assert list(read_tekken(path).specials) == names


def test_a_pattern_no_engine_takes_is_refused(tmp_path: Path) -> None:
    document = json.loads(DEMO.read_text())
    document["config"]["pattern"] = "(unclosed"
    (tmp_path / "tekken.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tekken\.json' cannot be read"):
        write_tokenizer(tmp_path, tmp_path / "out.json")
