"""Lists of recordings: what a line may say, what is refused, and the word error rate."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ossicle.compiler import speech
from ossicle.targets.contract import AudioError

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def test_a_list_gives_its_clips(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    line = {"file": "a.wav", "text": "on", "language": "en", "questions": {"which room?": "none"}, "voice": "f2"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n\n", encoding="utf-8")
    loaded = speech.load(tmp_path / "data.jsonl")
    clip = speech.Clip("a.wav", tmp_path / "a.wav", "on", "en", (("which room?", "none"),))
    assert loaded.clips == (clip,)


def test_the_hash_follows_texts_and_recordings(tmp_path):
    def digest(text: str, recording: bytes) -> str:
        (tmp_path / "a.wav").write_bytes(recording)
        (tmp_path / "data.jsonl").write_text(json.dumps({"file": "a.wav", "text": text}), encoding="utf-8")
        return speech.load(tmp_path / "data.jsonl").sha256

    assert len({digest("on", b"x"), digest("off", b"x"), digest("on", b"y")}) == 3
    assert digest("on", b"x") == digest("on", b"x")


def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_it(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "data.jsonl").write_text('{"file": "a.wav"}', encoding="utf-8-sig")
    assert [clip.name for clip in speech.load(tmp_path / "data.jsonl").clips] == ["a.wav"]


def test_every_fault_of_a_list_is_named(tmp_path):
    lines = [
        "not json",
        "[1]",
        '{"text": "on"}',
        '{"file": 3}',
        '{"file": "a.wav", "text": 3}',
        '{"file": "a.wav", "questions": ["q"]}',
        '{"file": "a.wav", "language": "english"}',
        '{"file": "gone.wav"}',
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(AudioError) as caught:
        speech.load(tmp_path / "data.jsonl")
    message = str(caught.value)
    assert all(f"line {number}: " in message for number in range(1, 8))
    assert "'gone.wav' is missing" in message


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_a_list_that_holds_nothing_is_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=r"data\.jsonl"):
        speech.load(path)


@given(st.text())
def test_any_text_parses_into_clips_and_faults(text):
    clips, faults = speech.parse(text, Path("folder"))
    assert len(clips) + len(faults) == sum(bool(line.strip()) for line in text.split("\n"))


@given(
    st.lists(
        st.fixed_dictionaries(
            {"file": st.text(st.characters(exclude_characters="\0"), min_size=1), "text": st.text()},
            optional={
                "language": st.sampled_from(["", "en", "es"]),
                "questions": st.dictionaries(st.text(), st.text()),
                "voice": st.integers(),
            },
        )
    )
)
def test_what_is_written_is_what_is_read(entries):
    clips, faults = speech.parse("\n".join(json.dumps(entry) for entry in entries), Path("folder"))
    assert not faults
    assert [(clip.name, clip.text, dict(clip.questions)) for clip in clips] == [
        (entry["file"], entry["text"], entry.get("questions", {})) for entry in entries
    ]


@given(WORDS, WORDS)
def test_edit_distance_is_that_of_the_definition(first, second):
    @cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        kept = least(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(kept, least(i - 1, j) + 1, least(i, j - 1) + 1)

    assert speech.edit_distance(first, second) == least(len(first), len(second))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits", "words"),
    [
        ("turn on the light", "turn on the light", 0, 4),
        ("Turn on, the LIGHT!", "turn on the light", 0, 4),
        ("three one four", "three four", 1, 3),
        ("three one four", "three one one four", 1, 3),
        ("three one four", "three two four", 1, 3),
        ("what's up", "what\u2019s up", 0, 2),
        ("", "noise", 1, 0),
        ("cafe\u0301", "caf\u00e9", 0, 1),
    ],
)
def test_word_errors(reference, hypothesis, edits, words):
    assert speech.word_errors([(reference, hypothesis)]) == speech.WordErrors(edits, words)


def test_the_rate_is_over_all_words_of_all_clips():
    total = speech.word_errors([("one two three", "one two"), ("four", "four"), ("", "")])
    assert total.rate == 0.25
    assert speech.WordErrors(0, 0).rate == 0.0
    assert speech.WordErrors(1, 0).rate == 1.0
