"""The kernels of `roi_triton`.

A `Rule` is a constant to Triton, and for each it compiles anew.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

from delineate.ops.triton_jit import jit, tl

# Geometry along one axis, of one box or of many. An axis is a tuple: where the box starts, the size of a bin, the points of a
# bin, and the length of the map; all are floats, in cells.


@jit()
def _round(x):  # halves away from 0
    whole = tl.floor(tl.abs(x))
    whole = tl.where(tl.abs(x) - whole >= 0.5, whole + 1.0, whole)
    return tl.where(x < 0, -whole, whole)


@jit()
def _is_finite(x):
    return x - x == 0


@jit()
def _axis(low, high, scale, length, bins: tl.constexpr, rule: tl.constexpr):
    """The axis of boxes low..high. A box that is not finite has no points; for RoIPool the number only says whether it is."""
    if rule.quantized:
        start = _round(low * scale)
        size = _round(high * scale) - start + 1.0
    else:
        start = low * scale - (0.5 if rule.aligned else 0.0)
        size = high * scale - (0.5 if rule.aligned else 0.0) - start
    if not rule.aligned:
        size = tl.where(size < 1.0, 1.0, size)  # NaN stays
    bin_size = tl.div_rn(size, float(bins))
    if rule.quantized:
        count = bin_size * 0.0 + 1.0
    elif rule.sampling_ratio > 0:
        count = bin_size * 0.0 + rule.sampling_ratio
    else:
        count = tl.ceil(bin_size)
    usable = _is_finite(start) & _is_finite(bin_size) & (count >= 1.0) & (count < 1073741824.0)
    return start, bin_size, tl.where(usable, count, 0.0), length


@jit()
def _axes(rois, box, scale, height, width, rule: tl.constexpr):
    """The image of boxes, and their axes y and x."""
    region = rois + box.to(tl.int64) * 5
    y = _axis(tl.load(region + 2), tl.load(region + 4), scale, height, rule.height, rule)
    x = _axis(tl.load(region + 1), tl.load(region + 3), scale, width, rule.width, rule)
    return tl.load(region), y, x


@jit()
def _points(index, axis, rule: tl.constexpr):
    """The first point of each bin, how many from there on may lie on the map, and how many the bin has in all."""
    start, bin_size, count, length = axis
    index = index.to(tl.float32)
    count += index * 0.0
    if rule.quantized:
        begin = tl.floor(index * bin_size) + start
        end = tl.ceil((index + 1.0) * bin_size) + start
        usable = (count > 0) & _is_finite(begin) & _is_finite(end)
        first = tl.minimum(tl.maximum(tl.where(usable, begin, 0.0), 0.0), length)
        last = tl.minimum(tl.maximum(tl.where(usable, end, 0.0), 0.0), length)
        count = last - first
    elif rule.sampling_ratio > 0:
        first = index * 0.0
        last = count
    else:  # those far off the map, of a huge box, are not visited
        corner = start + index * bin_size
        step = tl.div_rn(bin_size, tl.maximum(count, 1.0))
        usable = (count > 0) & _is_finite(corner)
        first = tl.where(usable, tl.floor(tl.div_rn(-1.0 - corner, step)) - 2.0, 0.0)
        first = tl.minimum(tl.maximum(first, 0.0), count)
        last = tl.where(usable, tl.ceil(tl.div_rn(length - corner, step)) + 2.0, 0.0)
        last = tl.minimum(tl.maximum(last, first), count)
    return first.to(tl.int32), (last - first).to(tl.int32), count


@jit()
def _position(point, index, axis, rule: tl.constexpr):
    """Where a point of a bin lies, in cells, and whether that is on the map."""
    start, bin_size, count, length = axis
    point = point.to(tl.float32)
    if rule.quantized:
        return point, point < length
    at = start + index.to(tl.float32) * bin_size + tl.div_rn((point + 0.5) * bin_size, tl.maximum(count, 1.0))
    inside = (point < count) & (at >= -1.0) & (at <= tl.where(length > 0, length, -2.0))
    at = tl.where(inside, at, 0.0)
    return tl.minimum(tl.maximum(at, 0.0), tl.maximum(length - 1.0, 0.0)), inside


@jit()
def _weight(cell, position):
    """A cell's weight in the interpolated value at a position."""
    weight = tl.where(cell <= position, 1.0 - (position - cell), position - (cell - 1.0))
    return tl.maximum(weight, 0.0)


