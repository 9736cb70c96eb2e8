# ruff: noqa: SIM905  (lists of words are read as a sentence)
"""The language of the demo model: about seventy words, four kinds of sentence, five questions.

Every text belongs to one of two halves by the hash of its spelling, so that a text the model is judged by
was never spoken to it, whatever the voice and whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from typing import Literal

Split = Literal["train", "held-out"]

DIGITS = "zero one two three four five six seven eight nine".split()
NUMBERS = [*DIGITS, "ten", "twenty", "thirty"]
ROOMS = "kitchen bedroom bathroom garage office garden".split()
NAMES = "anna david maria peter".split()

NUMERAL = dict(zip(NUMBERS, [*"0123456789", "10", "20", "30"], strict=True))
SPANISH = dict(
    zip(
        NUMBERS,
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez veinte treinta".split(),
        strict=True,
    )
)

WORDS = sorted(
    {
        *NUMBERS,
        *ROOMS,
        *NAMES,
        *"turn on off the light fan heater set a timer for minutes seconds hours".split(),
        *"play stop pause music radio open close lock front back door window".split(),
        *"call what is weather today tomorrow time it volume to make".split(),
        *"warmer cooler brighter remind me and".split(),
    }
)

# Three words or fewer: too few different ones to keep a tenth of them back.
ALWAYS_TRAINED = "what time is it"
LONGEST_PAIR = 13


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the tenth that is never trained on."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


def _digits(rng: random.Random) -> str:
    length = rng.choice([1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8])
    return " ".join(rng.choice(DIGITS) for _ in range(length))


def _command(rng: random.Random) -> str:
    pick = rng.choice
    forms: list[tuple[int, Callable[[], str]]] = [
        (35, lambda: f"turn {pick(['on', 'off'])} the {pick(ROOMS)} {pick(['light', 'fan', 'heater'])}"),
        (17, lambda: f"set a timer for {pick(NUMBERS[1:])} {pick(['minutes', 'seconds', 'hours'])}"),
        (8, lambda: f"{pick(['play', 'stop', 'pause'])} the {pick(['music', 'radio'])}"),
        (
            12,
            lambda: (
                f"{pick(['open', 'close', 'lock'])} the {pick(['front', 'back', 'garage'])} {pick(['door', 'window'])}"
            ),
        ),
        (4, lambda: f"call {pick(NAMES)}"),
        (4, lambda: f"what is the weather {pick(['today', 'tomorrow'])}"),
        (2, lambda: ALWAYS_TRAINED),
        (7, lambda: f"set the volume to {pick(NUMBERS[1:])}"),
        (6, lambda: f"make the {pick(ROOMS)} {pick(['warmer', 'cooler', 'brighter'])}"),
        (5, lambda: f"remind me to call {pick(NAMES)} {pick(['today', 'tomorrow'])}"),
    ]
    return rng.choices([form for _, form in forms], [weight for weight, _ in forms])[0]()


def _of_split(draw: Callable[[random.Random], str], rng: random.Random, split: Split) -> str:
    while True:
        text = draw(rng)
        if is_held_out(text) == (split == "held-out"):
            return text


def _pair(rng: random.Random, split: Split) -> str:
    while True:
        text = f"{_of_split(_command, rng, split)} and {_of_split(_command, rng, split)}"
        if len(text.split()) <= LONGEST_PAIR:
            return text


def _scrambled(rng: random.Random) -> str:
    """Words in no order, or a command with words swapped: they stop the decoder from reciting the commands."""
    if rng.random() < 0.7:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6)))
    return " ".join(rng.choice(WORDS) if rng.random() < 0.3 else word for word in _command(rng).split())


def sentence(rng: random.Random, split: Split) -> tuple[str, str]:
    """A text and its kind: "digits", "command", "pair", and in training also "random"."""
    share = rng.random()
    if share < 0.42:
        return _of_split(_digits, rng, split), "digits"
    if share < 0.65:
        return _of_split(_command, rng, split), "command"
    if share < 0.78 or split == "held-out":
        return _pair(rng, split), "pair"
    return _of_split(_scrambled, rng, split), "random"


def in_spanish(text: str) -> str:
    """The text with every number word in Spanish and every other word as it was."""
    return " ".join(SPANISH.get(word, word) for word in text.split())


def _found(words: Iterable[str]) -> str:
    return " ".join(words) or "none"


QUESTIONS: dict[str, Callable[[list[str]], str]] = {
    "which room?": lambda words: _found(word for word in words if word in ROOMS),
    "on or off?": lambda words: _found(word for word in words if word in ("on", "off")),
    "write the digits": lambda words: _found(NUMERAL[word] for word in words if word in NUMERAL),
    "digits in spanish": lambda words: _found(SPANISH[word] for word in words if word in SPANISH),
    "last word?": lambda words: _found(words[-1:]),
}


def answer(question: str, text: str) -> str:
    """What a perfect listener answers to the question about a clip that says the text."""
    return QUESTIONS[question](text.split())


def telling_questions(text: str) -> list[str]:
    """The questions whose answer on this text is something other than "none"."""
    return [question for question in QUESTIONS if answer(question, text) != "none"]
