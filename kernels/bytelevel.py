"""Bytes as the printable characters that stand for them in a byte-level vocabulary.

Source: GPT-2's `bytes_to_unicode`; the format is that of tokenizer.json.
"""


def alphabet() -> list[str]:
    """The character that stands for each byte, by byte."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]
