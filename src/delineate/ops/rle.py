"""Run-length codes in COCO's compressed form, byte for byte those of pycocotools, from masks and straight from boxes.

A code lists how long the runs of 0, 1, 0 ... are along the columns of a mask; the first may be 0. From the fourth run on it
holds the difference to the run two before. Each number becomes characters of five bits, lowest first, in two's complement: 48
plus the bits, plus 32 if more follow. In Python a code is `{"size": [height, width], "counts": str}`; the operations that
`torch.compile` and `torch.export` take whole (`encode_text`, `paste_text`, `decode_text`) hold N of them as two tensors, the
characters of all, uint8, and where each ends, (N,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.errors import DataError
from delineate.ops import gpu, native
from delineate.ops.masks import Convention, check_paste, paste_reference, placement, untouched_zeros

Rle = dict[str, Any]  # {"size": [height, width], "counts": str or bytes, or a list of run lengths}
Runs = NDArray[np.int64]


def encode_rle(masks: Tensor) -> list[Rle]:
    """Return the codes of masks (N, height, width), bool or numbers, of which 0 is outside.

    >>> encode_rle(torch.tensor([[[False, True], [False, True]]]))
    [{'size': [2, 2], 'counts': '22'}]
    """
    if masks.ndim != 3:
        raise ValueError(f"masks {tuple(masks.shape)}; expected (N, height, width)")
    text, ends = encode_text(masks if masks.dtype == torch.bool else masks != 0)
    return _codes(text.numpy().tobytes(), ends.tolist(), masks.shape[1], masks.shape[2])


def paste_rle(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, convention: Convention = "detectron2"
) -> list[Rle]:
    """Return `encode_rle(paste_masks(masks, boxes, size, threshold, convention))` without a mask of the picture's size.

    >>> paste_rle(torch.ones(1, 2, 2), torch.tensor([[1.0, 0, 3, 2]]), (2, 4))
    [{'size': [2, 4], 'counts': '242'}]
    """
    check_paste(masks, boxes, threshold, convention)
    text, ends = paste_text(masks.detach(), boxes.detach(), *size, threshold, convention)
    return _codes(text.numpy().tobytes(), ends.tolist(), *size)


def decode_rle(rles: Sequence[Rle]) -> Tensor:
    """Return the masks (N, height, width) bool of codes of one size; `counts` may also be bytes, or a list of run lengths.

    Raises `DataError` for a code that is damaged and for sizes that differ. No codes have no size: (0, 0, 0).

    >>> decode_rle([{"size": [2, 2], "counts": "22"}]).int()
    tensor([[[0, 1],
             [0, 1]]], dtype=torch.int32)
    """
    if not rles:
        return torch.zeros(0, 0, 0, dtype=torch.bool)
    size = _one_size(rles)
    texts = [_text(rle) for rle in rles]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return decode_text(_characters(b"".join(texts)), ends, *size)


def rle_runs(rle: Rle) -> Runs:
    """Return the run lengths (R,) int64 of a code; raises `DataError` if they do not fill its size.

    >>> rle_runs({"size": [2, 2], "counts": "22"})
    array([2, 2])
    """
    size, counts = _size(rle), rle["counts"]
    runs = np.array(counts, np.int64) if isinstance(counts, list) else _unpack(_text(rle))
    _check_fill(runs, size)
    return runs


def encode_runs(runs: Sequence[Runs | list[int]], size: tuple[int, int]) -> list[Rle]:
    """Return the codes of masks given by their run lengths, the inverse of `rle_runs`; `DataError` if some do not fill `size`.

    >>> encode_runs([[2, 2]], (2, 2))
    [{'size': [2, 2], 'counts': '22'}]
    """
    arrays = [np.asarray(r, np.int64) for r in runs]
    for array in arrays:
        _check_fill(array, size)
    text, ends = _pack(np.concatenate([*arrays, np.zeros(0, np.int64)]), np.array([len(a) for a in arrays], np.int64))
    return _codes(text, ends.tolist(), *size)


def rle_area(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Return how many pixels each code covers, (N,).

    >>> rle_area([{"size": [2, 2], "counts": "22"}])
    array([2])
    """
    return np.array([rle_runs(rle)[1::2].sum() for rle in rles], np.int64)


