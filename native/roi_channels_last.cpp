// Regions of maps whose channels lie together: each cell is a run of channels, so that vectors run along them.
#include "roi_kernels.hpp"

#include <limits>

namespace delineate {
namespace {

// A run of kLanes channels at a time, or the `count` channels that are left at the end.
struct Whole {
    template <typename T>
    DELINEATE_INLINE Vector<T> load(const T* values) const {
        return delineate::load(values);
    }
    template <typename T>
    DELINEATE_INLINE void store(T* values, Vector<T> lanes) const {
        delineate::store(values, lanes);
    }
};
struct Part {
    int64_t count;
    template <typename T>
    DELINEATE_INLINE Vector<T> load(const T* values) const {
        return delineate::load(values, count);
    }
    template <typename T>
    DELINEATE_INLINE void store(T* values, Vector<T> lanes) const {
        delineate::store(values, lanes, count);
    }
};

// Calls f(channel, K, access) for the channels from..to-1 in runs of K vectors.
template <typename F>
DELINEATE_INLINE inline void over_channels(int64_t from, int64_t to, const F& f) {
    int64_t c = from;
    for (; c + kRun <= to; c += kRun) f(c, std::integral_constant<int, kRun / kLanes>{}, Whole{});
    for (; c + kLanes <= to; c += kLanes) f(c, std::integral_constant<int, 1>{}, Whole{});
    if (c < to) f(c, std::integral_constant<int, 1>{}, Part{to - c});
}

// Calls f(bin y, bin x, index of the bin).
template <typename A, typename F>
DELINEATE_INLINE inline void over_bins(const Region<A>& region, const F& f) {
    const int64_t height = region.y.size(), width = region.x.size();
    for (int64_t p = 0; p < height; p++)
        for (int64_t q = 0; q < width; q++) f(p, q, p * width + q);
}

// Calls f(offset of the cell, weight) for what makes up a bin's mean.
template <typename A, typename T, typename F>
DELINEATE_INLINE inline void over_taps(const Region<A>& region, const Plane<T>& plane, int64_t p, int64_t q, const F& f) {
    const Tap<A>*rows = region.y.taps.data(), *columns = region.x.taps.data();
    for (int32_t i = region.y.first[p]; i < region.y.first[p + 1]; i++) {
        const int64_t row = rows[i].cell * plane.row;
        for (int32_t j = region.x.first[q]; j < region.x.first[q + 1]; j++)
            f(row + columns[j].cell * plane.column, rows[i].weight * columns[j].weight);
    }
}

template <typename T>
DELINEATE_INLINE inline void mean_forward_of(const Region<Real<T>>& region, Plane<const T> plane, int64_t channels, T* result) {
    over_bins(region, [&](int64_t p, int64_t q, int64_t bin) DELINEATE_INLINE {
        over_channels(0, channels, [&](int64_t c, auto runs, auto access) DELINEATE_INLINE {
            constexpr int K = decltype(runs)::value;
            Vector<T> sum[K] = {};
            over_taps(region, plane, p, q, [&](int64_t offset, Real<T> weight) DELINEATE_INLINE {
                const T* cell = plane.data + offset + c;
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) sum[k] += weight * access.load(cell + k * kLanes);
            });
#pragma GCC unroll 8
            for (int k = 0; k < K; k++) access.store(result + bin * channels + c + k * kLanes, sum[k]);
        });
    });
}

template <typename T>
DELINEATE_INLINE inline void mean_backward_of(const Region<Real<T>>& region, const T* gradient, int64_t channels, int64_t from,
                                              int64_t to, Plane<Real<T>> total) {
    over_bins(region, [&](int64_t p, int64_t q, int64_t bin) DELINEATE_INLINE {
        over_channels(from, to, [&](int64_t c, auto runs, auto access) DELINEATE_INLINE {
            constexpr int K = decltype(runs)::value;
            Vector<T> g[K];
#pragma GCC unroll 8
            for (int k = 0; k < K; k++) g[k] = access.load(gradient + bin * channels + c + k * kLanes);
            over_taps(region, total, p, q, [&](int64_t offset, Real<T> weight) DELINEATE_INLINE {
                Real<T>* cell = total.data + offset + (c - from);
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) access.store(cell + k * kLanes, access.load(cell + k * kLanes) + weight * g[k]);
            });
        });
    });
}

// The largest sample of a bin, and which it is: sample i of the rows and j of the columns is i * kColumns + j.
template <typename T>
struct Peak {
    using Index = std::conditional_t<std::is_same_v<T, double>, Longs, Ints>;
    Vector<T> value;
    Index sample;
};

