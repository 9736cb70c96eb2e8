"""What a corpus run is to do: folders, lists and manifests, and what is wrong with them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ossicle.runtimes.corpus import Item, longest_first, read_items
from ossicle.targets.contract import CorpusError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
    return folder


def manifest(folder: Path, *entries: object) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries), encoding="utf-8")
    return path


def test_a_folder_gives_its_recordings_by_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "sub dir/ä ü.FLAC", "a.mp3", "notes.txt", ".hidden.wav", ".git/c.wav", "sub dir/d.opus")
    items = read_items(tmp_path, "en")
    assert [item.id for item in items] == ["a.mp3", "b.wav", "sub dir/d.opus", "sub dir/ä ü.FLAC"]
    assert all(Path(item.audio).is_absolute() and item.size == 5 and item.language == "en" for item in items)


def test_a_name_that_is_no_unicode_stays_the_name_of_its_file(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).write_bytes(b"sound")
    (item,) = read_items(tmp_path)
    assert os.fsencode(item.id) == b"caf\xe9.wav"
    assert Path(item.audio).exists()


def test_a_list_names_files_beside_it_in_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "z.wav", "in/a b.wav")
    listed = tmp_path / "list.txt"
    listed.write_text("\ufeffz.wav\r\n\r\nin/a b.wav\r\nnowhere.wav", encoding="utf-8")
    items = read_items(listed)
    assert [(item.id, item.size) for item in items] == [("z.wav", 5), ("in/a b.wav", 5), ("nowhere.wav", -1)]


def test_a_manifest_says_names_languages_and_more(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    entries = [
        {"audio": "a.wav", "id": "one", "language": "fr", "speaker": 7},
        {"audio": "a.wav", "id": "two", "language": None, "more": None},
        {"audio": str(tmp_path / "a.wav"), "id": None},
    ]
    one, two, three = read_items(manifest(tmp_path, *entries), "en")
    assert (one.id, one.language, one.given) == ("one", "fr", {"speaker": 7})
    assert (two.id, two.language, two.given) == ("two", "en", {"more": None})
    assert three.id == three.audio == one.audio


def test_every_fault_of_a_manifest_is_told(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, {"audio": "a.wav"}, "{", [1], {"id": "x"}, {"audio": "b", "language": 3}, {"audio": "a.wav"}
    )
    with pytest.raises(CorpusError) as told:
        read_items(path)
    for part in (
        "line 2 is no JSON",
        "line 3 is no JSON object",
        "line 4 has no path",
        "language",
        "line 6 repeats 'a.wav' of line 1",
    ):
        assert part in str(told.value)


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "sub/notes.md", "a.wav")
    for source, reason in (("sub", "no recordings"), ("a.wav", "is no list"), ("gone", "does not exist")):
        with pytest.raises(CorpusError, match=reason):
            read_items(tmp_path / source)


@given(st.lists(st.tuples(st.sampled_from([".wav", ".mp3", ".flac", ".xyz"]), st.integers(-1, 10**9)), max_size=20))
def test_the_longest_come_first_and_none_is_lost(files: list[tuple[str, int]]) -> None:
    items = [Item(str(number), f"/{number}{suffix}", size=size) for number, (suffix, size) in enumerate(files)]
    ordered = longest_first(items)
    assert sorted(item.id for item in ordered) == sorted(item.id for item in items)
    seconds = [item.expected_seconds for item in ordered]
    assert seconds == sorted(seconds, reverse=True)