def rle_boxes(rles: Sequence[Rle]) -> NDArray[np.float64]:
    """Return the box around each code, (N, 4) xyxy in pixels; 0 for one without pixels.

    >>> rle_boxes([{"size": [2, 2], "counts": "22"}])
    array([[1., 0., 2., 2.]])
    """
    boxes = np.zeros((len(rles), 4))
    for box, rle in zip(boxes, rles, strict=True):
        start, end = _spans(rle)
        if len(start) == 0:
            continue
        height = rle["size"][0]
        (left, top), (right, bottom) = divmod(start, height), divmod(end - 1, height)
        whole = (left < right).any()  # a run into the next column passes the last row and the first
        box[:] = left[0], 0 if whole else top.min(), right[-1] + 1, height if whole else bottom.max() + 1
    return boxes


def merge_rle(rles: Sequence[Rle], intersect: bool = False) -> Rle:
    """Return the code of what any of the codes covers, or with `intersect` of what all of them do.

    >>> merge_rle([{"size": [2, 2], "counts": "22"}, {"size": [2, 2], "counts": "112"}])
    {'size': [2, 2], 'counts': '13'}
    """
    if not rles:
        raise ValueError("no run-length codes to merge; their size is not known")
    height, width = _one_size(rles)
    spans = [_spans(rle) for rle in rles]
    place = np.concatenate([x for span in spans for x in span])
    change = np.concatenate([np.full(len(x), step) for span in spans for step, x in zip((1, -1), span, strict=True)])
    order = np.argsort(place, kind="stable")
    place, covered = place[order], np.cumsum(change[order])
    final = np.append(place[1:] != place[:-1], True)[: len(place)]  # after all changes at a place
    place, inside = place[final], covered[final] >= (len(rles) if intersect else 1)
    edges = place[np.diff(inside, prepend=False)]
    return encode_runs([_lengths(edges, height * width)], (height, width))[0]


def rle_iou(a: Sequence[Rle], b: Sequence[Rle], crowd: Sequence[bool] | None = None) -> NDArray[np.float64]:
    """Return the IoU of every code of `a` with every code of `b`, (N, M); 0 for two without pixels.

    Where `crowd` (M,) is true, the union is the area of a's code alone, as COCO scores detections in crowds.

    >>> rle_iou([{"size": [2, 2], "counts": "22"}], [{"size": [2, 2], "counts": "13"}])
    array([[0.66666667]])
    """
    if a and b:
        _one_size([*a, *b])
    area_a, area_b = rle_area(a), rle_area(b)
    boxes_a, boxes_b = rle_boxes(a), rle_boxes(b)
    meet = ((boxes_a[:, None, :2] < boxes_b[:, 2:]) & (boxes_b[:, :2] < boxes_a[:, None, 2:])).all(-1)
    edges = [np.cumsum(rle_runs(rle)) for rle in a]
    spans = [_spans(rle) for rle in b]
    shared = np.zeros((len(a), len(b)), np.int64)
    for i, j in np.argwhere(meet):
        start, end = spans[j]
        shared[i, j] = (_covered(edges[i], end) - _covered(edges[i], start)).sum()
    alone = np.zeros(len(b), bool) if crowd is None else np.asarray(crowd, bool)
    union = area_a[:, None] + np.where(alone, 0, area_b - shared)
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


