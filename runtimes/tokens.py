"""Text <-> token ids, and text as it grows: pieces that never end inside a character or inside a stop string."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..kernels.bytelevel import alphabet
from ..targets.contract import BundleError, PromptError

BROKEN = "\N{REPLACEMENT CHARACTER}"

# A token id, or text in which no special token is recognized.
Piece = int | str


def is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8, as half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Tokenizer:
    """The bundle's tokenizer.json.

    Raises:
        BundleError: the file cannot be understood.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend: Any = Backend.from_file(str(path))
        except Exception as reason:
            raise BundleError(
                f"'{path}' is not a tokenizer: {reason}. Build the bundle again: ossicle build"
            ) from reason
        self._backend.encode_special_tokens = True  # what a user writes is text, even "[INST]"
        added = self._backend.get_added_tokens_decoder()
        self.specials: dict[str, int] = {token.content: id for id, token in added.items() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(self.specials, key=len, reverse=True))) or "$^")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no special token is added, and none is recognized.

        Raises:
            PromptError: it is no Unicode.
        """
        if not is_unicode(text):
            raise PromptError(f"a text is no Unicode: {text!a:.60}. Decode it as UTF-8 first.")
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """The text of ids, special tokens left out unless asked for; bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=not specials))

    def pieces(self, template: str) -> list[Piece]:
        """A text of ours, whose special tokens are ids; the texts between them, empty ones too."""
        pieces: list[Piece] = []
        place = 0
        for match in self._special.finditer(template):
            pieces += [template[place : match.start()], self.specials[match.group()]]
            place = match.end()
        return [*pieces, template[place:]]

    def bytes_of_tokens(self) -> list[bytes]:
        """What each token stands for, by id, special tokens by their names; empty where an id has no token.

        Raises:
            BundleError: it is no byte-level vocabulary, so tokens stand for no bytes of their own.
        """
        from tokenizers.decoders import ByteLevel

        if not isinstance(self._backend.decoder, ByteLevel):
            raise BundleError("the tokenizer of this bundle is not byte-level, which schemas, grammars and tools need.")
        letters = {letter: byte for byte, letter in enumerate(alphabet())}
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        found = [b""] * (max(vocabulary.values()) + 1)
        for name, id in vocabulary.items():
            found[id] = name.encode() if name in self.specials else bytes(map(letters.__getitem__, name))
        return found


class GrowingText:
    """The text of a sequence that grows token by token, handed out in pieces that can be shown at once."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._pending: list[int] = []
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown after one more token: nothing that may be half a character or begin a stop string."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(BROKEN):
            return ""
        self._pending.clear()
        return self._cut(text)

    def finish(self) -> str:
        """What was held back until now. After a stop string, nothing."""
        if self.stopped:
            return ""
        rest = self._cut(self._tokenizer.decode(self._pending))
        self._pending.clear()
        if not self.stopped:
            rest += self._held
        self._held = ""
        return rest

    def _cut(self, text: str) -> str:
        text = self._held + text
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        held = _beginning_of_a_stop(text, self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[len(text) - n :]) for stop in stops)), 0)
