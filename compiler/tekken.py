"""Mistral's tekken.json: byte-pair tokens by rank, as tiktoken reads them.

Of all neighbours in a word, the two whose concatenation has the lowest rank are joined first, the leftmost on a tie. Ids:
special tokens first, `default_num_special_tokens` of them, then the byte-pair tokens by rank, cut at `default_vocab_size`.
Source of the format: mistral_common.tokens.tokenizers.tekken.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets.contract import CheckpointError

TEKKEN = "tekken.json"

# What a file without a list of special tokens means; the format asks for the list after v7.
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_LAST_UNLISTED_VERSION = 7


@dataclass(frozen=True)
class Tekken:
    """A Tekken vocabulary: special tokens by id, byte-pair tokens by rank, and the pattern that cuts text to words."""

    pattern: str
    specials: tuple[str, ...]
    tokens: tuple[bytes, ...]

    def __len__(self) -> int:
        """How many ids it has."""
        return len(self.specials) + len(self.tokens)


def read_tekken(path: Path) -> Tekken:
    """The vocabulary of a tekken.json.

    Raises:
        CheckpointError: the file cannot be read, or does not describe a vocabulary.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as reason:
        raise refusal(path, str(reason)) from reason
    try:
        return _tekken(document)
    except (KeyError, TypeError, IndexError, AttributeError) as reason:
        raise refusal(path, f"a field is missing or of the wrong kind ({type(reason).__name__}: {reason})") from reason
    except (ValueError, binascii.Error) as reason:
        raise refusal(path, str(reason)) from reason


def tekken_version(checkpoint: Path) -> int | None:
    """The version of a checkpoint folder's tekken.json, by which prompts are written; None where there is none.

    Raises:
        CheckpointError: the file cannot be read, or names no version.
    """
    path = checkpoint / TEKKEN
    if not path.is_file():
        return None
    try:
        version = str(json.loads(path.read_bytes())["config"]["version"])
        return _version_number(version)
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as reason:
        raise refusal(path, str(reason)) from reason


def _tekken(document: Mapping[str, Any]) -> Tekken:
    config = document["config"]
    size, reserved = _count(config, "default_vocab_size"), _count(config, "default_num_special_tokens")
    if reserved >= size:
        raise ValueError(f"{reserved} special tokens leave nothing of a vocabulary of {size}")
    specials = _specials(document.get("special_tokens"), reserved, config["version"])
    tokens = _tokens(document["vocab"], size - reserved)
    _check_distinct(specials, tokens)
    return Tekken(str(config["pattern"]), specials, tokens)


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}, not a number of tokens")
    return value


def _specials(listed: Sequence[Mapping[str, Any]] | None, reserved: int, version: str) -> tuple[str, ...]:
    """Names of the special tokens by id; the ids that the file names nothing for are `<SPECIAL_id>`."""
    names = _unlisted(version) if listed is None else _listed(listed)
    if len(names) > reserved:
        raise ValueError(f"it lists {len(names)} special tokens where the vocabulary has room for {reserved}")
    names += [f"<SPECIAL_{id}>" for id in range(len(names), reserved)]
    if len(set(names)) < len(names):
        raise ValueError(f"special token {_repeated(names)!r} is listed twice")
    return tuple(names)


def _unlisted(version: str) -> list[str]:
    if _version_number(version) > _LAST_UNLISTED_VERSION:
        raise ValueError(f"version {version} has to list its special tokens, and this file does not")
    return list(_UNLISTED)


def _version_number(version: str) -> int:
    number = re.fullmatch(r"v(\d+)(m\d+)?", version)
    if number is None:
        raise ValueError(f"version {version!r} is unknown")
    return int(number[1])


def _listed(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {entry["rank"]: str(entry["token_str"]) for entry in entries}
    if set(names) != set(range(len(entries))):
        raise ValueError(f"the ranks of its {len(entries)} special tokens are not 0 to {len(entries) - 1}")
    return [names[rank] for rank in range(len(names))]


def _tokens(vocab: Sequence[Mapping[str, Any]], count: int) -> tuple[bytes, ...]:
    """The first `count` byte-pair tokens."""
    if len(vocab) < count:
        raise ValueError(f"it has {len(vocab)} byte-pair tokens where its sizes ask for {count}")
    for rank, entry in enumerate(vocab[:count]):
        if entry["rank"] != rank:
            raise ValueError(f"token {rank} of its vocabulary has rank {entry['rank']}")
    tokens = tuple(base64.b64decode(entry["token_bytes"], validate=True) for entry in vocab[:count])
    if tokens[:256] != tuple(bytes([byte]) for byte in range(256)):
        raise ValueError("the first 256 tokens of its vocabulary are not the 256 bytes")
    if len(set(tokens)) < count:
        raise ValueError(f"token {_repeated(tokens)!r} is in its vocabulary twice")
    return tokens


def _repeated(items: Iterable[Any]) -> Any:
    return Counter(items).most_common(1)[0][0]


def _check_distinct(specials: Sequence[str], tokens: Sequence[bytes]) -> None:
    # tokenizer.json maps text to id, so a word spelled like a special token could not be told from it.
    clash = {name.encode() for name in specials} & set(tokens)
    if clash:
        raise ValueError(
            f"{sorted(clash)[0].decode()!r} is both a special token and a word, which tokenizer.json cannot hold"
        )


def refusal(path: Path, reason: str) -> CheckpointError:
    """What is said of a tokenizer's file that cannot be read."""
    return CheckpointError(
        f"tokenizer '{path}' cannot be read: {reason}. ossicle reads tokenizer.json and Mistral's {TEKKEN} (v3 and later); "
        "download the checkpoint's file again"
    )