# Forward


@jit()
def _some_outside(first, number, count, index, axis, rule: tl.constexpr):
    """Whether a bin has points off the map."""
    inside = number * 0
    for i in range(tl.max(number)):
        _, here = _position(first + i, index, axis, rule)
        inside += ((i < number) & here).to(tl.int32)
    return inside.to(tl.float32) < count


@jit()
def _add_value(total, cells, y, x, inside, height, width, channels, c, rule: tl.constexpr):
    """Add the map's values at the points y, x (bins,) to a total (bins, channels)."""
    mask = inside[:, None] & (c < channels)[None, :]
    y_low, x_low = y.to(tl.int32), x.to(tl.int32)
    row = y_low.to(tl.int64) * width
    if rule.quantized:
        return total + _load(cells, row + x_low, channels, c, mask)
    y_high, x_high = tl.minimum(y_low + 1, height - 1), tl.minimum(x_low + 1, width - 1)
    next_row = y_high.to(tl.int64) * width
    v, w = y - y_low.to(tl.float32), x - x_low.to(tl.float32)
    total = _fma((1.0 - v) * (1.0 - w), _load(cells, row + x_low, channels, c, mask), total)
    total = _fma((1.0 - v) * w, _load(cells, row + x_high, channels, c, mask), total)
    total = _fma(v * (1.0 - w), _load(cells, next_row + x_low, channels, c, mask), total)
    return _fma(v * w, _load(cells, next_row + x_high, channels, c, mask), total)


