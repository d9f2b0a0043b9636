"""Which example comes at which place of which step, and the seed of its randomness: pure functions of three numbers.

Nothing is remembered from step to step, so a resumed run sees what an uninterrupted one would have seen, and
several processes see together what one sees. A pass over the examples is a pseudo-random permutation computed
place by place (a Feistel network over the next power of four, walked until it lands inside).
"""

import hashlib
import struct

ROUNDS = 4  # three rounds of independent functions already make a pseudo-random permutation (Luby and Rackoff 1988)


def seed_of(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on every part and on their order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else struct.pack("<q", part))
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "little") >> 1


def shuffled(index: int, length: int, key: int) -> int:
    """Return the image of an index under the permutation of `range(length)` that the key names."""
    half_bits = max(1, (length - 1).bit_length() + 1 >> 1)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (seed_of(key, turn, right) & mask)
        index = left << half_bits | right
        if index < length:
            return index


def drawn(seed: int, step: int, place: int, *, global_batch: int, length: int) -> tuple[int, int]:
    """Return position and seed of the example at a place of a step: every example once per pass."""
    index = step * global_batch + place
    position = shuffled(index % length, length, seed_of(seed, index // length, "pass"))
    return position, seed_of(seed, step, place, "example")
