"""What a corpus run has on disk: cut off anywhere, damaged anywhere, held by one run, on the terms that it was begun on."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ossicle.runtimes.corpus import Item
from ossicle.runtimes.corpus_state import LOCK, RESULTS, RUN, Journal, agree, line, locked, whole_lines, write_whole
from ossicle.targets.contract import CorpusError

TERMS: dict[str, Any] = {"bundle": "abc", "settings": {"engine": "auto", "adapters": {}}}
# Whatever may stand in a path or a transcript, lone surrogates and line ends of every kind with it; of JSON's own text each
# pair of surrogates is one character.
WORDS = st.text(max_size=12).filter(lambda text: json.loads(json.dumps(text)) == text)
ANSWERS = st.one_of(WORDS.map(lambda text: {"text": text}), WORDS.map(lambda text: {"error": text}))
LINES = st.dictionaries(WORDS, ANSWERS, max_size=5)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / RESULTS


def item(name: str, size: int = 1) -> Item:
    return Item(name, f"/{name}", "en", {}, size, 2)


def written(path: Path, answers: dict[str, Any]) -> bytes:
    with Journal(path) as journal:
        for name, answer in answers.items():
            journal.add(item(name), answer)
    return path.read_bytes()


def read(path: Path, names: Iterator[str] | list[str]) -> dict[str, Any]:
    with Journal(path) as journal:
        entries = {name: entry for name in names if (entry := journal.entry(item(name)))}
        return {name: journal.read(entry) for name, entry in entries.items()}


@settings(max_examples=20)
@given(LINES, st.data())
def test_cut_off_at_any_byte_what_was_whole_is_kept_and_the_run_goes_on(
    answers: dict[str, Any], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = written(Path(folder) / "whole", answers)
        ends = [offset + len(text) for offset, text in whole_lines(BytesIO(whole))]
        path, killed = Path(folder) / RESULTS, data.draw(st.integers(0, len(whole)))
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            kept = [name for name, end in zip(answers, ends, strict=True) if end <= cut]
            assert list(read(path, list(answers))) == kept
            if cut == killed:
                assert written(path, {name: said for name, said in answers.items() if name not in kept}) == whole


@settings(max_examples=50)
@given(LINES, st.binary(max_size=40), st.data())
def test_a_damaged_line_costs_no_other(answers: dict[str, Any], noise: bytes, data: st.DataObject) -> None:
    lines = [line({"id": name, "size": 1, "modified": 2, "language": "en", **said}) for name, said in answers.items()]
    place = data.draw(st.integers(0, len(lines)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RESULTS
        path.write_bytes(b"".join([*lines[:place], noise.replace(b"\n", b"") + b"\n", *lines[place:]]))
        assert list(read(path, list(answers))) == list(answers)


def test_the_latest_line_on_a_file_counts(results: Path) -> None:
    written(results, {"a": {"error": "broken"}})
    written(results, {"a": {"text": "mended"}})
    assert read(results, ["a"])["a"]["text"] == "mended"


def test_a_file_that_changed_is_not_done(results: Path) -> None:
    written(results, {"a": {"text": "old"}})
    with Journal(results) as journal:
        assert journal.entry(item("a", size=1))
        assert not journal.entry(item("a", size=9))


def test_damage_is_counted(results: Path) -> None:
    results.write_bytes(b"\0\0\0\n[]\n{}\n" + b"torn")
    with Journal(results) as journal:
        assert journal.damaged == 3
    assert results.read_bytes() == b"\0\0\0\n[]\n{}\n"


def test_a_full_disk_leaves_no_half_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(results) as journal:
        journal.add(item("a"), {"text": "one"})
        before = results.read_bytes()
        stream = journal._stream

        class Full:
            name = "full"

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def write(self, text: bytes) -> int:
                return stream.write(text[:5])

        monkeypatch.setattr(journal, "_stream", Full())
        with pytest.raises(OSError, match="No space"):
            journal.add(item("b"), {"text": "two"})
        assert results.read_bytes() == before


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", [b"old"])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as told:
        write_whole(tmp_path / "a", [b"new"])
    assert told.value.filename == str(tmp_path / "a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    agree(tmp_path, TERMS)
    (tmp_path / RESULTS).write_text("{}\n")
    agree(tmp_path, TERMS)
    other = {"bundle": "def", "settings": {"engine": "openvino", "adapters": {}, "max_tokens": 3}}
    with pytest.raises(CorpusError) as told:
        agree(tmp_path, other)
    for part in ('bundle "abc" (now "def")', 'engine "auto" (now "openvino")', "max_tokens null (now 3)", "--force"):
        assert part in str(told.value)


def test_a_run_that_settled_nothing_binds_nobody(tmp_path: Path) -> None:
    agree(tmp_path, TERMS)
    (tmp_path / RESULTS).touch()
    agree(tmp_path, TERMS | {"bundle": "def"})
    (tmp_path / RESULTS).write_text("{}\n")
    agree(tmp_path, TERMS | {"bundle": "def"})


def test_force_forgets_the_run_and_nothing_else(tmp_path: Path) -> None:
    agree(tmp_path, TERMS)
    for name in (RESULTS, "mine.txt"):
        (tmp_path / name).write_text("x")
    agree(tmp_path, TERMS | {"bundle": "def"}, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", RUN]
    agree(tmp_path, TERMS | {"bundle": "def"})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 9}', '{"version": 1, "bundle": "abc", "settings": 3}'])
def test_terms_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    (tmp_path / RESULTS).write_text("{}\n")
    with pytest.raises(CorpusError, match="--force"):
        agree(tmp_path, TERMS)


def test_results_of_nobody_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}\n")
    with pytest.raises(CorpusError, match="no run to go on with"):
        agree(tmp_path, TERMS)


HOLD = """
import sys
from pathlib import Path
from ossicle.runtimes.corpus_state import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CorpusError, match=f"process {other.pid}"), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() != str(other.pid)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_whole(path, [b"old\n"])

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ValueError

    with pytest.raises(ValueError):
        write_whole(path, broken())
    assert path.read_bytes() == b"old\n"


def test_a_line_is_json_whatever_stands_in_it() -> None:
    assert json.loads(line({"id": "\udce9\u2028\n"})) == {"id": "\udce9\u2028\n"}
    assert "é" in line({"id": "é"}).decode()
