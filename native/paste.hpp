// Where a small mask lies in a picture, shared by pasting and by run-length codes so that they agree to the last bit.
#pragma once

#include "common.hpp"

#include <nanobind/stl/pair.h>

#include <cmath>

namespace delineate {

// What delineate.ops.masks.Placement says, with the masks (N, S, T) that are placed.
struct Placement {
    const float *masks, *origin, *extent;
    const int32_t *first, *last;
    int64_t count, rows, columns;  // N, S, T
    float cells[2];                // for x and y
    float shift;

    Placement(const Input& mask, const Input& start, const Input& length, const Input& from, const Input& to,
              std::pair<int64_t, int64_t> lattice, double offset) {
        require(mask.ndim() == 3, "masks must be (N, S, T)");
        count = mask.shape(0), rows = mask.shape(1), columns = mask.shape(2);
        for (const Input* array : {&start, &length, &from, &to})
            require(array->ndim() == 2 && int64_t(array->shape(0)) == count && array->shape(1) == 2, "placements must be (N, 2)");
        masks = elements<float>(mask, "masks"), origin = elements<float>(start, "origin"), extent = elements<float>(length, "extent");
        first = elements<int32_t>(from, "first"), last = elements<int32_t>(to, "last");
        cells[0] = static_cast<float>(lattice.first), cells[1] = static_cast<float>(lattice.second);
        shift = static_cast<float>(offset);
    }
};

// The pixels of an axis whose values are interpolated: pixel first + i lies between cell[i] and cell[i] + 1 of the padded mask.
struct Axis {
    int64_t first = 0;
    std::vector<int32_t> cell;
    std::vector<float> fraction;

    Axis(const Placement& p, int64_t mask, int axis, int64_t length) {
        const int64_t i = 2 * mask + axis, count = axis == 0 ? p.columns : p.rows;
        const int64_t from = std::max<int64_t>(p.first[i], 0), to = std::min<int64_t>(p.last[i], length);
        for (int64_t pixel = from; pixel < to; pixel++) {
            const float place = (static_cast<float>(pixel) + 0.5f - p.origin[i]) / p.extent[i] * p.cells[axis] - p.shift;
            if (!(place >= -1.0f && place < static_cast<float>(count))) continue;  // outside, where the value is 0
            if (cell.empty()) first = pixel;
            const float below = std::floor(place);
            cell.push_back(static_cast<int32_t>(below) + 1);
            fraction.push_back(place - below);
        }
    }
    int64_t size() const { return static_cast<int64_t>(cell.size()); }
};

// The one formula of interpolation, the same in the plain form. For a fixed pair of values it is monotonic in the fraction, after
// rounding too. These files are compiled without fused multiply-add, which would round otherwise.
DELINEATE_INLINE inline float interpolate(float low, float high, float fraction) { return low + fraction * (high - low); }

}  // namespace delineate
