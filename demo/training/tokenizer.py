"""Learn the tiny Tekken vocabulary of the demo model: `python tokenizer.py --out ../model/tekken.json`.

512 ids: the 40 first special ids of the real Voxtral in their places, 256 bytes, 216 merges. The file is the
"tekken.json" of mistral-common, version v7.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex
from grammar import NUMBERS, QUESTIONS, answer, in_spanish, sentence

SPECIALS = 40
MERGES = 216

# Tekken's own pre-tokenizer.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMED_SPECIALS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]",
}  # fmt: skip


def _corpus(sentences: int) -> list[str]:
    rng, lines = random.Random(5), []
    for _ in range(sentences):
        text, _ = sentence(rng, "train")
        question = rng.choice(list(QUESTIONS))
        lines += [text, question, answer(question, text), "lang:en"]
    lines += [in_spanish(" ".join(rng.choice(NUMBERS) for _ in range(6))) for _ in range(sentences // 4)]
    return lines


def learn_merges(lines: list[str], merges: int) -> list[bytes]:
    """The byte-pair tokens in order of rank, the 256 single bytes first."""
    seen = Counter(word.encode() for line in lines for word in regex.findall(PATTERN, line))
    # The square root lets rare words reach one token too.
    weight = {word: count**0.5 for word, count in seen.items()}
    spelled = {word: [bytes([byte]) for byte in word] for word in seen}
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < 256 + merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += weight[word]  # type: ignore[assignment]
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        if left + right not in tokens:
            tokens.append(left + right)
        spelled = {word: _merge(parts, left, right) for word, parts in spelled.items()}
    return tokens


def _merge(parts: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in parts:
        if merged and merged[-1] == left and part == right:
            merged[-1] = left + right
        else:
            merged.append(part)
    return merged


def _printable(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def tekken(tokens: list[bytes]) -> dict[str, Any]:
    """The contents of tekken.json."""
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + SPECIALS,
            "default_num_special_tokens": SPECIALS,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": _printable(token)}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": NAMED_SPECIALS.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(SPECIALS)
        ],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "model" / "tekken.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(tekken(learn_merges(_corpus(6000), MERGES))))
    print(f"{options.out}: {256 + MERGES + SPECIALS} ids")


if __name__ == "__main__":
    main()
