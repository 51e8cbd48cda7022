// COCO's run-length codes: from masks, from small masks over boxes, and back. delineate.ops.rle says what the text is.
#include "paste.hpp"

#include <cstring>

namespace delineate {
namespace {

constexpr int64_t kColumns = 64;  // columns that are turned into rows at a time: a cache line of each row
constexpr int kDigits = 10;       // characters of the longest number that is read: runs up to 2^49 pixels

// Writes the runs of a mask as they end.
class Writer {
public:
    // From `place` on, in column-major order, the mask has the other value. Two changes at one place are none.
    void change(int64_t place) {
        inside_ = !inside_;
        if (pending_ == place) {
            pending_ = -1;
            return;
        }
        flush();
        pending_ = place;
    }
    bool inside() const { return inside_; }
    std::string finish(int64_t pixels) {
        if (pending_ < pixels) flush();
        number(pixels - last_);
        return std::move(text_);
    }

private:
    void flush() {
        if (pending_ < 0) return;
        number(pending_ - last_);
        last_ = pending_;
        pending_ = -1;
    }
    void number(int64_t run) {
        int64_t value = runs_ > 2 ? run - before_[runs_ % 2] : run;
        before_[runs_++ % 2] = run;
        for (bool more = true; more;) {
            const int64_t bits = value & 31;
            value >>= 5;
            more = (bits & 16) ? value != -1 : value != 0;
            text_.push_back(static_cast<char>(48 + bits + (more ? 32 : 0)));
        }
    }

    std::string text_;
    int64_t last_ = 0, pending_ = -1, runs_ = 0, before_[2] = {0, 0};
    bool inside_ = false;
};

std::string encode_one(const bool* mask, int64_t height, int64_t width) {
    Writer writer;
    std::vector<char> columns(kColumns * height);
    for (int64_t left = 0; left < width; left += kColumns) {
        const int64_t count = std::min(kColumns, width - left);
        std::fill(columns.begin(), columns.end(), 0);
        for (int64_t y = 0; y < height; y++) {
            const bool* row = mask + y * width + left;
            if (std::memchr(row, 1, count) == nullptr) continue;
            for (int64_t x = 0; x < count; x++) columns[x * height + y] = row[x];
        }
        for (const char *place = columns.data(), *end = place + count * height; place < end; place++) {
            place = static_cast<const char*>(std::memchr(place, !writer.inside(), end - place));
            if (place == nullptr) break;
            writer.change(left * height + (place - columns.data()));
        }
    }
    return writer.finish(height * width);
}

// The rows of a picture between the same two rows of a mask, as indices into the axis: segment k is bounds[k]..bounds[k + 1] - 1.
struct Segments {
    std::vector<int64_t> bounds;
    std::vector<int32_t> cell;
    std::vector<float> first, last;  // the fractions of its ends

