// What the kernel files share: arrays from Python, instruction sets, threads.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A function marked DELINEATE_SIMD is compiled for AVX-512, AVX2 and the baseline, and the best that the processor has is
// chosen when the module is loaded. It must be a plain function, not a template; what it calls gains only if it is inlined, so
// mark that (and lambdas, before their body) DELINEATE_INLINE. Elsewhere, as on Arm, the baseline has its vector unit already.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(DELINEATE_SANITIZE) && \
    ((!defined(__clang__) && __GNUC__ >= 12) || (defined(__clang__) && __clang_major__ >= 17))
#define DELINEATE_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DELINEATE_SIMD
#endif
#define DELINEATE_INLINE __attribute__((always_inline))

namespace delineate {

namespace nb = nanobind;

// NumPy arrays or CPU tensors; results are allocated by the caller. Another device is a TypeError.
using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;

inline void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);  // ValueError in Python
}

// Raises unless the array is dense in row-major order.
template <typename Array>
void require_contiguous(const Array& array, const std::string& name) {
    int64_t expected = 1;
    for (size_t axis = array.ndim(); axis-- > 0; expected *= array.shape(axis))
        require(array.size() == 0 || array.shape(axis) == 1 || array.stride(axis) == expected, name + " must be contiguous");
}

// The elements of a contiguous array of one dtype.
template <typename T>
const T* elements(const Input& array, const std::string& name) {
    require(array.dtype() == nb::dtype<T>(), name + " has the wrong dtype");
    require_contiguous(array, name);
    return static_cast<const T*>(array.data());
}
template <typename T>
T* elements(const Output& array, const std::string& name) {
    require(array.dtype() == nb::dtype<T>(), name + " has the wrong dtype");
    require_contiguous(array, name);
    return static_cast<T*>(array.data());
}

// Asks for large pages under a large result that is about to be written for the first time: where the system leaves the choice
// to the program, as Linux mostly does, they save most of the time that fresh memory costs.
inline void use_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 1 << 21;
    const auto start = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
    if (start + 4 * page <= end)
        madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // a hint: failing is fine
#else
    (void)data, (void)bytes;
#endif
}

// Calls body(first, last) for pieces of 0..count, on up to `threads` threads that take the next piece when they are free. The
// pieces do not depend on `threads`, so that neither do results that depend on the pieces. An exception of body is passed on.
template <typename Body>
void parallel_for(int64_t count, int64_t piece, int threads, const Body& body) {
    const int64_t pieces = (count + piece - 1) / piece;
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto work = [&] {
        try {
            for (int64_t p = next++; p < pieces; p = next++) body(p * piece, std::min(count, (p + 1) * piece));
        } catch (...) {
            const std::lock_guard lock(guard);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < std::min<int64_t>(threads, pieces); i++) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace delineate