@torch.library.custom_op("delineate::encode_text", mutates_args=())
def encode_text(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of masks (N, height, width) bool, as text (characters,) uint8 and ends (N,) int64, on the CPU."""
    if native.available and masks.device.type == "cpu":
        ends = torch.empty(len(masks), dtype=torch.int64)
        return _characters(native.kernels.encode(masks.contiguous(), ends, torch.get_num_threads())), ends
    if kernels := gpu.kernels("rle", masks):
        return kernels.edges_to_text(*_edges(masks), masks.shape[1] * masks.shape[2])
    text, ends = _pack(*_runs(masks))
    return _characters(text), torch.from_numpy(ends)


@torch.library.custom_op("delineate::paste_text", mutates_args=())
def paste_text(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, convention: str
) -> tuple[Tensor, Tensor]:
    """Codes of masks (N, S, T) pasted over boxes (N, 4), as text and ends, on the CPU."""
    grid = masks.shape[1], masks.shape[2]
    kernels = gpu.kernels("rle", masks)
    if kernels is None:  # few numbers go to the CPU; pasting where the masks are would move whole pictures
        masks, boxes = masks.cpu().float().contiguous(), boxes.cpu()
    place = placement(boxes, grid, (height, width), convention)  # pyright: ignore[reportArgumentType]
    if kernels is not None:
        return kernels.edges_to_text(*kernels.pasted_edges(masks, place, (height, width), threshold), height * width)
    if native.available:
        ends = torch.empty(len(masks), dtype=torch.int64)
        arguments = masks, *place, height, width, threshold, ends, torch.get_num_threads()
        return _characters(native.kernels.paste_encode(*arguments)), ends
    runs = [_pasted_runs(masks[n : n + 1], place, n, (height, width), threshold) for n in range(len(masks))]
    text, ends = _pack(np.concatenate([np.zeros(0, np.int64), *runs]), np.array([len(r) for r in runs], np.int64))
    return _characters(text), torch.from_numpy(ends)


@torch.library.custom_op("delineate::decode_text", mutates_args=())
def decode_text(text: Tensor, ends: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, height, width) bool of codes given as text and ends."""
    masks = untouched_zeros(len(ends), height, width)
    if native.available:
        try:
            native.kernels.decode(text.contiguous(), ends.contiguous(), masks, torch.get_num_threads())
        except ValueError as error:
            raise DataError(str(error)) from None
        return masks
    joined = text.numpy().tobytes()
    bounds = [0, *ends.tolist()]
    for mask, start, end in zip(masks, bounds[:-1], bounds[1:], strict=True):
        runs = rle_runs({"size": [height, width], "counts": joined[start:end]})
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        mask.copy_(torch.from_numpy(inside.reshape(width, height)).T)
    return masks


def _fake_text(masks: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    characters = torch.library.get_ctx().new_dynamic_size()
    empty = torch.empty(0, dtype=torch.int64, device="cpu")
    return empty.new_empty(characters, dtype=torch.uint8), empty.new_empty(masks.shape[0])


encode_text.register_fake(_fake_text)
paste_text.register_fake(_fake_text)


@decode_text.register_fake
def _(text: Tensor, ends: Tensor, height: int, width: int) -> Tensor:
    return text.new_empty(ends.shape[0], height, width, dtype=torch.bool)


def _edges(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The column-major places where masks (N, height, width) change, one mask's after another's, and how many each has."""
    count, pixels = len(masks), masks.shape[1] * masks.shape[2]
    columns = masks.transpose(1, 2).reshape(count, pixels)
    previous = torch.cat([columns.new_zeros(count, 1), columns[:, : pixels - 1]], 1)[:, :pixels]
    changes = columns != previous
    return changes.nonzero(as_tuple=True)[1], changes.sum(1)


def _runs(masks: Tensor) -> tuple[Runs, Runs]:
    """Run lengths of masks (N, height, width), one after another, and how many each has: the plain form, on every device."""
    places, counts = (x.cpu().numpy() for x in _edges(masks))
    pixels = masks.shape[1] * masks.shape[2]
    ends = np.cumsum(counts)
    edges = np.insert(places, ends, pixels)  # each mask's edges and its end
    starts = ends - counts + np.arange(len(counts))
    runs = np.diff(edges, prepend=0)
    runs[starts] = edges[starts]
    return runs, counts + 1


def _pasted_runs(mask: Tensor, place: Any, number: int, size: tuple[int, int], threshold: float) -> Runs:
    """Run lengths of one mask (1, S, T), of which only the columns and rows near its box are pasted."""
    (left, top), (right, bottom) = place.first[number].tolist(), place.last[number].tolist()
    window = place._replace(
        origin=place.origin[number : number + 1],
        extent=place.extent[number : number + 1],
        first=place.first[number : number + 1],
        last=place.last[number : number + 1],
    )
    pasted = paste_reference(mask, window, (bottom, right), threshold)[0, top:, left:]
    inside = np.flatnonzero(pasted.T.numpy().ravel())
    if len(inside) == 0:
        return np.array([size[0] * size[1]])
    height = bottom - top
    x, y = inside // height + left, inside % height + top
    pixel = x * size[0] + y
    gap = np.flatnonzero(np.diff(pixel) > 1)
    start, end = pixel[np.append(0, gap + 1)], pixel[np.append(gap, len(pixel) - 1)] + 1
    return _lengths(np.stack([start, end], 1).ravel(), size[0] * size[1])


def _lengths(edges: Runs, pixels: int) -> Runs:
    """Run lengths of a mask that changes at `edges`."""
    runs = np.diff(np.concatenate([[0], edges, [pixels]]))
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def _spans(rle: Rle) -> tuple[Runs, Runs]:
    """The column-major places where the runs of 1 start and end, without empty ones."""
    edges = np.cumsum(rle_runs(rle))
    start, end = edges[: len(edges) // 2 * 2 : 2], edges[1::2]
    return start[end > start], end[end > start]


def _covered(edges: Runs, place: Runs) -> Runs:
    """How many pixels before each place a code with these ends of runs covers."""
    runs = np.diff(edges, prepend=0)
    before = np.concatenate([[0], np.cumsum(np.where(np.arange(len(runs)) % 2 == 1, runs, 0))])  # by whole runs
    run = np.searchsorted(edges, place, side="right")
    within = place - np.concatenate([[0], edges])[run]
    return before[run] + np.where(run % 2 == 1, within, 0)


def _pack(runs: Runs, lengths: Runs) -> tuple[bytes, Runs]:
    """The text of the runs of several masks, of `lengths` runs each, and where each text ends."""
    bounds = np.cumsum(lengths)
    values = runs.copy()
    values[2:] -= runs[:-2]
    for skipped in range(3):  # the first three runs of each mask stand for themselves
        first = (bounds - lengths + skipped)[lengths > skipped]
        values[first] = runs[first]
    characters, used = np.zeros((len(runs), _CHARACTERS), np.uint8), np.zeros((len(runs), _CHARACTERS), bool)
    more = np.ones(len(runs), bool)
    for k in range(_CHARACTERS):
        bits, values = values & 31, values >> 5
        used[:, k] = more
        goes_on = np.where(bits & 16, values != -1, values != 0)
        characters[:, k] = 48 + bits + 32 * goes_on
        more &= goes_on
    ends = np.concatenate([[0], np.cumsum(used.sum(1))])[bounds]
    return characters[used].tobytes(), ends


_CHARACTERS = 10
"""Enough for runs of 2^49 pixels."""


def _unpack(text: bytes) -> Runs:
    """The runs of one text; raises `DataError` for characters that are none of the code's, and for an end within a number."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    stop = codes & 32 == 0
    number = np.cumsum(stop) - stop
    start = np.flatnonzero(np.diff(number, prepend=-1))
    digit = np.arange(len(codes)) - start[number]
    if ((codes < 0) | (codes > 63) | (digit >= _CHARACTERS)).any() or not stop[-1:].all():
        raise DataError(f"the run-length text {text[:60]!r} is damaged")
    values = np.add.reduceat((codes & 31) << 5 * digit, start) if len(codes) else codes
    last = codes[stop] & 16 != 0  # the sign of a number is the highest bit of its last character
    runs = values - np.where(last, 1 << 5 * (digit[stop] + 1), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _characters(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, np.uint8).copy())


def _codes(text: bytes, ends: list[int], height: int, width: int) -> list[Rle]:
    joined = text.decode("ascii")
    return [{"size": [int(height), int(width)], "counts": joined[a:b]} for a, b in pairwise([0, *ends])]


def _check_fill(runs: Runs, size: Sequence[int]) -> None:
    pixels = int(size[0]) * int(size[1])
    if (runs < 0).any() or runs.sum() != pixels:
        text = np.array2string(runs, separator=", ", threshold=8)
        raise DataError(f"a run-length code is damaged: its runs {text} do not add up to {pixels} pixels")


def _one_size(rles: Sequence[Rle]) -> tuple[int, int]:
    sizes = {_size(rle) for rle in rles}
    if len(sizes) > 1:
        raise DataError(f"run-length codes of several sizes: {sorted(sizes)}")
    return sizes.pop()


def _size(rle: Rle) -> tuple[int, int]:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise DataError(f"a run-length code has the size {size!r}, expected [height, width]")
    if not isinstance(counts, list | str | bytes):
        raise DataError(f"a run-length code has the counts {counts!r}, expected a list or a string")
    return int(size[0]), int(size[1])


def _text(rle: Rle) -> bytes:
    counts = rle["counts"]
    if isinstance(counts, list):
        runs = rle_runs(rle)
        return _pack(runs, np.array([len(runs)]))[0]
    return counts.encode() if isinstance(counts, str) else counts
