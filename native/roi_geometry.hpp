// Which cells of a feature map each bin of a region reads, and with which weights. Both axes are independent.
#pragma once

#include "common.hpp"

#include <cmath>

namespace delineate {

// How a box becomes sample points; the names are those of delineate.ops.roi.
struct Rule {
    bool quantized;      // RoIPool: the points are the cells of rounded bins
    int sampling_ratio;  // RoIAlign: points a bin and axis, or at most 0 for as many as cells
    bool aligned;        // RoIAlign: cells have their centres at 0.5
    bool maximum;
};

// A point between two cells, or on one.
template <typename A>
struct Sample {
    int32_t low, high;
    A low_weight, high_weight;
};

// A cell's share of a bin's mean.
template <typename A>
struct Tap {
    int32_t cell;
    A weight;
};

// One axis of a region: bin b has the items first[b]..first[b + 1] - 1, samples for the maximum, taps for the mean.
template <typename A>
struct Axis {
    std::vector<int32_t> first{0};
    std::vector<Sample<A>> samples;
    std::vector<Tap<A>> taps;
    std::vector<char> outside;         // whether some point of the bin lies outside the map, where everything is 0
    int32_t lowest = 0, highest = -1;  // the cells that are read lie between these

    Axis() = default;
    Axis(int64_t bins, int64_t items, bool maximum) : maximum_(maximum) {
        first.reserve(bins + 1);
        outside.reserve(bins);
        maximum ? samples.reserve(items) : taps.reserve(items);
    }

    int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }

    // Adds a point to the open bin; `share` is its part of the mean.
    void add(Sample<A> point, A share) {
        lowest = highest < 0 ? point.low : std::min(lowest, point.low);
        highest = std::max(highest, point.high);
        if (maximum_) {
            samples.push_back(point);
        } else {
            add_tap(point.low, point.low_weight * share);
            if (point.high_weight != 0) add_tap(point.high, point.high_weight * share);
        }
    }

    void close_bin(bool some_outside) {
        outside.push_back(some_outside);
        first.push_back(static_cast<int32_t>(maximum_ ? samples.size() : taps.size()));
    }

private:
    bool maximum_ = false;

    void add_tap(int32_t cell, A weight) {  // points follow each other, so that a cell seen before is one of the last two
        const auto start = static_cast<int64_t>(first.back()), end = static_cast<int64_t>(taps.size());
        for (int64_t i = end - 1; i >= std::max(start, end - 2); i--)
            if (taps[i].cell == cell) {
                taps[i].weight += weight;
                return;
            }
        taps.push_back({cell, weight});
    }
};

// The point's two cells, or false outside -1..length; as in torchvision and Detectron2.
template <typename A>
bool sample_at(A position, int64_t length, Sample<A>& sample) {
    if (!(position >= -1 && position <= static_cast<A>(length)) || length == 0) return false;  // NaN is outside
    position = std::max(position, A(0));
    auto low = static_cast<int32_t>(position), last = static_cast<int32_t>(length - 1);
    if (low >= last) {
        sample = {last, last, A(1), A(0)};
    } else {
        const A fraction = position - static_cast<A>(low);
        sample = {low, low + 1, A(1) - fraction, fraction};
    }
    return true;
}

// RoIAlign: bins of equal real size, with points at the centres of their equal parts.
template <typename A>
Axis<A> align_axis(A from, A to, A scale, int64_t bins, int64_t length, const Rule& rule) {
    const A start = from * scale - (rule.aligned ? A(0.5) : A(0));
    A size = to * scale - (rule.aligned ? A(0.5) : A(0)) - start;
    if (!rule.aligned) size = std::max(size, A(1));
    const A bin = size / static_cast<A>(bins);
    const A wanted = rule.sampling_ratio > 0 ? static_cast<A>(rule.sampling_ratio) : std::ceil(bin);
    const int64_t points = wanted >= 1 && wanted < A(1 << 30) ? static_cast<int64_t>(wanted) : 0;  // none for NaN and infinity

    Axis<A> axis(bins, 4 * bins, rule.maximum);
    for (int64_t b = 0; b < bins; b++) {
        const A corner = start + static_cast<A>(b) * bin, step = bin / static_cast<A>(std::max<int64_t>(points, 1));
        // a box far larger than the map has few points inside: the others are not visited
        int64_t begin = 0, end = points;
        if (step > 0 && std::isfinite(corner) && std::isfinite(step)) {
            const A before = std::floor((A(-1) - corner) / step), after = std::ceil((static_cast<A>(length) - corner) / step);
            begin = static_cast<int64_t>(std::clamp(before - 2, A(0), static_cast<A>(points)));
            end = static_cast<int64_t>(std::clamp(after + 2, A(0), static_cast<A>(points)));
        }
        int64_t inside = 0;
        for (int64_t i = begin; i < end; i++) {
            Sample<A> sample;
            const A position = corner + (static_cast<A>(i) + A(0.5)) * bin / static_cast<A>(points);
            if (!sample_at(position, length, sample)) continue;
            axis.add(sample, A(1) / static_cast<A>(points));
            inside++;
        }
        axis.close_bin(inside < points);
    }
    return axis;
}

// RoIPool: the box is rounded to cells, both ends included, and so is each bin; bins overlap where they share a cell.
template <typename A>
Axis<A> pool_axis(A from, A to, A scale, int64_t bins, int64_t length, const Rule& rule) {
    const A start = std::round(from * scale), size = std::max(std::round(to * scale) - start + 1, A(1));
    const A bin = size / static_cast<A>(bins), limit = static_cast<A>(length);
    Axis<A> axis(bins, 4 * bins, rule.maximum);
    for (int64_t b = 0; b < bins; b++) {
        const A begin = std::floor(static_cast<A>(b) * bin) + start, end = std::ceil(static_cast<A>(b + 1) * bin) + start;
        if (std::isfinite(begin) && std::isfinite(end)) {
            const auto low = static_cast<int32_t>(std::clamp(begin, A(0), limit));
            const auto high = static_cast<int32_t>(std::clamp(end, A(0), limit));
            for (int32_t cell = low; cell < high; cell++) axis.add({cell, cell, A(1), A(0)}, A(1) / static_cast<A>(high - low));
        }
        axis.close_bin(false);
    }
    return axis;
}

template <typename A>
struct Region {
    int64_t row, level, image;  // row of the result, index of the map, index in the batch
    Axis<A> y, x;
};

}  // namespace delineate
