"""A fingerprint changes exactly when a fact in it does."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ossicle.runtimes.accelerators import Accelerator
from ossicle.runtimes.device import DeviceFacts, RuntimeFacts, doctor, fingerprint
from ossicle.runtimes.processor import Processor

WORDS = st.text(max_size=8)
NUMBERS = st.none() | st.integers(0, 1 << 40)
PROVIDERS = st.dictionaries(WORDS, st.none() | WORDS, max_size=3)
CACHES = st.dictionaries(WORDS, st.integers(0, 1 << 30), max_size=3)
PROCESSORS = st.builds(Processor, quota=st.none() | st.floats(0, 512), caches=CACHES)
ACCELERATOR = st.builds(Accelerator, driver=st.none() | WORDS, memory=NUMBERS, capability=st.none() | WORDS)
ACCELERATORS = st.lists(ACCELERATOR, max_size=3).map(tuple)
RUNTIMES = st.lists(st.builds(RuntimeFacts, providers=PROVIDERS), max_size=3).map(tuple)
FACTS = st.builds(DeviceFacts, processor=PROCESSORS, runtimes=RUNTIMES, accelerators=ACCELERATORS)

NOT_COUNTED = {"python", "memory_available", "bandwidth"}


def usable(found: tuple[RuntimeFacts, ...]) -> list[Any]:
    """What measurements depend on, of every runtime."""
    return [
        (
            *(one.name, one.target, one.version, one.proof),
            *(one.reason is None, one.inexact is None),
            {name: reason is None for name, reason in one.providers.items()},
        )
        for one in found
    ]


@given(FACTS, FACTS)
def test_it_changes_exactly_when_a_fact_in_it_does(one: DeviceFacts, other: DeviceFacts) -> None:
    for each in fields(DeviceFacts):
        changed = replace(one, **{each.name: getattr(other, each.name)})
        before, after = getattr(one, each.name), getattr(changed, each.name)
        if each.name == "runtimes":
            before, after = usable(before), usable(after)
        same = each.name in NOT_COUNTED or before == after
        assert (fingerprint(one) == fingerprint(changed)) == same, each.name


@pytest.mark.parametrize("name", [each.name for each in fields(Processor)])
@given(PROCESSORS, PROCESSORS)
def test_every_fact_of_the_processor_counts(name: str, one: Processor, other: Processor) -> None:
    changed = replace(one, **{name: getattr(other, name)})
    facts = replace(doctor_once(), processor=one)
    assert (fingerprint(facts) == fingerprint(replace(facts, processor=changed))) == (one == changed)


def test_it_stays_from_one_question_to_the_next() -> None:
    assert fingerprint(doctor()) == fingerprint(doctor())
    assert len(fingerprint(doctor_once())) == 32


def doctor_once() -> DeviceFacts:
    return DeviceFacts("Linux", "3.11", Processor("", "", 1, 1, ()), None, None, ())
