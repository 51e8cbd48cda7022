// Eight numbers at a time: float, bfloat16 and half in memory, float to compute with; double stays double.
#pragma once

#include "common.hpp"

#include <bit>
#include <cstring>

namespace delineate {

// An AVX2 register of floats. With as many as AVX-512 holds, compilers spill them where there is only AVX2, which costs a
// factor of four there and gains a tenth on AVX-512.
constexpr int kLanes = 8;
constexpr int kRun = 8 * kLanes;  // numbers that loops keep in registers

struct BFloat16 {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};

}  // namespace delineate

namespace nanobind::detail {
template <>
struct dtype_traits<delineate::BFloat16> {
    static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Bfloat), 16, 1};
    static constexpr auto name = const_name("bfloat16");
};
template <>
struct dtype_traits<delineate::Half> {
    static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Float), 16, 1};
    static constexpr auto name = const_name("float16");
};
}  // namespace nanobind::detail

namespace delineate {

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Doubles = double __attribute__((vector_size(8 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Longs = int64_t __attribute__((vector_size(8 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
using Shorts = uint16_t __attribute__((vector_size(2 * kLanes)));

// The type to compute in, alone and in lanes.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <typename T>
using Vector = std::conditional_t<std::is_same_v<T, double>, Doubles, Floats>;

DELINEATE_INLINE inline Floats widen(Shorts bits, BFloat16) {
    return std::bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

DELINEATE_INLINE inline Shorts narrow(Floats values, BFloat16) {
    const auto bits = std::bit_cast<Words>(values);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    const Words quiet = (bits >> 16) | 0x40;                           // NaN must not become infinity
    return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded, Shorts);
}

DELINEATE_INLINE inline Floats widen(Shorts half, Half) {
    const Words bits = __builtin_convertvector(half, Words), sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
    const Floats scaled =
        std::bit_cast<Floats>(magnitude) * 0x1p112f;  // the exponent's bias goes from 15 to 127; subnormals too
    const Words special = magnitude | 0x7f800000;
    return std::bit_cast<Floats>((magnitude >= 0x0f800000 ? special : std::bit_cast<Words>(scaled)) | sign);
}

DELINEATE_INLINE inline Shorts narrow(Floats values, Half) {
    const auto bits = std::bit_cast<Words>(values);
    const Words sign = bits & 0x80000000, magnitude = bits ^ sign;
    const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;  // to nearest, ties to even
    const Floats shifted = std::bit_cast<Floats>(magnitude) + 0.5f;  // its last bit is a subnormal's unit
    const Words small = std::bit_cast<Words>(shifted) - 0x3f000000;
    Words result = magnitude < 0x38800000 ? small : normal;
    result = magnitude >= 0x477ff000 ? Words{} + 0x7c00 : result;
    result = magnitude > 0x7f800000 ? Words{} + 0x7e00 : result;
    return __builtin_convertvector(result | (sign >> 16), Shorts);
}

template <typename T>
DELINEATE_INLINE inline Vector<T> load(const T* values) {
    if constexpr (sizeof(T) == 2) {
        Shorts bits;
        std::memcpy(&bits, values, sizeof bits);
        return widen(bits, T{});
    } else {
        Vector<T> lanes;
        std::memcpy(&lanes, values, sizeof lanes);
        return lanes;
    }
}

template <typename T>
DELINEATE_INLINE inline void store(T* values, Vector<T> lanes) {
    if constexpr (sizeof(T) == 2) {
        const Shorts bits = narrow(lanes, T{});
        std::memcpy(values, &bits, sizeof bits);
    } else {
        std::memcpy(values, &lanes, sizeof lanes);
    }
}

// The first `count` of the lanes; the others are 0 and stay in place.
template <typename T>
DELINEATE_INLINE inline Vector<T> load(const T* values, int64_t count) {
    T full[kLanes] = {};
    std::memcpy(full, values, count * sizeof(T));
    return load(full);
}
template <typename T>
DELINEATE_INLINE inline void store(T* values, Vector<T> lanes, int64_t count) {
    T full[kLanes];
    store(full, lanes);
    std::memcpy(values, full, count * sizeof(T));
}

}  // namespace delineate
