"""Sessions over the same weights: turns, answers of several threads at a time, and who closes the engine."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np
import pytest
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.runtimes.shared import Turns
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.fakes import FakeRuntime, write_bundle


def _noise(seconds: float, seed: int) -> Float32:
    return np.asarray(np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds)), np.float32)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def session(tmp_path: Path, runtime: FakeRuntime) -> Iterator[Session]:
    write_bundle(tmp_path / "bundle")
    with load(tmp_path / "bundle", engine=runtime) as opened:
        yield opened


def test_threads_with_a_session_each_say_what_one_says_alone(session: Session, runtime: FakeRuntime) -> None:
    recordings = [_noise(1.0, seed) for seed in range(8)]
    alone = [session.transcribe(one, max_tokens=30).tokens for one in recordings]
    found: dict[int, list[tuple[int, ...]]] = {}

    def work(number: int, own: Session) -> None:
        with own:
            found[number] = [own.transcribe(one, max_tokens=30).tokens for one in recordings[number::4]]

    threads = [Thread(target=work, args=(number, session.share())) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [alone[number::4] for number in range(4)]
    assert len(runtime.opened) == 1
    assert not runtime.opened[0].closed


def test_the_last_session_closes_the_engine(session: Session, runtime: FakeRuntime) -> None:
    other = session.share()
    third = other.share()
    session.close()
    other.close()
    other.close()
    assert len(third.transcribe(_noise(1.0, 0), max_tokens=3).tokens) == 3
    assert not runtime.opened[0].closed
    with pytest.raises(EngineError, match="closed"):
        other.share()
    with pytest.raises(EngineError, match="closed"):
        session.transcribe(_noise(1.0, 0))
    third.close()
    assert runtime.opened[0].closed


def test_streams_of_two_sessions_interleave(session: Session) -> None:
    with session.share() as other:
        whole = [session.transcribe(_noise(1.0, seed), max_tokens=12).text for seed in (0, 1)]
        streams = [one.stream(_noise(1.0, seed), max_tokens=12) for seed, one in enumerate((session, other))]
        texts = ["", ""]
        for _ in range(40):
            for number, stream in enumerate(streams):
                texts[number] += next(stream, "")
        assert texts == whole


def test_turns_come_in_the_order_in_which_they_are_asked_for() -> None:
    turns, order = Turns(), list[int]()
    asked = [Event() for _ in range(5)]

    def work(number: int) -> None:
        asked[number].set()
        with turns:
            order.append(number)

    threads = [Thread(target=work, args=(number,)) for number in range(5)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            asked[number].wait()
            while len(turns._waiting) <= number:
                pass
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_failure_gives_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        _ = 1 / 0
    with turns:
        pass


def test_a_turn_that_came_to_who_gave_up_is_passed_on() -> None:
    turns = Turns()
    turns.__enter__()  # the turn, given to one who stops waiting just then
    turns._give_up(Lock())
    waited = Thread(target=turns.__enter__, daemon=True)
    waited.start()
    waited.join(10)
    assert not waited.is_alive()