    explicit Segments(const Axis& axis) {
        for (int64_t i = 0; i < axis.size(); i++) {
            if (i > 0 && axis.cell[i] == axis.cell[i - 1]) {
                last.back() = axis.fraction[i];
                continue;
            }
            bounds.push_back(i), cell.push_back(axis.cell[i]), first.push_back(axis.fraction[i]), last.push_back(axis.fraction[i]);
        }
        bounds.push_back(axis.size());
    }
    int64_t size() const { return static_cast<int64_t>(cell.size()); }
};

// value[s] = a column of the mask, contiguous and followed by the next, interpolated towards that; and whether the ends of each
// segment are inside: bit 0 the first, bit 1 the last.
DELINEATE_SIMD void blend(const float* column, int64_t count, float fraction, float threshold, const Segments& segments, float* value,
                          int32_t* inside) {
    for (int64_t s = 0; s < count; s++) value[s] = interpolate(column[s], column[s + count], fraction);
    const int32_t* cell = segments.cell.data();
    const float *first = segments.first.data(), *last = segments.last.data();
    for (int64_t k = 0, size = segments.size(); k < size; k++) {
        const float low = value[cell[k]], high = value[cell[k] + 1];
        inside[k] = int32_t(interpolate(low, high, first[k]) >= threshold) | int32_t(interpolate(low, high, last[k]) >= threshold) << 1;
    }
}

// A value between two of a column is monotonic in the fraction: a segment whose first and last pixel agree is all the same, and else
// it changes once, at a place that halving finds. So a column costs as much as the mask is high, however high the box is.
std::string paste_encode_one(const Placement& place, int64_t mask, int64_t height, int64_t width, float threshold) {
    const Axis across(place, mask, 0, width), down(place, mask, 1, height);
    const Segments segments(down);
    std::vector<int32_t> inside(segments.size());
    const int64_t side = place.rows + 2;
    std::vector<float> columns(side * (place.columns + 2), 0.0f), value(side);
    for (int64_t s = 0; s < place.rows; s++)
        for (int64_t t = 0; t < place.columns; t++)
            columns[(t + 1) * side + s + 1] = place.masks[(mask * place.rows + s) * place.columns + t];

    Writer writer;
    for (int64_t x = 0; x < across.size(); x++) {
        const float* column = columns.data() + across.cell[x] * side;
        blend(column, side, across.fraction[x], threshold, segments, value.data(), inside.data());
        const int64_t base = (across.first + x) * height + down.first;
        for (int64_t k = 0; k < segments.size(); k++) {
            if (inside[k] == (writer.inside() ? 3 : 0)) continue;
            int64_t low = segments.bounds[k], high = segments.bounds[k + 1] - 1;
            if ((inside[k] & 1) != writer.inside()) writer.change(base + low);
            if (inside[k] >> 1 == (inside[k] & 1)) continue;
            const float* pair = value.data() + segments.cell[k];
            while (high - low > 1) {
                const int64_t middle = (low + high) / 2;
                const bool covered = interpolate(pair[0], pair[1], down.fraction[middle]) >= threshold;
                (covered == writer.inside() ? low : high) = middle;
            }
            writer.change(base + high);
        }
        if (writer.inside()) writer.change(base + down.size());
    }
    return writer.finish(height * width);
}

// Joins the texts and notes where each ends.
nb::bytes joined(const std::vector<std::string>& texts, int64_t* ends) {
    std::string all;
    for (size_t i = 0; i < texts.size(); i++) {
        all += texts[i];
        ends[i] = all.size();
    }
    return nb::bytes(all.data(), all.size());
}

// The texts of masks (N, height, width), one after another; ends (N,) says where each ends.
nb::bytes encode(const Input& masks, const Output& ends, int threads) {
    require(masks.ndim() == 3 && ends.size() == masks.shape(0), "masks must be (N, height, width), ends (N,)");
    const int64_t height = masks.shape(1), width = masks.shape(2);
    const bool* mask = elements<bool>(masks, "masks");
    int64_t* bounds = elements<int64_t>(ends, "ends");
    std::vector<std::string> texts(masks.shape(0));
    {
        nb::gil_scoped_release release;
        parallel_for(texts.size(), 1, threads, [&](int64_t i, int64_t) { texts[i] = encode_one(mask + i * height * width, height, width); });
    }
    return joined(texts, bounds);
}

// What encode gives for the masks that paste makes.
nb::bytes paste_encode(const Input& masks, const Input& origin, const Input& extent, const Input& first, const Input& last,
                       std::pair<int64_t, int64_t> cells, double shift, int64_t height, int64_t width, double threshold,
                       const Output& ends, int threads) {
    const Placement place(masks, origin, extent, first, last, cells, shift);
    require(int64_t(ends.size()) == place.count, "ends must be (N,)");
    int64_t* bounds = elements<int64_t>(ends, "ends");
    std::vector<std::string> texts(place.count);
    {
        nb::gil_scoped_release release;
        parallel_for(place.count, 1, threads, [&](int64_t i, int64_t) {
            texts[i] = paste_encode_one(place, i, height, width, static_cast<float>(threshold));
        });
    }
    return joined(texts, bounds);
}

// Sets the pixels of one code in a mask that is false; whether its runs fill the mask.
bool decode_one(const uint8_t* text, const uint8_t* end, int64_t height, int64_t width, bool* mask) {
    const int64_t pixels = height * width;
    int64_t place = 0, before[2] = {0, 0};
    for (int64_t number = 0; text < end; number++) {
        int64_t run = 0;
        int digit = 0;
        for (bool more = true; more; text++, digit++) {
            if (text == end || *text < 48 || *text > 111 || digit == kDigits) return false;
            const int64_t bits = *text - 48;
            run |= (bits & 31) << 5 * digit;
            more = bits & 32;
            if (!more && (bits & 16)) run -= int64_t{1} << 5 * (digit + 1);
        }
        if (number > 2) run += before[number % 2];
        before[number % 2] = run;
        if (run < 0 || run > pixels - place) return false;
        if (number % 2 == 1 && run > 0) {
            for (int64_t x = place / height, y = place % height, left = run; left > 0; x++, y = 0)
                for (; y < height && left > 0; y++, left--) mask[y * width + x] = true;
        }
        place += run;
    }
    return place == pixels;
}

// Sets in masks (N, height, width), which are false, the pixels of the codes; raises ValueError that names the first bad one.
void decode(const Input& text, const Input& ends, const Output& masks, int threads) {
    require(masks.ndim() == 3 && ends.size() == masks.shape(0), "masks must be (N, height, width), ends (N,)");
    const int64_t height = masks.shape(1), width = masks.shape(2), count = masks.shape(0);
    const uint8_t* characters = elements<uint8_t>(text, "text");
    const int64_t* bounds = elements<int64_t>(ends, "ends");
    for (int64_t i = 0, start = 0; i < count; start = bounds[i++])
        require(bounds[i] >= start && bounds[i] <= int64_t(text.size()), "ends must rise within the text");
    bool* out = elements<bool>(masks, "masks");
    std::vector<char> good(count);
    {
        nb::gil_scoped_release release;
        parallel_for(count, 1, threads, [&](int64_t i, int64_t) {
            const int64_t start = i == 0 ? 0 : bounds[i - 1];
            good[i] = decode_one(characters + start, characters + bounds[i], height, width, out + i * height * width);
        });
    }
    const auto bad = std::find(good.begin(), good.end(), 0) - good.begin();
    require(bad == count, "run-length code " + std::to_string(bad) + " is damaged: its runs do not add up to " +
                              std::to_string(height * width) + " pixels");
}

}  // namespace

void bind_rle(nb::module_& module) {
    module.def("encode", &encode, nb::arg("masks"), nb::arg("ends"), nb::arg("threads"));
    module.def("paste_encode", &paste_encode, nb::arg("masks"), nb::arg("origin"), nb::arg("extent"), nb::arg("first"),
               nb::arg("last"), nb::arg("cells"), nb::arg("shift"), nb::arg("height"), nb::arg("width"), nb::arg("threshold"),
               nb::arg("ends"), nb::arg("threads"));
    module.def("decode", &decode, nb::arg("text"), nb::arg("ends"), nb::arg("masks"), nb::arg("threads"));
}

}  // namespace delineate
