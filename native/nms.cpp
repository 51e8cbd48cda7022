// Non-maximum suppression of boxes that are in falling order of score.
#include "common.hpp"

#include <limits>
#include <numeric>

namespace delineate {
namespace {

constexpr int64_t kRows = 512;            // boxes that are settled before what they suppress is looked for, by all threads
constexpr int64_t kColumns = 1024;        // boxes that a thread takes at a time; their coordinates fit the first-level cache
constexpr int64_t kStride = 64;           // boxes that are first tested without a division
constexpr int64_t kThreadedPairs = 1 << 22;  // pairs of boxes that are worth starting threads: about a millisecond

template <typename T>
using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // as wide as T, so that one vector holds as many

// Boxes as arrays of coordinates.
template <typename T>
struct Boxes {
    std::vector<T> x0, y0, x1, y1, area;
    std::vector<Flag<T>> gone;

    explicit Boxes(size_t count) : x0(count), y0(count), x1(count), y1(count), area(count), gone(count, 0) {}
    void set(size_t i, const T* box) {
        x0[i] = box[0], y0[i] = box[1], x1[i] = box[2], y1[i] = box[3];
        area[i] = (box[2] - box[0]) * (box[3] - box[1]);
    }
};

// The intersection of one box with a box of index j, and their union. The comparisons are those of std::min and std::max, so that
// NaN goes the way it goes in torchvision.
template <typename T>
struct Row {
    T x0, y0, x1, y1, area;

    Row(const Boxes<T>& b, int64_t i) : x0(b.x0[i]), y0(b.y0[i]), x1(b.x1[i]), y1(b.y1[i]), area(b.area[i]) {}
    DELINEATE_INLINE inline T intersection(const T* bx0, const T* by0, const T* bx1, const T* by1, int64_t j) const {
        const T left = x0 < bx0[j] ? bx0[j] : x0, top = y0 < by0[j] ? by0[j] : y0;
        const T right = bx1[j] < x1 ? bx1[j] : x1, bottom = by1[j] < y1 ? by1[j] : y1;
        const T width = T(0) < right - left ? right - left : T(0), height = T(0) < bottom - top ? bottom - top : T(0);
        return width * height;
    }
};

// Marks the boxes first..last-1 whose IoU with box `row` is above the threshold. Few are, so that the division is left out where
// intersection <= guard * union for all boxes of a stride, `guard` being a little below the threshold.
template <typename T>
DELINEATE_INLINE inline void sweep(Boxes<T>& boxes, int64_t row, int64_t first, int64_t last, T threshold, T guard) {
    const Row<T> r(boxes, row);
    const T *x0 = boxes.x0.data(), *y0 = boxes.y0.data(), *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *area = boxes.area.data();
    Flag<T>* gone = boxes.gone.data();
    const T tiny = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();  // below, products lose digits
    for (int64_t start = first; start < last; start += kStride) {
        const int64_t end = std::min(last, start + kStride);
        Flag<T> any = 0;
        for (int64_t j = start; j < end; j++) {
            const T shared = r.intersection(x0, y0, x1, y1, j), both = r.area + area[j] - shared;
            any |= Flag<T>(shared > guard * both) | Flag<T>(both < tiny);
        }
        if (!any) continue;
        for (int64_t j = start; j < end; j++) {
            const T shared = r.intersection(x0, y0, x1, y1, j);
            gone[j] |= Flag<T>(shared / (r.area + area[j] - shared) > threshold);
        }
    }
}

// Marks what the boxes `rows` suppress among first..last-1.
DELINEATE_SIMD void sweep_all(Boxes<float>& b, const int64_t* rows, int64_t count, int64_t first, int64_t last, float t, float guard) {
    for (int64_t i = 0; i < count; i++) sweep(b, rows[i], std::max(first, rows[i] + 1), last, t, guard);
}
DELINEATE_SIMD void sweep_all(Boxes<double>& b, const int64_t* rows, int64_t count, int64_t first, int64_t last, double t, double guard) {
    for (int64_t i = 0; i < count; i++) sweep(b, rows[i], std::max(first, rows[i] + 1), last, t, guard);
}

// Leaves in boxes.gone which boxes an earlier box that stays suppresses.
template <typename T>
void suppress_group(Boxes<T>& boxes, T threshold, int threads) {
    const int64_t count = boxes.area.size();
    const T guard = threshold > T(1e-6) ? threshold * T(1 - 1e-5) : -std::numeric_limits<T>::max();
    std::vector<int64_t> stay;
    for (int64_t start = 0; start < count; start += kRows) {
        const int64_t end = std::min(count, start + kRows);
        stay.clear();
        for (int64_t i = start; i < end; i++) {
            if (boxes.gone[i]) continue;
            sweep_all(boxes, &i, 1, i + 1, end, threshold, guard);
            stay.push_back(i);
        }
        const bool threaded = static_cast<int64_t>(stay.size()) * (count - end) > kThreadedPairs;
        parallel_for(count - end, kColumns, threaded ? threads : 1, [&](int64_t first, int64_t last) {
            sweep_all(boxes, stay.data(), stay.size(), end + first, end + last, threshold, guard);
        });
    }
}

// Settles the boxes (count, 4) of one picture, class by class.
template <typename T>
void suppress_picture(const T* boxes, const int64_t* classes, int64_t count, bool* kept, T threshold, int threads) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return classes[a] < classes[b]; });
    std::vector<int64_t> bounds{0};
    for (int64_t i = 1; i < count; i++)
        if (classes[order[i]] != classes[order[i - 1]]) bounds.push_back(i);
    if (count > 0) bounds.push_back(count);
    const auto settle = [&](int64_t group, int inner) {
        const int64_t first = bounds[group], size = bounds[group + 1] - first;
        Boxes<T> members(size);
        for (int64_t i = 0; i < size; i++) members.set(i, boxes + 4 * order[first + i]);
        suppress_group(members, threshold, inner);
        for (int64_t i = 0; i < size; i++) kept[order[first + i]] = !members.gone[i];
    };
    const int64_t groups = bounds.size() - 1;
    if (groups < threads) {
        for (int64_t group = 0; group < groups; group++) settle(group, threads);
    } else {
        parallel_for(groups, 1, count > kRows ? threads : 1, [&](int64_t group, int64_t) { settle(group, 1); });
    }
}

