// Regions of maps that hold one plane after the other. Vectors run along the rows of a plane: first the rows of each bin are
// averaged, over all columns that the region reads, then the columns of each bin.
#include "roi_kernels.hpp"

namespace delineate {
namespace {

// The columns that a region reads, widened to whole vectors where the map is wide enough.
struct Span {
    int64_t start, width;  // width is a multiple of kLanes; columns from the map's width on are not read

    Span(int32_t lowest, int32_t highest, int64_t map_width) {
        width = (highest - lowest + kLanes) / kLanes * kLanes;
        start = std::max<int64_t>(0, std::min<int64_t>(lowest, map_width - width));
    }
};

// All bins with equally many terms, so that the inner loops are of one length, which processors foresee: term k of bin b is
// weight[k * bins + b] * cell[k * bins + b]. Terms that a bin does not need have weight 0, and a cell that it reads anyway.
template <typename A>
struct Table {
    int64_t terms = 0, bins;
    std::vector<int32_t> cell;
    std::vector<A> weight;

    // The bins of `axis`, each `copies` times; bin b's cells of copy i are moved by i * stride.
    Table(const Axis<A>& axis, int64_t origin, int64_t copies, int64_t stride, int64_t multiple) {
        bins = (copies * axis.size() + multiple - 1) / multiple * multiple;
        for (int64_t b = 0; b < axis.size(); b++) terms = std::max<int64_t>(terms, axis.first[b + 1] - axis.first[b]);
        cell.assign(terms * bins, 0);
        weight.assign(terms * bins, 0);
        for (int64_t i = 0; i < copies; i++)
            for (int64_t b = 0; b < axis.size(); b++)
                for (int64_t k = 0; k < terms && axis.first[b] < axis.first[b + 1]; k++) {
                    const bool needed = axis.first[b] + k < axis.first[b + 1];
                    const Tap<A>& tap = axis.taps[axis.first[b] + (needed ? k : 0)];
                    cell[k * bins + i * axis.size() + b] = static_cast<int32_t>(tap.cell - origin + i * stride);
                    weight[k * bins + i * axis.size() + b] = needed ? tap.weight : 0;
                }
    }
};

template <typename T>
DELINEATE_INLINE inline Vector<T> load_columns(const T* row, int64_t column, int64_t width) {
    return column + kLanes <= width ? load(row + column) : load(row + column, std::max<int64_t>(width - column, 0));
}

template <typename T>
DELINEATE_INLINE inline void mean_forward_of(const Region<Real<T>>& region, Plane<const T> plane, int64_t map_width, int64_t from,
                                             int64_t to, T* result) {
    using A = Real<T>;
    const Axis<A>& y = region.y;
    const int64_t height = y.size(), bins = height * region.x.size();
    const Span span(region.x.lowest, region.x.highest, map_width);
    const Table<A> lines(y, 0, 1, 0, 1), table(region.x, span.start, height, span.width, kLanes);
    std::vector<A> rows(height * span.width + 1);
    for (int64_t c = from; c < to; c++) {
        const T* corner = plane.data + c * plane.channel;
        for (int64_t p = 0; p < height; p++) {
            const bool empty = y.first[p] == y.first[p + 1];
            for (int64_t column = 0; column < span.width; column += kLanes) {
                Vector<T> sum = {};
                for (int64_t k = 0; k < lines.terms && !empty; k++)
                    sum += lines.weight[k * height + p] *
                           load_columns(corner + lines.cell[k * height + p] * plane.row, span.start + column, map_width);
                store(rows.data() + p * span.width + column, sum);
            }
        }
        for (int64_t b = 0; b < table.bins; b += kLanes) {
            A sum[kLanes] = {};
            for (int64_t k = 0; k < table.terms; k++)
                for (int lane = 0; lane < kLanes; lane++)
                    sum[lane] += table.weight[k * table.bins + b + lane] * rows[table.cell[k * table.bins + b + lane]];
            const int64_t count = std::min<int64_t>(kLanes, bins - b);
            if (count == kLanes) store(result + c * bins + b, load(sum));
            else store(result + c * bins + b, load(sum), count);
        }
    }
}

template <typename T>
DELINEATE_INLINE inline void mean_backward_of(const Region<Real<T>>& region, const T* gradient, int64_t map_width, int64_t from,
                                              int64_t to, Plane<Real<T>> total) {
    using A = Real<T>;
    const Axis<A>&y = region.y, &x = region.x;
    const int64_t height = y.size(), width = x.size();
    const Span span(x.lowest, x.highest, map_width);
    const int64_t columns = std::min(span.width, map_width - span.start);
    std::vector<A> row(span.width), bins((height * width + kLanes - 1) / kLanes * kLanes);
    for (int64_t c = from; c < to; c++) {
        for (int64_t b = 0; b < height * width; b += kLanes)
            store(bins.data() + b, load_columns(gradient + c * height * width, b, height * width));
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

#define DEFINE(T)                                                                                                               \
    DELINEATE_SIMD void mean_forward_planes(const Region<Real<T>>& region, Plane<const T> plane, int64_t width, int64_t from,   \
                                            int64_t to, T* result) {                                                            \
        mean_forward_of(region, plane, width, from, to, result);                                                                \
    }                                                                                                                           \
    DELINEATE_SIMD void mean_backward_planes(const Region<Real<T>>& region, const T* gradient, int64_t width, int64_t from,     \
                                             int64_t to, Plane<Real<T>> total) {                                                \
        mean_backward_of(region, gradient, width, from, to, total);                                                             \
    }

DEFINE(float)
DEFINE(double)
DEFINE(BFloat16)
DEFINE(Half)

}  // namespace delineate