@jit()
def _load(cells, cell, channels, c, mask):
    return tl.load(cells + (cell * channels)[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)


@jit()
def _fma(weight, values, total):
    return tl.fma(tl.broadcast_to(weight[:, None], values.shape), values, total)


@jit("images")
def forward(
    result, maps, heights, widths, scales, rois, levels, images, channels,
    rule: tl.constexpr, points: tl.constexpr, bins_at_once: tl.constexpr, channels_at_once: tl.constexpr,
):  # fmt: skip
    """Write the mean or maximum of some bins of a box, or with `points` the index of each one's largest point, -1 for none."""
    bins: tl.constexpr = rule.height * rule.width
    blocks: tl.constexpr = (bins + bins_at_once - 1) // bins_at_once
    box = tl.program_id(0) // blocks
    b = tl.program_id(0) % blocks * bins_at_once + tl.arange(0, bins_at_once)
    index_y, index_x = b // rule.width, b % rule.width
    c = tl.program_id(1) * channels_at_once + tl.arange(0, channels_at_once)

    level = tl.load(levels + box)
    cells, height, width, scale = maps[0], box * 0.0, box * 0.0, box * 0.0
    for i in tl.static_range(len(maps)):
        cells = tl.where(level == i, maps[i], cells)
        height = tl.where(level == i, heights[i], height)
        width = tl.where(level == i, widths[i], width)
        scale = tl.where(level == i, scales[i], scale)
    image, axis_y, axis_x = _axes(rois, box, scale, height, width, rule)
    exists = (image >= 0) & (image < images) & (level >= 0) & (level < len(maps))
    rows, columns = height.to(tl.int32), width.to(tl.int32)
    cells += tl.where(exists, image, 0.0).to(tl.int64) * rows * columns * channels
    first_y, number_y, count_y = _points(index_y, axis_y, rule)
    first_x, number_x, count_x = _points(index_x, axis_x, rule)
    number_y = tl.where(exists, tl.where(b < bins, number_y, 0), 0)

    value = tl.zeros((bins_at_once, channels_at_once), tl.float32)
    point = tl.full((bins_at_once, channels_at_once), -1, tl.int32)
    if rule.mode == "max":  # among equals the first is taken, and those off the map, which are 0, come before all others
        outside = _some_outside(first_y, number_y, count_y, index_y, axis_y, rule)
        outside |= _some_outside(first_x, number_x, count_x, index_x, axis_x, rule)
        value += tl.where(outside, 0.0, float("-inf"))[:, None]
    for i in range(tl.max(number_y)):
        y, inside_y = _position(first_y + i, index_y, axis_y, rule)
        inside_y &= i < number_y
        for j in range(tl.max(number_x)):
            x, inside = _position(first_x + j, index_x, axis_x, rule)
            inside &= inside_y & (j < number_x)
            if rule.mode == "max":
                here = _add_value(tl.zeros_like(value), cells, y, x, inside, rows, columns, channels, c, rule)
                better = inside[:, None] & ((here > value) | ((here != here) & (value == value)))
                value = tl.where(better, here, value)
                point = tl.where(better, (i * number_x + j)[:, None], point)
            else:
                value = _add_value(value, cells, y, x, inside, rows, columns, channels, c, rule)
    if rule.mode == "max":
        value = tl.where(point >= 0, value, 0.0)
    else:
        value *= tl.div_rn(1.0, tl.maximum(count_y * count_x, 1.0))[:, None]
    value = tl.where(exists, value, float("nan"))
    place = (box.to(tl.int64) * bins + b) * channels
    mask = (b < bins)[:, None] & (c < channels)[None, :]
    tl.store(result + place[:, None] + c[None, :], point if points else value.to(result.dtype.element_ty), mask=mask)


# Backward


@jit()
def _touches(axis, first, last, bins: tl.constexpr):
    """Whether boxes may have points whose cells are among first..last; a point reaches one cell far."""
    start, bin_size, count, _ = axis
    end = start + bin_size * bins
    return (count > 0) & (tl.minimum(start, end) <= last + 1.01) & (tl.maximum(start, end) >= first - 1.01)


@jit()
def _touching(axis, first, last, bins: tl.constexpr):
    """The first bin, and how many, that may have points whose cells are among first..last."""
    start, bin_size, _, _ = axis
    begin = tl.maximum(tl.floor((first - 1.0 - start) / bin_size - 0.01), 0.0)
    end = tl.maximum(tl.ceil((last + 1.0 - start) / bin_size + 0.01), 0.0)
    ordered = bin_size > 0  # a box without size, or one that ends before it starts: all
    begin = tl.where(ordered, tl.minimum(begin, bins), 0.0).to(tl.int32)
    end = tl.where(ordered, tl.minimum(end, bins), bins).to(tl.int32)
    return begin, tl.maximum(end - begin, 0)


@jit()
def _shares(cell, index, axis, rule: tl.constexpr):
    """The weight of each cell (cells, 1) in the mean of each bin's points (1, bins): (cells, bins)."""
    start, bin_size, count, _ = axis
    if rule.quantized:
        first, number, total = _points(index, axis, rule)
        inside = (cell >= first) & (cell < first + number)
        return tl.where(inside, tl.div_rn(1.0, tl.maximum(total, 1.0)), 0.0)
    cell = cell.to(tl.float32)
    first = (cell * 0.0 + index * 0.0).to(tl.int32)
    most = count
    if rule.sampling_ratio <= 0:  # bins of four points or more have 3/4 of a cell between them: five of these cover two cells
        step = tl.div_rn(bin_size, tl.maximum(count, 1.0))
        reach = (cell - 1.0 - start - index.to(tl.float32) * bin_size) / step - 0.5
        first = tl.minimum(tl.maximum(tl.floor(reach), 0.0), count).to(tl.int32)
        most = tl.minimum(count, 5.0)
    share = first * 0.0
    for i in range(most.to(tl.int32)):
        at, inside = _position(first + i, index, axis, rule)
        share += tl.where(inside, _weight(cell, at), 0.0)
    return share * tl.div_rn(1.0, tl.maximum(count, 1.0))


@jit()
def _add_means(
    total, grad, y, x, channels, c, axis_y, axis_x, bins_y, bins_x,
    rule: tl.constexpr, bins_at_once: tl.constexpr, short: tl.constexpr,
):  # fmt: skip
    """Add to a total (cells, channels) what the gradient of a box's bins gives its cells y, x (cells, 1)."""
    begin_y, down = bins_y
    begin_x, across = bins_x
    for k in range(0, down * across, bins_at_once):
        b = k + tl.arange(0, bins_at_once)
        index_y, index_x = begin_y + b // across, begin_x + b % across
        place = (index_y * rule.width + index_x) * channels
        mask = (b < down * across)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + place[:, None] + c[None, :], mask=mask, other=0.0)
        share = _shares(y, index_y[None, :], axis_y, rule) * _shares(x, index_x[None, :], axis_x, rule)
        if short:  # products of 16-bit numbers, the weights as sums of two
            most = share.to(g.dtype)
            total = tl.dot((share - most.to(tl.float32)).to(g.dtype), g, total)
            total = tl.dot(most, g, total)
        else:  # as exact as float32
            total = tl.dot(share, g.to(tl.float32), total, input_precision="tf32x3")
    return total


