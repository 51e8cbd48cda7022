"""Masks packed 64 pixels a word: eroded and counted by a few passes over a sixty-fourth of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]  # uint64

_WORD = np.dtype("<u8")  # bit i of the stream of all words is bit i % 64 of word i // 64


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A mask (H, W), row by row; behind each row are `margin` or more zeros, which shifts bring in.

    >>> packed = PackedMask.pack(np.ones((5, 6), bool), margin=2)
    >>> packed.count(), packed.eroded(1).count()
    (30, 12)
    """

    words: Words  # (H * row,)
    shape: tuple[int, int]
    margin: int

    @property
    def row(self) -> int:
        """Words a row."""
        return -(-(self.shape[1] + self.margin) // 64)

    @classmethod
    def pack(cls, mask: NDArray[Any], margin: int) -> PackedMask:
        """Pack a mask (H, W), bool or integers of which all but 0 are inside."""
        packed = cls(np.zeros(0, _WORD), (mask.shape[0], mask.shape[1]), margin)
        content = np.zeros((mask.shape[0], packed.row * 8), np.uint8)
        content[:, : -(-mask.shape[1] // 8)] = np.packbits(mask, axis=1, bitorder="little")
        return cls(content.view(_WORD).reshape(-1), packed.shape, margin)

    def unpack(self) -> NDArray[np.bool_]:
        """Return the mask (H, W)."""
        rows = self.words.view(np.uint8).reshape(self.shape[0], self.row * 8)
        return np.unpackbits(rows, axis=1, count=self.shape[1], bitorder="little").view(bool)

    def __and__(self, other: PackedMask) -> PackedMask:
        return PackedMask(self.words & other.words, self.shape, self.margin)

    def without(self, other: PackedMask) -> PackedMask:
        """The pixels that are not in `other`."""
        return PackedMask(self.words & ~other.words, self.shape, self.margin)

    def count(self) -> int:
        """Number of pixels."""
        return int(np.bitwise_count(self.words).sum(dtype=np.int64))

    def eroded(self, radius: int) -> PackedMask:
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
                full = full[: len(ahead)] & ahead
                length += grow
        return PackedMask(_back(full, radius * (row + 1), len(self.words)), self.shape, self.margin)


def _ahead(words: Words, shift: int) -> Words:
    """The stream from bit `shift` on."""
    skip, bits = divmod(shift, 64)
    if bits == 0 or skip >= len(words):
        return words[skip:]
    moved = words[skip:] >> bits
    moved[:-1] |= words[skip + 1 :] << (64 - bits)
    return moved


def _back(words: Words, shift: int, length: int) -> Words:
    """The stream with `shift` zero bits before it, `length` words of it."""
    skip, bits = divmod(shift, 64)
    moved = np.zeros(length, _WORD)
    moved[skip : skip + len(words)] = words[: max(length - skip, 0)] << bits
    if bits:
        moved[skip + 1 : skip + 1 + len(words)] |= words[: max(length - skip - 1, 0)] >> (64 - bits)
    return moved
