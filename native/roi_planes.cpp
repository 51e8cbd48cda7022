// Regions of maps that hold one plane after the other. Vectors run along the rows of a plane: first the rows of each bin are
// averaged, over all columns that the region reads, then the columns of each bin.
#include "roi_kernels.hpp"

namespace delineate {
namespace {

// The columns that a region reads, a vector wide at least: columns from the map's width on are not there.
struct Span {
    int64_t start, width;

    Span(int32_t lowest, int32_t highest, int64_t map_width)
        : start(std::max<int64_t>(0, std::min<int64_t>(lowest, map_width - std::max(kLanes, highest - lowest + 1)))),
          width(std::max<int64_t>(kLanes, highest - start + 1)) {}
};

// Exchanges rows and columns of a block: lane j of vector i becomes lane i of vector j. Squares beside the diagonal change
// places, each `kStep` lanes wide, first large ones, then small ones inside of them.
template <int kStep, typename V, int... kLane>
DELINEATE_INLINE inline void exchange_squares(V (&block)[kLanes], std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; i++) {
        if (i & kStep) continue;
        const V a = block[i], b = block[i + kStep];
        block[i] = __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
        block[i + kStep] = __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
    }
}
template <typename V>
DELINEATE_INLINE inline void transpose(V (&block)[kLanes]) {
    constexpr std::make_integer_sequence<int, kLanes> lanes;
    exchange_squares<4>(block, lanes);
    exchange_squares<2>(block, lanes);
    exchange_squares<1>(block, lanes);
}

// The averaged rows of kLanes planes, as (bins y, columns, planes): planes come last, so that vectors run along them from here
// on.
template <typename T, bool kWide>
DELINEATE_INLINE inline void average_rows(const Axis<Real<T>>& y, const T* const (&corners)[kLanes], int64_t row, Span span,
                                          int64_t map_width, Real<T>* rows) {
    for (int64_t p = 0; p < y.size(); p++) {
        for (int64_t next = 0; next < span.width; next += kLanes) {
            const int64_t column = std::min(next, span.width - kLanes);  // the last vector overlaps the one before
            Vector<T> block[kLanes] = {};
            for (int32_t i = y.first[p]; i < y.first[p + 1]; i++) {
                const int64_t offset = y.taps[i].cell * row + span.start + column;
                const Real<T> weight = y.taps[i].weight;
#pragma GCC unroll 8
                for (int c = 0; c < kLanes; c++)
                    block[c] += weight * (kWide ? load(corners[c] + offset)
                                                : load(corners[c] + offset, map_width - span.start - column));
            }
            transpose(block);
            Real<T>* place = rows + (p * span.width + column) * kLanes;
#pragma GCC unroll 8
            for (int c = 0; c < kLanes; c++) store(place + c * kLanes, block[c]);
        }
    }
}

// Averages the columns of each bin: (bins, planes) of (bins y, columns, planes).
template <typename A>
DELINEATE_INLINE inline void average_columns(const Region<A>& region, Span span, const A* rows, A* means) {
    const Axis<A>& x = region.x;
    for (int64_t p = 0; p < region.y.size(); p++) {
        for (int64_t q = 0; q < x.size(); q++, means += kLanes) {
            Vector<A> sum = {};
            for (int32_t j = x.first[q]; j < x.first[q + 1]; j++)
                sum += x.taps[j].weight * load(rows + (p * span.width + x.taps[j].cell - span.start) * kLanes);
            store(means, sum);
        }
    }
}

template <typename T>
DELINEATE_INLINE inline void mean_forward_of(const Region<Real<T>>& region, Plane<const T> plane, int64_t map_width,
                                             int64_t from, int64_t to, T* result) {
    using A = Real<T>;
    const int64_t bins = region.y.size() * region.x.size(), blocks = (bins + kLanes - 1) / kLanes;
    const Span span(region.x.lowest, region.x.highest, map_width);
    std::vector<A> rows(region.y.size() * span.width * kLanes), means(blocks * kLanes * kLanes);
    for (int64_t c = from; c < to; c += kLanes) {
        const int64_t planes = std::min<int64_t>(kLanes, to - c);
        const T* corners[kLanes];  // where there are fewer planes, the last one again
        for (int64_t i = 0; i < kLanes; i++) corners[i] = plane.data + (c + std::min(i, planes - 1)) * plane.channel;
        if (span.start + span.width <= map_width)
            average_rows<T, true>(region.y, corners, plane.row, span, map_width, rows.data());
        else
            average_rows<T, false>(region.y, corners, plane.row, span, map_width, rows.data());
        average_columns(region, span, rows.data(), means.data());
        for (int64_t b = 0; b < blocks; b++) {
            Vector<T> block[kLanes];
#pragma GCC unroll 8
            for (int i = 0; i < kLanes; i++) block[i] = load(means.data() + (b * kLanes + i) * kLanes);
            transpose(block);
            A turned[kLanes][kLanes];
#pragma GCC unroll 8
            for (int i = 0; i < kLanes; i++) store(turned[i], block[i]);
            for (int64_t i = 0; i < planes; i++) {
                T* place = result + (c + i) * bins + b * kLanes;
                if (b + 1 < blocks || bins % kLanes == 0)
                    store(place, load(turned[i]));
                else
                    store(place, load(turned[i]), bins - b * kLanes);
            }
        }
    }
}

template <typename T>
DELINEATE_INLINE inline void widen_all(const T* values, int64_t count, Real<T>* result) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(result + i, load(values + i));
    if (i < count) store(result + i, load(values + i, count - i), count - i);
}