@jit()
def _add_maxima(total, grad, points, y, x, channels, c, axis_y, axis_x, bins_y, bins_x, rule: tl.constexpr):
    """The same for maxima: each channel has its own point."""
    begin_y, down = bins_y
    begin_x, across = bins_x
    for k in range(down * across):
        index_y, index_x = begin_y + k // across, begin_x + k % across
        place = (index_y * rule.width + index_x) * channels + c
        point = tl.load(points + place, mask=c < channels, other=-1)
        g = tl.load(grad + place, mask=c < channels, other=0.0).to(tl.float32)
        first_y, _, _ = _points(index_y, axis_y, rule)
        first_x, number, _ = _points(index_x, axis_x, rule)
        number = tl.maximum(number, 1)
        at_y, _ = _position(first_y + point // number, index_y, axis_y, rule)
        at_x, _ = _position(first_x + point % number, index_x, axis_x, rule)
        weight = _weight(y.to(tl.float32), at_y[None, :]) * _weight(x.to(tl.float32), at_x[None, :])
        total += tl.where(point[None, :] >= 0, weight * g[None, :], 0.0)
    return total


@jit()
def _tiles(length, tile: tl.constexpr):
    return (length.to(tl.int32) + (tile - 1)) // tile


@jit("boxes", "images")
def backward(
    results, grad, points, heights, widths, scales, rois, levels, boxes, images, channels,
    rule: tl.constexpr, tile_y: tl.constexpr, tile_x: tl.constexpr, channels_at_once: tl.constexpr,
    boxes_at_once: tl.constexpr, bins_at_once: tl.constexpr, short: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of cells of a map."""
    tile = tl.program_id(0)
    result, level, zero = results[0], -1 + tile * 0, tile * 0.0
    height, width, scale = zero, zero, zero
    for i in tl.static_range(len(results)):
        tiles = images * _tiles(heights[i] + zero, tile_y) * _tiles(widths[i] + zero, tile_x)
        here = (level < 0) & (tile < tiles)
        result = tl.where(here, results[i], result)
        height = tl.where(here, heights[i], height)
        width = tl.where(here, widths[i], width)
        scale = tl.where(here, scales[i], scale)
        level = tl.where(here, i, level)
        tile = tl.where(level < 0, tile - tiles, tile)
    across = _tiles(width, tile_x)
    area = _tiles(height, tile_y) * across
    image = tile // area
    top, left = tile % area // across * tile_y, tile % across * tile_x
    e = tl.arange(0, tile_y * tile_x)
    y, x = (top + e // tile_x)[:, None], (left + e % tile_x)[:, None]  # (cells, 1)
    c = tl.program_id(1) * channels_at_once + tl.arange(0, channels_at_once)

    total = tl.zeros((tile_y * tile_x, channels_at_once), tl.float32)
    for begin in range(0, boxes, boxes_at_once):
        row = begin + tl.arange(0, boxes_at_once)
        known = tl.minimum(row, boxes - 1)
        of_image, many_y, many_x = _axes(rois, known, scale, height, width, rule)
        touching = (row < boxes) & (tl.load(levels + known) == level) & (tl.floor(of_image) == image)
        touching &= _touches(many_y, top, top + tile_y - 1, rule.height) & _touches(many_x, left, left + tile_x - 1, rule.width)
        for _ in range(tl.sum(touching.to(tl.int32))):
            box = tl.min(tl.where(touching, row, 2147483647))
            touching &= row != box
            _, axis_y, axis_x = _axes(rois, box, scale, height, width, rule)
            bins_y = _touching(axis_y, top, top + tile_y - 1, rule.height)
            bins_x = _touching(axis_x, left, left + tile_x - 1, rule.width)
            start = box.to(tl.int64) * (rule.height * rule.width) * channels
            if rule.mode == "max":
                total = _add_maxima(
                    total, grad + start, points + start, y, x, channels, c, axis_y, axis_x, bins_y, bins_x, rule
                )
            else:
                total = _add_means(
                    total, grad + start, y, x, channels, c, axis_y, axis_x, bins_y, bins_x, rule, bins_at_once, short
                )

    rows, columns = height.to(tl.int32), width.to(tl.int32)
    place = ((image.to(tl.int64) * rows + y) * columns + x) * channels
    mask = (y < rows) & (x < columns) & (c < channels)[None, :]
    tl.store(result + place + c[None, :], total.to(result.dtype.element_ty), mask=mask)
