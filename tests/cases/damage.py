"""Ways to damage a file, drawn from a generator."""

from __future__ import annotations


def flip(rng, path):
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        # Half of them in the header, where one bit says most.
        place = rng.randrange(min(len(content), 3000) if rng.random() < 0.5 else len(content))
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(rng, path):
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(content))))])


def grow(rng, path):
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice((1, 8, 1000))))


def mix(rng, path):
    """Two pieces change places, or one is written over the other."""
    content = bytearray(path.read_bytes())
    size = rng.choice((1, 4, 64))
    a, b = (rng.randrange(max(1, len(content) - size)) for _ in range(2))
    first, second = content[a : a + size], content[b : b + size]
    content[b : b + size] = first
    if rng.random() < 0.5:
        content[a : a + size] = second
    path.write_bytes(content)


WAYS = (flip, flip, cut, grow, mix)