template <typename T, typename Access>
DELINEATE_INLINE inline Peak<T> peak_of(const Region<Real<T>>& region, Plane<const T> plane, int64_t p, int64_t q, int64_t c,
                                        const Access& access) {
    using Index = typename Peak<T>::Index;
    const Sample<Real<T>>*rows = region.y.samples.data(), *columns = region.x.samples.data();
    const int32_t first_row = region.y.first[p], end_row = region.y.first[p + 1];
    const int32_t first_column = region.x.first[q], end_column = region.x.first[q + 1];
    const bool outside = region.y.outside[p] || region.x.outside[q];
    Peak<T> peak{Vector<T>{}, Index{} - 1};  // a point outside the map is 0, and takes no gradient
    bool started = outside;
    for (int32_t i = first_row; i < end_row; i++) {
        for (int32_t j = first_column; j < end_column; j++) {
            const auto at = [&](int64_t row, int64_t column) DELINEATE_INLINE {
                return access.load(plane.data + row * plane.row + column * plane.column + c);
            };
            const auto &y = rows[i], &x = columns[j];
            Vector<T> value = at(y.low, x.low);
            if (x.high_weight != 0) value = value * x.low_weight + at(y.low, x.high) * x.high_weight;
            if (y.high_weight != 0) {
                Vector<T> below = at(y.high, x.low);
                if (x.high_weight != 0) below = below * x.low_weight + at(y.high, x.high) * x.high_weight;
                value = value * y.low_weight + below * y.high_weight;
            }
            const Index better = started ? (value > peak.value) | (value != value) : Index{} - 1;  // NaN stays
            peak.value = better ? value : peak.value;
            peak.sample = better ? Index{} + ((i - first_row) * (end_column - first_column) + (j - first_column)) : peak.sample;
            started = true;
        }
    }
    return peak;
}

template <typename T>
DELINEATE_INLINE inline void max_forward_of(const Region<Real<T>>& region, Plane<const T> plane, int64_t channels, T* result) {
    over_bins(region, [&](int64_t p, int64_t q, int64_t bin) DELINEATE_INLINE {
        over_channels(0, channels, [&](int64_t start, auto runs, auto access) DELINEATE_INLINE {
            for (int k = 0; k < decltype(runs)::value; k++) {
                const int64_t c = start + k * kLanes;
                access.store(result + bin * channels + c, peak_of(region, plane, p, q, c, access).value);
            }
        });
    });
}

// Adds each channel's gradient to the cells around its largest sample.
template <typename T>
DELINEATE_INLINE inline void scatter_peak(const Region<Real<T>>& region, const Peak<T>& peak, int64_t p, int64_t q,
                                          int64_t count, const T* gradient, Plane<Real<T>> total) {
    const int32_t columns = region.x.first[q + 1] - region.x.first[q];
    const Vector<T> g = load(gradient, count);
    for (int64_t lane = 0; lane < count; lane++) {
        if (peak.sample[lane] < 0) continue;
        const auto& y = region.y.samples[region.y.first[p] + peak.sample[lane] / columns];
        const auto& x = region.x.samples[region.x.first[q] + peak.sample[lane] % columns];
        Real<T>*low = total.data + y.low * total.row + lane, *high = total.data + y.high * total.row + lane;
        low[x.low * total.column] += g[lane] * y.low_weight * x.low_weight;
        low[x.high * total.column] += g[lane] * y.low_weight * x.high_weight;
        high[x.low * total.column] += g[lane] * y.high_weight * x.low_weight;
        high[x.high * total.column] += g[lane] * y.high_weight * x.high_weight;
    }
}

template <typename T>
DELINEATE_INLINE inline void max_backward_of(const Region<Real<T>>& region, Plane<const T> plane, const T* gradient,
                                             int64_t channels, int64_t from, int64_t to, Plane<Real<T>> total) {
    over_bins(region, [&](int64_t p, int64_t q, int64_t bin) DELINEATE_INLINE {
        for (int64_t c = from; c < to; c += kLanes) {
            const int64_t count = std::min<int64_t>(kLanes, to - c);
            const Peak<T> peak = peak_of(region, plane, p, q, c, Part{count});
            scatter_peak<T>(region, peak, p, q, count, gradient + bin * channels + c,
                            {total.data + (c - from), total.row, total.column, 1});
        }
    });
}

template <typename T>
DELINEATE_INLINE inline void round_to_of(const float* sums, int64_t count, T* result) {
    over_channels(0, count, [&](int64_t c, auto runs, auto access) DELINEATE_INLINE {
        for (int k = 0; k < decltype(runs)::value; k++)
            access.store(result + c + k * kLanes, access.load(sums + c + k * kLanes));
    });
}

}  // namespace

#define DEFINE(T)                                                                                                              \
    DELINEATE_SIMD void mean_forward(const Region<Real<T>>& region, Plane<const T> plane, int64_t channels, T* result) {       \
        mean_forward_of(region, plane, channels, result);                                                                      \
    }                                                                                                                          \
    DELINEATE_SIMD void max_forward(const Region<Real<T>>& region, Plane<const T> plane, int64_t channels, T* result) {        \
        max_forward_of(region, plane, channels, result);                                                                       \
    }                                                                                                                          \
    DELINEATE_SIMD void mean_backward(const Region<Real<T>>& region, const T* gradient, int64_t channels, int64_t from,        \
                                      int64_t to, Plane<Real<T>> total) {                                                      \
        mean_backward_of(region, gradient, channels, from, to, total);                                                         \
    }                                                                                                                          \
    DELINEATE_SIMD void max_backward(const Region<Real<T>>& region, Plane<const T> plane, const T* gradient, int64_t channels, \
                                     int64_t from, int64_t to, Plane<Real<T>> total) {                                         \
        max_backward_of(region, plane, gradient, channels, from, to, total);                                                   \
    }

DEFINE(float)
DEFINE(double)
DEFINE(BFloat16)
DEFINE(Half)

DELINEATE_SIMD void round_to(const float* sums, int64_t count, BFloat16* result) { round_to_of(sums, count, result); }
DELINEATE_SIMD void round_to(const float* sums, int64_t count, Half* result) { round_to_of(sums, count, result); }

}  // namespace delineate
