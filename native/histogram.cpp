// The joint histogram of true and predicted class ids: a confusion matrix before its checks.
#include "common.hpp"

namespace delineate {
namespace {

constexpr int64_t kBlock = 4096;     // pixels whose codes stay in the first-level cache
constexpr int64_t kPiece = 1 << 16;  // pixels for which a thread is worth its start
constexpr int kWays = 4;  // neighbours often fall into one bin: with four tables their additions do not wait for each other

// Ids 0..count-1 are their own codes, except for the ignored one, whose code is `count`; that of all others is count + 1.
struct Classes {
    uint32_t count;
    std::optional<uint32_t> ignored;
};

// codes[i] = scale * code of values[i], added to what is there if `add`.
template <typename T>
DELINEATE_INLINE inline void encode(const T* values, int64_t count, Classes classes, uint32_t scale, bool add,
                                    uint32_t* codes) {
    using Signed = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    using Unsigned = std::make_unsigned_t<Signed>;
    const Unsigned ignored = classes.ignored.value_or(classes.count);  // an id that is no class changes nothing below
    const uint32_t ignored_code = classes.count + !classes.ignored;
    for (int64_t i = 0; i < count; i++) {
        const auto id = static_cast<Unsigned>(static_cast<Signed>(values[i]));  // a negative number is a large one
        const uint32_t known = id < classes.count ? static_cast<uint32_t>(id) : classes.count + 1;
        codes[i] = (add ? codes[i] : 0) + scale * (id == ignored ? ignored_code : known);
    }
}

struct Ids {
    nb::dlpack::dtype dtype;
    const char* data;

    Ids(const Input& array, const std::string& name) : dtype(array.dtype()), data(static_cast<const char*>(array.data())) {
        using Code = nb::dlpack::dtype_code;
        const bool integers = dtype.code == static_cast<uint8_t>(Code::Int) || dtype.code == static_cast<uint8_t>(Code::UInt);
        require(integers, name + " must hold integers");
        require_contiguous(array, name);
    }
    Ids from(int64_t first) const {
        Ids rest = *this;
        rest.data += first * (dtype.bits / 8);
        return rest;
    }
};

DELINEATE_SIMD void encode_any(Ids ids, int64_t count, Classes classes, uint32_t scale, bool add, uint32_t* codes) {
    const bool is_signed = ids.dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
    const auto run = [&](auto zero) DELINEATE_INLINE {
        encode(reinterpret_cast<const decltype(zero)*>(ids.data), count, classes, scale, add, codes);
    };
    switch (ids.dtype.bits) {
        case 8:
            is_signed ? run(int8_t{}) : run(uint8_t{});
            break;
        case 16:
            is_signed ? run(int16_t{}) : run(uint16_t{});
            break;
        case 32:
            is_signed ? run(int32_t{}) : run(uint32_t{});
            break;
        default:
            is_signed ? run(int64_t{}) : run(uint64_t{});
            break;
    }
}

// Adds the counts of pixels first..last-1 to `table`, kWays tables of side * side.
void count_pixels(const Ids& truth, const Ids& prediction, Classes classes, int64_t first, int64_t last, uint32_t* table) {
    const uint32_t side = classes.count + 2, bins = side * side;
    uint32_t codes[kBlock];
    for (int64_t start = first; start < last; start += kBlock) {
        const int64_t count = std::min(kBlock, last - start);
        encode_any(truth.from(start), count, classes, side, false, codes);
        encode_any(prediction.from(start), count, {classes.count, std::nullopt}, 1, true, codes);
        for (int64_t i = 0; i < count; i++) table[(i % kWays) * bins + codes[i]]++;
    }
}

// Adds to joint (K + 2, K + 2) the pixels of each pair (truth, prediction): the classes, the ignored id of the truth, all
// others.
void joint_histogram(const Input& truth, const Input& prediction, std::optional<uint32_t> ignored, const Output& joint,
                     int threads) {
    const auto size = static_cast<int64_t>(truth.size());
    require(size == static_cast<int64_t>(prediction.size()), "truth and prediction must have one size");
    require(joint.ndim() == 2 && joint.shape(0) == joint.shape(1) && joint.shape(0) >= 2, "joint must be (K + 2, K + 2)");
    const auto side = static_cast<int64_t>(joint.shape(0)), bins = side * side;
    require(side <= 4096, "there can be 4094 classes at most");
    const Classes classes{static_cast<uint32_t>(side - 2), ignored};
    const Ids true_ids(truth, "truth"), predicted_ids(prediction, "prediction");
    int64_t* total = elements<int64_t>(joint, "joint");

    nb::gil_scoped_release release;
    const int64_t workers = std::clamp<int64_t>(size / kPiece, 1, std::max(threads, 1));
    const int64_t round = workers << 31;  // so few that no 32-bit count overflows before it is added to the total
    for (int64_t start = 0; start < size; start += round) {
        const int64_t count = std::min(round, size - start), share = (count + workers - 1) / workers;
        std::vector<uint32_t> tables(workers * kWays * bins);
        parallel_for(count, share, static_cast<int>(workers), [&](int64_t first, int64_t last) {
            uint32_t* table = tables.data() + first / share * kWays * bins;
            count_pixels(true_ids, predicted_ids, classes, start + first, start + last, table);
        });
        for (size_t i = 0; i < tables.size(); i++) total[i % bins] += tables[i];
    }
}

}  // namespace

void bind_histogram(nb::module_& module) {
    module.def("joint_histogram", &joint_histogram, nb::arg("truth"), nb::arg("prediction"), nb::arg("ignored").none(),
               nb::arg("joint"), nb::arg("threads"));
}

}  // namespace delineate
