// The peaks of heatmaps that are resized to their boxes, without the resized heatmaps.
#include "common.hpp"

#include <cmath>
#include <limits>

namespace delineate {
namespace {

constexpr int kLanes = 16;
constexpr double kMostPixels = 1 << 30;

// For each of `size` pixels along an axis of `count` cells the four cells that it is interpolated from, and their weights: Keys'
// cubic convolution (1981) with A = -0.75, pixel centres on cell centres, cells beyond the edge repeated; PyTorch's "bicubic".
struct Taps {
    std::vector<int32_t> cell[4];
    std::vector<float> weight[4];

    Taps(int64_t size, int64_t count) {
        constexpr float a = -0.75f;
        const float scale = static_cast<float>(count) / static_cast<float>(size);
        const auto near = [](float d) { return ((a + 2) * d - (a + 3)) * d * d + 1; };          // |d| <= 1
        const auto far = [](float d) { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a; };  // 1 < |d| < 2
        for (int64_t pixel = 0; pixel < size; pixel++) {
            const float place = scale * (static_cast<float>(pixel) + 0.5f) - 0.5f, below = std::floor(place), t = place - below;
            const float weights[4] = {far(t + 1), near(t), near(1 - t), far(2 - t)};
            for (int k = 0; k < 4; k++) {
                cell[k].push_back(static_cast<int32_t>(std::clamp<int64_t>(static_cast<int64_t>(below) + k - 1, 0, count - 1)));
                weight[k].push_back(weights[k]);
            }
        }
    }
};

// out[x] = a row of the heatmap, interpolated at each pixel.
DELINEATE_SIMD void stretch(const float* row, const Taps& taps, int64_t size, float* out) {
    const int32_t *c0 = taps.cell[0].data(), *c1 = taps.cell[1].data(), *c2 = taps.cell[2].data(), *c3 = taps.cell[3].data();
    const float *w0 = taps.weight[0].data(), *w1 = taps.weight[1].data(), *w2 = taps.weight[2].data(), *w3 = taps.weight[3].data();
    for (int64_t x = 0; x < size; x++)
        out[x] = row[c0[x]] * w0[x] + row[c1[x]] * w1[x] + row[c2[x]] * w2[x] + row[c3[x]] * w3[x];
}

// out[x] = four stretched rows, interpolated; returns the largest of them. out has room for whole lanes, beyond `size` too.
DELINEATE_SIMD float blend(const float* const* rows, const float* weights, int64_t size, float* out) {
    const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
    const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
    for (int64_t x = 0; x < size; x++) out[x] = r0[x] * w0 + r1[x] * w1 + r2[x] * w2 + r3[x] * w3;
    float largest[kLanes];
    std::fill_n(largest, kLanes, -std::numeric_limits<float>::infinity());
    for (int64_t x = 0; x < size; x += kLanes)
        for (int lane = 0; lane < kLanes; lane++) largest[lane] = out[x + lane] > largest[lane] ? out[x + lane] : largest[lane];
    return *std::max_element(largest, largest + kLanes);
}

struct Peak {
    float x, y, value;
};

// The first largest pixel of one heatmap (rows, columns), resized by the taps of both axes.
Peak peak_of(const float* heatmap, int64_t rows, int64_t columns, const Taps& across, const Taps& down) {
    const int64_t width = across.cell[0].size(), height = down.cell[0].size(), room = (width + kLanes - 1) / kLanes * kLanes;
    std::vector<float> stretched(rows * width), line(room, -std::numeric_limits<float>::infinity());
    for (int64_t s = 0; s < rows; s++) stretch(heatmap + s * columns, across, width, stretched.data() + s * width);
    Peak peak{0, 0, -std::numeric_limits<float>::infinity()};
    for (int64_t y = 0; y < height; y++) {
        const float* near[4];
        float weights[4];
        for (int k = 0; k < 4; k++) near[k] = stretched.data() + down.cell[k][y] * width, weights[k] = down.weight[k][y];
        const float largest = blend(near, weights, width, line.data());
        if (!(largest > peak.value)) continue;
        const auto x = std::find(line.begin(), line.begin() + width, largest) - line.begin();
        peak = {static_cast<float>(x), static_cast<float>(y), largest};
    }
    return peak;
}

// points (N, K, 2) and values (N, K) of the largest pixels of heatmaps (N, K, S, T) over boxes (N, 4); NaN for a box that is not
// finite. Raises ValueError for a box of more than 2^30 pixels.
void bicubic_peaks(const Input& heatmaps, const Input& boxes, const Output& points, const Output& values, int threads) {
    require(heatmaps.ndim() == 4 && heatmaps.shape(2) > 0 && heatmaps.shape(3) > 0, "heatmaps must be (N, K, S, T)");
    const int64_t count = heatmaps.shape(0), kinds = heatmaps.shape(1), rows = heatmaps.shape(2), columns = heatmaps.shape(3);
    require(int64_t(boxes.size()) == count * 4 && int64_t(points.size()) == count * kinds * 2, "boxes must be (N, 4), points (N, K, 2)");
    require(int64_t(values.size()) == count * kinds, "values must be (N, K)");
    const float *heat = elements<float>(heatmaps, "heatmaps"), *box = elements<float>(boxes, "boxes");
    float *point = elements<float>(points, "points"), *value = elements<float>(values, "values");
    const auto side = [&](int64_t n, int axis) { return std::max(box[4 * n + 2 + axis] - box[4 * n + axis], 1.0f); };
    const auto finite = [&](int64_t n) { return std::all_of(box + 4 * n, box + 4 * n + 4, [](float c) { return std::isfinite(c); }); };
    for (int64_t n = 0; n < count; n++)
        require(!finite(n) || double(side(n, 0)) * side(n, 1) <= kMostPixels,
                "boxes[" + std::to_string(n) + "] has more than 2^30 pixels; clip boxes to the picture");

    nb::gil_scoped_release release;
    parallel_for(count, 1, threads, [&](int64_t n, int64_t) {
        float *xy = point + n * kinds * 2, *best = value + n * kinds;
        if (!finite(n)) {
            std::fill_n(xy, kinds * 2, std::numeric_limits<float>::quiet_NaN());
            std::fill_n(best, kinds, std::numeric_limits<float>::quiet_NaN());
            return;
        }
        const float width = side(n, 0), height = side(n, 1);
        const Taps across(static_cast<int64_t>(std::ceil(width)), columns), down(static_cast<int64_t>(std::ceil(height)), rows);
        for (int64_t k = 0; k < kinds; k++) {
            const Peak peak = peak_of(heat + (n * kinds + k) * rows * columns, rows, columns, across, down);
            xy[2 * k] = (peak.x + 0.5f) * (width / std::ceil(width)) + box[4 * n];
            xy[2 * k + 1] = (peak.y + 0.5f) * (height / std::ceil(height)) + box[4 * n + 1];
            best[k] = peak.value;
        }
    });
}

}  // namespace

void bind_keypoints(nb::module_& module) {
    module.def("bicubic_peaks", &bicubic_peaks, nb::arg("heatmaps"), nb::arg("boxes"), nb::arg("points"), nb::arg("values"),
               nb::arg("threads"));
}

}  // namespace delineate
