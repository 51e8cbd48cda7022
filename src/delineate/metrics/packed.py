"""Masks packed 64 pixels a word: eroded and counted by a few passes over a sixty-fourth of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]  # uint64

_WORD = np.dtype("<u8")  # bit i of the stream of all words is bit i % 64 of word i // 64


@dataclass(frozen=True, slots=True)
class PackedMasks:
    """Masks (..., H, W), row by row; behind each row are `margin` or more zeros, which shifts bring in.

    >>> packed = PackedMasks.pack(np.ones((5, 6), bool), margin=2)
    >>> int(packed.count()), int(packed.eroded(1).count())
    (30, 12)
    """

    words: Words  # (..., H * row)
    shape: tuple[int, int]
    margin: int

    @property
    def row(self) -> int:
        """Words a row."""
        return -(-(self.shape[1] + self.margin) // 64)

    @classmethod
    def pack(cls, masks: NDArray[Any], margin: int) -> PackedMasks:
        """Pack masks (..., H, W), bool or integers of which all but 0 are inside."""
        *lead, height, width = masks.shape
        row = cls(np.zeros(0, _WORD), (height, width), margin).row
        content = np.zeros((*lead, height, row * 8), np.uint8)
        content[..., : -(-width // 8)] = np.packbits(masks, axis=-1, bitorder="little")
        return cls(content.view(_WORD).reshape(*lead, height * row), (height, width), margin)

    def unpack(self) -> NDArray[np.bool_]:
        """Return the masks (..., H, W)."""
        height, width = self.shape
        rows = self.words.view(np.uint8).reshape(*self.words.shape[:-1], height, self.row * 8)
        return np.unpackbits(rows, axis=-1, count=width, bitorder="little").view(bool)

    def without(self, other: PackedMasks) -> PackedMasks:
        """The pixels that are not in `other`."""
        return PackedMasks(self.words & ~other.words, self.shape, self.margin)

    def count(self) -> NDArray[np.int64]:
        """Pixels of each mask, (...)."""
        return count_bits(self.words)

    def eroded(self, radius: int) -> PackedMasks:
        """Erode by a square of 2 `radius` + 1 pixels, 0 outside the picture: `radius` erosions by 3 x 3.

        A window of n pixels is full where two of about n / 2 are, so that the number of passes grows as log(radius).
        Needs a margin of at least 2 `radius`.
        """
        if self.margin < 2 * radius:
            raise ValueError(f"a margin of {self.margin} is too small for erosion by {radius}; expected at least {2 * radius}")
        window, row = 2 * radius + 1, 64 * self.row
        full = self.words
        for step in (row, 1):  # bits from a pixel to the one below, and to the one on its right
            length = 1
            while length < window:
                grow = min(length, window - length)
                ahead = _ahead(full, grow * step)
                full = full[..., : ahead.shape[-1]] & ahead
                length += grow
        return PackedMasks(_back(full, radius * (row + 1), self.words.shape[-1]), self.shape, self.margin)


def count_bits(words: Words) -> NDArray[np.int64]:
    """Bits that are set, summed over the last axis.

    >>> count_bits(np.array([[3, 4]], np.uint64))
    array([3])
    """
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)


def _ahead(words: Words, shift: int) -> Words:
    """The streams from bit `shift` on."""
    skip, bits = divmod(shift, 64)
    if bits == 0 or skip >= words.shape[-1]:
        return words[..., skip:]
    moved = words[..., skip:] >> bits
    moved[..., :-1] |= words[..., skip + 1 :] << (64 - bits)
    return moved


def _back(words: Words, shift: int, length: int) -> Words:
    """The streams with `shift` zero bits before them, `length` words of each."""
    skip, bits = divmod(shift, 64)
    moved = np.zeros((*words.shape[:-1], length), _WORD)
    moved[..., skip : skip + words.shape[-1]] = words[..., : max(length - skip, 0)] << bits
    if bits:
        moved[..., skip + 1 : skip + 1 + words.shape[-1]] |= words[..., : max(length - skip - 1, 0)] >> (64 - bits)
    return moved
