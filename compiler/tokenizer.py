"""A checkpoint's tokenizer.json: its own, or converted from Mistral's tekken.json.

tekken.json holds byte-pair tokens by rank, as tiktoken reads them: of all neighbours in a word, the two whose
concatenation has the lowest rank are joined first, the leftmost on a tie. tokenizer.json wants merges, pairs in
order. One merge for each token is enough to join exactly the same pairs: a token comes about inside its own bytes
alone, so the two parts it is joined from are always those that joining its bytes in isolation ends with.

Ids: special tokens first, `default_num_special_tokens` of them, then the byte-pair tokens by rank, cut at
`default_vocab_size`. Source of the format: mistral_common.tokens.tokenizers.tekken.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..kernels.bytelevel import alphabet
from ..targets.contract import CheckpointError

OWN = "tokenizer.json"
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


def write_tokenizer(checkpoint: Path, out: Path) -> Path:
    """The tokenizer.json written to `out`: the checkpoint folder's own byte for byte, else its tekken.json converted.

    Raises:
        CheckpointError: the folder has neither file, or it cannot be read.
    """
    own, tekken = checkpoint / OWN, checkpoint / TEKKEN
    if own.is_file():
        text = own.read_bytes()
        _check_loads(text, own)
    elif tekken.is_file():
        text = tokenizer_json(read_tekken(tekken)).encode()
        _check_loads(text, tekken)
    else:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' has no tokenizer: neither {OWN} nor {TEKKEN} is in it. "
            "Copy the one that its model was trained with into the folder"
        )
    out.write_bytes(text)
    return out


def check_vocabulary(checkpoint: Path, rows: int) -> None:
    """Refuse a checkpoint folder whose tokenizer has ids that an embedding of so many rows has none for.

    Raises:
        CheckpointError: it has, or its tokenizer cannot be read.
    """
    own, tekken = checkpoint / OWN, checkpoint / TEKKEN
    path, ids = (own, _ids(own)) if own.is_file() else (tekken, len(read_tekken(tekken)))
    if ids > rows:
        raise CheckpointError(
            f"tokenizer '{path}' has {ids} ids, and the model's embedding {rows} rows (vocab_size in its configuration): "
            "what the others stand for could be neither read nor said. Copy the tokenizer that the model was trained with"
        )


def read_tekken(path: Path) -> Tekken:
    """The vocabulary of a tekken.json.

    Raises:
        CheckpointError: the file cannot be read, or does not describe a vocabulary.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as reason:
        raise _refusal(path, str(reason)) from reason
    try:
        return _tekken(document)
    except (KeyError, TypeError, IndexError, AttributeError) as reason:
        raise _refusal(path, f"a field is missing or of the wrong kind ({type(reason).__name__}: {reason})") from reason
    except (ValueError, binascii.Error) as reason:
        raise _refusal(path, str(reason)) from reason


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
        raise _refusal(path, str(reason)) from reason


def tokenizer_json(tekken: Tekken) -> str:
    """The tokenizer.json of a vocabulary, as the `tokenizers` library and transformers.js load it."""
    return json.dumps(_document(tekken), ensure_ascii=False, separators=(",", ":")) + "\n"


def merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts each token is joined from, in order of rank; tokens that joining never reaches are left out."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = (_parts(token, ranks) for token in tokens)
    return [parts for parts in found if parts is not None]


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer '{path}' cannot be read: {reason}. ossicle reads {OWN} and Mistral's {TEKKEN} (v3 and later); "
        "download the checkpoint's file again"
    )


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
        raise ValueError(f"{sorted(clash)[0].decode()!r} is both a special token and a word, which {OWN} cannot hold")


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """What joining the bytes of `token` comes to just before the last step; None where that is not two parts."""
    splits = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
    if len(splits) < 2:
        # With one way to split there is nothing to find out: a pair that never meets does no harm.
        return splits[0] if splits else None
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        joined = [
            (ranks[left + right], at) for at, (left, right) in enumerate(pairwise(parts)) if left + right in ranks
        ]
        if not joined:
            return None
        _, at = min(joined)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _document(tekken: Tekken) -> dict[str, Any]:
    letters = dict(enumerate(alphabet()))
    spelled = {token: token.decode("latin-1").translate(letters) for token in tekken.tokens}
    names = [*tekken.specials, *spelled.values()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, name) for id, name in enumerate(tekken.specials)],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(tekken.pattern),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {name: id for id, name in enumerate(names)},
            "merges": [[spelled[left], spelled[right]] for left, right in merges(tekken.tokens)],
        },
    }


def _added(id: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": name, **flags}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    words = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [words, letters]}


def _ids(path: Path) -> int:
    """How many ids a tokenizer.json has, those between that it leaves out among them."""
    return max(_check_loads(path.read_bytes(), path).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _check_loads(text: bytes, source: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(text)
    except Exception as reason:  # the library raises plain Exception
        raise _refusal(source, str(reason)) from reason
