"""Three-bit codes, eight to three bytes, in the two orders that formats have.

As a stream: code i has bits 3i .. 3i + 2, the least first, as MIL stores its uint3. Split: the lower two bits of the eight in
two bytes and the upper ones in the third, the first code in the highest bits, as OpenVINO stores its u3.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]


def pack_stream(codes: UInt8) -> UInt8:
    """Codes [N, K], 0 .. 7, of K a multiple of eight, as streams [N, 3K/8]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place in range(8):
        words |= codes[:, place::8].astype(np.uint32) << np.uint32(3 * place)
    return _bytes(words)


def pack_split(codes: UInt8) -> UInt8:
    """Codes [N, K], 0 .. 7, of K a multiple of eight, in split order [N, 3K/8]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place in range(8):
        code = codes[:, place::8].astype(np.uint32)
        words |= (code & 3) << np.uint32(8 * (place // 4) + 6 - 2 * (place % 4))
        words |= (code >> 2) << np.uint32(23 - place)
    return _bytes(words)


def split_to_nibbles(packed: UInt8) -> UInt8:
    """Codes [3n] in split order, as two's complement of four bits around code 4, the first in the low half: [4n]."""
    lower, upper = _tables()
    parts = packed.reshape(-1, 3)
    words = lower[parts[:, 0]] | lower[parts[:, 1]] << np.uint32(16) | upper[parts[:, 2]]
    return words.astype("<u4", copy=False).view(np.uint8)


def _bytes(words: UInt32) -> UInt8:
    """The three lower bytes of each word."""
    parts = words.astype("<u4", copy=False).view(np.uint8).reshape(*words.shape, 4)[..., :3]
    return parts.reshape(len(words), -1)


@cache
def _tables() -> tuple[UInt32, UInt32]:
    """What a byte of lower bits adds to four nibbles, and one of upper bits to eight: code 4 is nought, code 3 minus one."""
    byte = np.arange(256, dtype=np.uint32)
    lower, upper = np.zeros(256, np.uint32), np.zeros(256, np.uint32)
    for place in range(4):
        lower |= (byte >> np.uint32(6 - 2 * place) & 3) << np.uint32(4 * place)
    for place in range(8):
        below = 1 - (byte >> np.uint32(7 - place) & 1)
        upper |= (12 * below) << np.uint32(4 * place)
    return lower, upper
