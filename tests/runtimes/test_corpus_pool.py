"""Workers that die, refuse or are told to stop: no recording is lost, and nothing waits for ever."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from ossicle.runtimes.corpus import Item
from ossicle.runtimes.corpus_pool import Died, Pool, Result
from ossicle.runtimes.corpus_shares import Share, divide

pytestmark = pytest.mark.timeout(60)


class Scripted:
    """A worker that does as a script says for each try of a recording: "ok", "bad", "die", "again"; "hang" till it is ended."""

    def __init__(self, script: Callable[[str, int], str], opens: bool = True) -> None:
        self.script, self.opens = script, opens
        self.tries: Counter[str] = Counter()
        self.opened, self.falls = 0, set[int]()  # which of its openings it dies at
        self.is_open = False
        self.killed = False
        self.interrupted = threading.Event()

    def open(self) -> dict[str, Any]:
        assert not self.is_open
        self.opened += 1
        if self.opened in self.falls:
            raise Died("it fell at once")
        if not self.opens:
            return {"error": "no memory"}
        self.is_open = True
        return {"bundle": "abc", "engine": "fake"}

    def transcribe(self, item: Item) -> dict[str, Any]:
        assert self.is_open
        self.tries[item.id] += 1
        what = self.script(item.id, self.tries[item.id])
        if what == "hang":
            assert self.interrupted.wait(60)
            self.interrupted.clear()
        if what in ("die", "hang"):
            self.is_open = False
            raise Died("it fell")
        return {"ok": {"text": item.id}, "bad": {"error": "bad"}, "again": {"error": "odd", "again": True}}[what]

    def close(self) -> None:
        self.is_open = False

    def kill(self) -> None:
        self.killed = True

    def interrupt(self) -> None:
        self.interrupted.set()


def items(count: int) -> list[Item]:
    return [Item(str(number), f"/{number}") for number in range(count)]


def outcome(results: list[Result]) -> dict[str, Any]:
    assert len({result.item.id for result in results}) == len(results)
    return {result.item.id: result.answer.get("text") or result.answer["error"] for result in results}


def run(workers: list[Scripted], count: int, bundle: str = "abc", limit: float = 0.0) -> tuple[dict[str, Any], Pool]:
    made = iter(workers)
    with Pool(items(count), lambda: next(made), len(workers), bundle, limit) as pool:
        return outcome(list(iter(pool.take, None))), pool


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_recording_is_done_once(workers: int) -> None:
    found, pool = run([Scripted(lambda *_: "ok") for _ in range(workers)], 50)
    assert found == {str(number): str(number) for number in range(50)}
    assert pool.refusals == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_takes_too_long_is_ended_and_its_recording_tried_once_more(times: int) -> None:
    worker = Scripted(lambda name, tries: "hang" if name == "1" and tries <= times else "ok")
    found, _ = run([worker], 3, limit=0.2)
    said = {1: "1", 2: "it took longer than 0.2 s, as it did before"}
    assert found == {"0": "0", "1": said[times], "2": "2"}
    assert worker.opened == 1 + times


def test_what_a_worker_dies_of_while_the_pool_stops_is_left_for_the_next_run() -> None:
    def script(_: str, tries: int) -> str:
        if tries == 2:
            pool.stop()
        return "die"

    pool = Pool(items(1), lambda: Scripted(script), 1, "abc")
    with pool:
        assert pool.take() is None


def test_the_first_worker_is_opened_alone() -> None:
    told: list[str] = []

    class Slow(Scripted):
        def open(self) -> dict[str, Any]:
            told.append("begins")
            threading.Event().wait(0.05)
            told.append("is open")
            return super().open()

    found, _ = run([Slow(lambda *_: "ok") for _ in range(3)], 20)
    assert (len(found), told[:2]) == (20, ["begins", "is open"])


def test_a_limit_beyond_all_time_is_none() -> None:
    found, _ = run([Scripted(lambda *_: "ok")], 2, limit=float("inf"))
    assert found == {"0": "0", "1": "1"}


@pytest.mark.parametrize("how", ["die", "again"])
def test_what_a_worker_died_of_is_tried_once_more(how: str) -> None:
    worker = Scripted(lambda name, tries: how if name == "1" and tries == 1 else "ok")
    found, _ = run([worker], 3)
    assert found == {"0": "0", "1": "1", "2": "2"}
    assert (worker.opened, worker.tries["1"]) == (2, 2)


@pytest.mark.parametrize(("how", "told"), [("die", "it fell, as it did before"), ("again", "odd")])
def test_what_workers_always_die_of_is_listed_and_the_others_are_done(how: str, told: str) -> None:
    worker = Scripted(lambda name, _: how if name == "1" else "ok")
    found, _ = run([worker], 3)
    assert found == {"0": "0", "1": told, "2": "2"}
    assert worker.tries["1"] == 2


def test_a_recording_that_is_bad_costs_no_worker() -> None:
    worker = Scripted(lambda name, _: "bad" if name == "1" else "ok")
    found, _ = run([worker], 3)
    assert found["1"] == "bad"
    assert (worker.opened, worker.tries["1"]) == (1, 1)


def test_a_worker_that_cannot_be_opened_leaves_its_share_to_the_others() -> None:
    found, pool = run([Scripted(lambda *_: "ok", opens=False), Scripted(lambda *_: "ok")], 20)
    assert len(found) == 20
    assert set(pool.refusals) <= {"no memory"}  # it may have found nothing left to do


def test_where_no_worker_can_be_opened_the_pool_ends_and_says_why() -> None:
    found, pool = run([Scripted(lambda *_: "ok", opens=False) for _ in range(3)], 20)
    assert found == {}
    assert pool.refusals == ["no memory"] * 3


def test_a_worker_that_dies_as_it_opens_is_started_once_more() -> None:
    worker = Scripted(lambda *_: "ok")
    worker.falls = {1}
    assert len(run([worker], 3)[0]) == 3
    worker = Scripted(lambda *_: "ok")
    worker.falls = {1, 2}
    found, pool = run([worker], 3)
    assert (found, pool.refusals) == ({}, ["it fell at once"])


def test_a_worker_on_another_bundle_is_not_used() -> None:
    found, pool = run([Scripted(lambda *_: "ok")], 5, bundle="def")
    assert found == {}
    assert "another one" in pool.refusals[0]


def test_a_pool_that_is_stopped_finishes_what_is_at_work_and_begins_no_more() -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def script(name: str, _: int) -> str:
        if name == "2":
            at_work.set()
            assert go_on.wait(30)
        return "ok"

    with Pool(items(10), lambda: Scripted(script), 1, "abc") as pool:
        assert at_work.wait(30)
        pool.stop()
        go_on.set()
        assert set(outcome(list(iter(pool.take, None)))) == {"0", "1", "2"}
        assert pool.stopped


def test_what_dies_while_the_pool_stops_is_left_for_the_next_run() -> None:
    pools: list[Pool] = []

    def script(*_: Any) -> str:
        pools[0].stop()
        return "die"

    pools.append(Pool(items(3), lambda: Scripted(script), 1, "abc"))
    with pools[0] as pool:
        assert list(iter(pool.take, None)) == []


def test_an_error_of_the_run_kills_the_workers() -> None:
    worker = Scripted(lambda *_: "ok")
    with pytest.raises(OSError), Pool(items(3), lambda: worker, 1, "abc"):
        raise OSError
    assert worker.killed


@pytest.mark.parametrize(
    ("cores", "memory", "each", "asked", "files", "share"),
    [
        (2, None, 1, (0, 0), 100, Share(2, 1)),
        (8, 10 << 30, 3 << 30, (0, 0), 100, Share(2, 4)),  # as far as memory goes
        (8, 1 << 30, 3 << 30, (0, 0), 100, Share(1, 8)),  # at least one
        (8, None, 1, (0, 0), 3, Share(3, 2)),  # no more than files
        (8, None, 1, (0, 4), 100, Share(2, 4)),
        (2, 1, 3 << 30, (5, 3), 1, Share(5, 3)),  # what is asked for is given
        (2, None, 1, (4, 0), 100, Share(4, 1)),
    ],
)
def test_cores_are_divided(
    cores: int, memory: int | None, each: int, asked: tuple[int, int], files: int, share: Share
) -> None:
    assert divide(cores, memory, each, *asked, files) == share
