"""Files as accidents leave them: bits flipped, bytes lost, ends missing, other bytes in between."""

from __future__ import annotations

from random import Random


def damaged(good: bytes, random: Random) -> bytes:
    """A copy of `good`, not empty, with one accident of a random kind."""
    data = bytearray(good)
    place = random.randrange(len(data))
    kind = random.choice(("flip", "flips", "cut", "lost", "zeros", "more"))
    if kind == "flip":
        data[place] ^= 1 << random.randrange(8)
    elif kind == "flips":
        for _ in range(8):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "lost":
        del data[place : place + random.randint(1, 8)]
    elif kind == "zeros":
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    else:
        data[place:place] = random.randbytes(random.randint(1, 8))
    return bytes(data)