template <typename T>
void suppress_typed(const Input& boxes, const Input& classes, const Output& kept, double threshold, int threads) {
    const int64_t pictures = boxes.shape(0), count = boxes.shape(1);
    const T* box = elements<T>(boxes, "boxes");
    const int64_t* of_class = elements<int64_t>(classes, "classes");
    bool* stays = elements<bool>(kept, "kept");
    nb::gil_scoped_release release;
    for (int64_t b = 0; b < pictures; b++)
        suppress_picture(box + b * count * 4, of_class + b * count, count, stays + b * count, static_cast<T>(threshold), threads);
}

// kept (B, N): which of boxes (B, N, 4), in falling order of score, no box of the same class (B, N) that stays suppresses.
void suppress(const Input& boxes, const Input& classes, const Output& kept, double threshold, int threads) {
    require(boxes.ndim() == 3 && boxes.shape(2) == 4, "boxes must be (B, N, 4)");
    for (const size_t axis : {0, 1}) {
        require(classes.ndim() == 2 && classes.shape(axis) == boxes.shape(axis), "classes must be (B, N)");
        require(kept.ndim() == 2 && kept.shape(axis) == boxes.shape(axis), "kept must be (B, N)");
    }
    if (boxes.dtype() == nb::dtype<double>()) {
        suppress_typed<double>(boxes, classes, kept, threshold, threads);
    } else {
        suppress_typed<float>(boxes, classes, kept, threshold, threads);
    }
}

}  // namespace

void bind_nms(nb::module_& module) {
    module.def("suppress", &suppress, nb::arg("boxes"), nb::arg("classes"), nb::arg("kept"), nb::arg("threshold"), nb::arg("threads"));
}

}  // namespace delineate