template <typename T>
DELINEATE_INLINE inline void mean_backward_of(const Region<Real<T>>& region, const T* gradient, int64_t map_width, int64_t from,
                                              int64_t to, Plane<Real<T>> total) {
    using A = Real<T>;
    const Axis<A>&y = region.y, &x = region.x;
    const int64_t height = y.size(), width = x.size();
    const Span span(x.lowest, x.highest, map_width);
    const int64_t columns = std::min(span.width, map_width - span.start);
    std::vector<A> row(span.width), bins(height * width);
    for (int64_t c = from; c < to; c++) {
        widen_all(gradient + c * height * width, height * width, bins.data());
        for (int64_t p = 0; p < height; p++) {
            if (y.first[p] == y.first[p + 1]) continue;
            std::fill(row.begin(), row.end(), A(0));
            for (int64_t q = 0; q < width; q++) {
                const A g = bins[p * width + q];
                for (int32_t j = x.first[q]; j < x.first[q + 1]; j++) row[x.taps[j].cell - span.start] += x.taps[j].weight * g;
            }
            for (int32_t i = y.first[p]; i < y.first[p + 1]; i++) {
                A* cells = total.data + (c - from) * total.channel + y.taps[i].cell * total.row + span.start;
                const A weight = y.taps[i].weight;
                for (int64_t column = 0; column < columns; column++) cells[column] += weight * row[column];
            }
        }
    }
}

}  // namespace

#define DEFINE(T)                                                                                                             \
    DELINEATE_SIMD void mean_forward_planes(const Region<Real<T>>& region, Plane<const T> plane, int64_t width, int64_t from, \
                                            int64_t to, T* result) {                                                          \
        mean_forward_of(region, plane, width, from, to, result);                                                              \
    }                                                                                                                         \
    DELINEATE_SIMD void mean_backward_planes(const Region<Real<T>>& region, const T* gradient, int64_t width, int64_t from,   \
                                             int64_t to, Plane<Real<T>> total) {                                              \
        mean_backward_of(region, gradient, width, from, to, total);                                                           \
    }

DEFINE(float)
DEFINE(double)
DEFINE(BFloat16)
DEFINE(Half)

}  // namespace delineate
