// The joint histogram of two arrays of class ids, which is a confusion matrix before its checks.
#include "common.hpp"

namespace delineate {
namespace {

constexpr int64_t kBlock = 4096;     // values whose codes stay in the first-level cache
constexpr int64_t kPiece = 1 << 17;  // values that a thread takes at a time
constexpr int kWays = 4;             // neighbours often fall into one bin: with four tables their additions do not wait for each other

// The values, those below 0 and above `outside` replaced by `outside`.
template <typename T>
DELINEATE_INLINE inline void encode(const T* values, int64_t count, uint32_t outside, uint32_t* codes) {
    using Signed = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    using Unsigned = std::make_unsigned_t<Signed>;
    for (int64_t i = 0; i < count; i++) {
        const auto code = static_cast<Unsigned>(static_cast<Signed>(values[i]));  // a negative number is a large one
        codes[i] = static_cast<uint32_t>(std::min<Unsigned>(code, outside));
    }
}

DELINEATE_SIMD void encode_any(nb::dlpack::dtype dtype, const char* values, int64_t count, uint32_t outside, uint32_t* codes) {
    const bool is_signed = dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
    const auto run = [&](auto zero) DELINEATE_INLINE {
        encode(reinterpret_cast<const decltype(zero)*>(values), count, outside, codes);
    };
    switch (dtype.bits) {
        case 8: is_signed ? run(int8_t{}) : run(uint8_t{}); break;
        case 16: is_signed ? run(int16_t{}) : run(uint16_t{}); break;
        case 32: is_signed ? run(int32_t{}) : run(uint32_t{}); break;
        default: is_signed ? run(int64_t{}) : run(uint64_t{}); break;
    }
}

struct Ids {
    nb::dlpack::dtype dtype;
    const char* data;

    Ids(const Input& array, const std::string& name) : dtype(array.dtype()), data(static_cast<const char*>(array.data())) {
        require(dtype.code != static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && dtype.bits <= 64, name + " must hold integers");
        require_contiguous(array, name);
    }
    void encode(int64_t first, int64_t count, uint32_t outside, uint32_t* codes) const {
        encode_any(dtype, data + first * (dtype.bits / 8), count, outside, codes);
    }
};

// Adds the counts of one piece to `table`, kWays tables of side * side.
void count_piece(const Ids& rows, const Ids& columns, int64_t first, int64_t last, uint32_t side, uint32_t* table) {
    uint32_t row[kBlock], column[kBlock];
    for (int64_t start = first; start < last; start += kBlock) {
        const int64_t count = std::min(kBlock, last - start);
        rows.encode(start, count, side - 1, row);
        columns.encode(start, count, side - 1, column);
        for (int64_t i = 0; i < count; i++) table[(i % kWays) * side * side + row[i] * side + column[i]]++;
    }
}

// Adds to joint (side, side) how often rows[i] and columns[i] meet; the last row and column stand for every other value.
void joint_histogram(const Input& rows, const Input& columns, const Output& joint, int threads) {
    const auto size = static_cast<int64_t>(rows.size());
    require(size == static_cast<int64_t>(columns.size()), "the two arrays of ids must have one size");
    require(joint.ndim() == 2 && joint.shape(0) == joint.shape(1), "joint must be square");
    const auto side = static_cast<int64_t>(joint.shape(0));
    require(side >= 1 && side <= 4096, "joint must have 1 to 4096 rows");
    const Ids row_ids(rows, "rows"), column_ids(columns, "columns");
    int64_t* total = elements<int64_t>(joint, "joint");

    nb::gil_scoped_release release;
    const int64_t bins = side * side;
    const int64_t workers = std::clamp<int64_t>((size + kPiece - 1) / kPiece, 1, std::max(threads, 1));
    const int64_t round = workers * (int64_t{1} << 31);  // no 32-bit count can overflow before it is added to the total
    std::vector<uint32_t> tables(workers * kWays * bins);
    for (int64_t start = 0; start < size; start += round) {
        const int64_t count = std::min(round, size - start), share = (count + workers - 1) / workers;
        parallel_for(count, share, static_cast<int>(workers), [&](int64_t first, int64_t last) {
            count_piece(row_ids, column_ids, start + first, start + last, side, tables.data() + first / share * kWays * bins);
        });
        for (int64_t t = 0; t < workers * kWays; t++)
            for (int64_t bin = 0; bin < bins; bin++) total[bin] += tables[t * bins + bin];
        std::fill(tables.begin(), tables.end(), 0u);
    }
}

}  // namespace

void bind_histogram(nb::module_& module) {
    module.def("joint_histogram", &joint_histogram, nb::arg("rows"), nb::arg("columns"), nb::arg("joint"), nb::arg("threads"));
}

}  // namespace delineate
