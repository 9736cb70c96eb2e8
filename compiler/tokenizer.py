"""A checkpoint's tokenizer.json: its own, or converted from Mistral's tekken.json.

tokenizer.json wants merges, pairs in order, where tekken.json has tokens by rank. One merge for each token is enough to join
exactly the same pairs: a token comes about inside its own bytes alone, so the two parts it is joined from are always those that
joining its bytes in isolation ends with.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..kernels.bytelevel import alphabet
from ..targets.contract import CheckpointError
from .tekken import TEKKEN, Tekken, read_tekken, refusal

OWN = "tokenizer.json"


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


def tokenizer_json(tekken: Tekken) -> str:
    """The tokenizer.json of a vocabulary, as the `tokenizers` library and transformers.js load it."""
    return json.dumps(_document(tekken), ensure_ascii=False, separators=(",", ":")) + "\n"


def merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts each token is joined from, in order of rank; tokens that joining never reaches are left out."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = (_parts(token, ranks) for token in tokens)
    return [parts for parts in found if parts is not None]


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
        raise refusal(source, str(reason)) from reason
