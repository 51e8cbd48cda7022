// Pasting small masks into masks of a picture.
#include "paste.hpp"

namespace delineate {
namespace {

// out[x] = the mask's padded row, interpolated at each column.
DELINEATE_SIMD void stretch(const float* row, const int32_t* cell, const float* fraction, int64_t count, float* out) {
    for (int64_t x = 0; x < count; x++) out[x] = interpolate(row[cell[x]], row[cell[x] + 1], fraction[x]);
}

DELINEATE_SIMD void threshold_between(const float* low, const float* high, float fraction, float threshold, int64_t count, bool* out) {
    for (int64_t x = 0; x < count; x++) out[x] = interpolate(low[x], high[x], fraction) >= threshold;
}

void paste_one(const Placement& place, int64_t mask, int64_t height, int64_t width, float threshold, bool* out) {
    const Axis across(place, mask, 0, width), down(place, mask, 1, height);
    const int64_t count = across.size();
    if (count == 0 || down.size() == 0) return;
    std::vector<float> row(place.columns + 2, 0.0f), stretched((place.rows + 2) * count, 0.0f);
    for (int64_t s = 0; s < place.rows; s++) {
        std::copy_n(place.masks + (mask * place.rows + s) * place.columns, place.columns, row.begin() + 1);
        stretch(row.data(), across.cell.data(), across.fraction.data(), count, stretched.data() + (s + 1) * count);
    }
    for (int64_t i = 0; i < down.size(); i++) {
        const float* low = stretched.data() + down.cell[i] * count;
        threshold_between(low, low + count, down.fraction[i], threshold, count, out + (down.first + i) * width + across.first);
    }
}

// Sets in pasted (N, height, width), which is false, the pixels of the masks.
void paste(const Input& masks, const Input& origin, const Input& extent, const Input& first, const Input& last,
           std::pair<int64_t, int64_t> cells, double shift, double threshold, const Output& pasted, int threads) {
    const Placement place(masks, origin, extent, first, last, cells, shift);
    require(pasted.ndim() == 3 && int64_t(pasted.shape(0)) == place.count, "pasted must be (N, height, width)");
    const int64_t height = pasted.shape(1), width = pasted.shape(2);
    bool* out = elements<bool>(pasted, "pasted");
    nb::gil_scoped_release release;
    parallel_for(place.count, 1, threads, [&](int64_t mask, int64_t) {
        paste_one(place, mask, height, width, static_cast<float>(threshold), out + mask * height * width);
    });
}

}  // namespace

void bind_masks(nb::module_& module) {
    module.def("paste", &paste, nb::arg("masks"), nb::arg("origin"), nb::arg("extent"), nb::arg("first"), nb::arg("last"),
               nb::arg("cells"), nb::arg("shift"), nb::arg("threshold"), nb::arg("pasted"), nb::arg("threads"));
}

}  // namespace delineate
