// The loops over cells and channels of one region, for every dtype; compiled for several instruction sets.
#pragma once

#include "lanes.hpp"
#include "roi_geometry.hpp"

namespace delineate {

// One image of a feature map, or of its gradient; strides in elements.
template <typename T>
struct Plane {
    T* data;
    int64_t row, column, channel;
};

// In this file T is the type in memory and Real<T> the one that is computed in; a result is a region's, a total an image's.
#define DELINEATE_ROI_KERNELS(T)                                                                                               \
    /* channels last: result (bins y, bins x, channels) of `channels` channels */                                              \
    void mean_forward(const Region<Real<T>>&, Plane<const T>, int64_t channels, T* result);                                    \
    void max_forward(const Region<Real<T>>&, Plane<const T>, int64_t channels, T* result);                                     \
    /* adds the gradient of channels from..to-1 to an accumulator; `gradient` is that of the result, all channels long */      \
    void mean_backward(const Region<Real<T>>&, const T* gradient, int64_t channels, int64_t from, int64_t to, Plane<Real<T>>); \
    void max_backward(const Region<Real<T>>&, Plane<const T>, const T* gradient, int64_t channels, int64_t from, int64_t to,   \
                      Plane<Real<T>>);                                                                                         \
    /* channels first: result (channels, bins y, bins x), of channels from..to-1 */                                            \
    void mean_forward_planes(const Region<Real<T>>&, Plane<const T>, int64_t width, int64_t from, int64_t to, T* result);      \
    void mean_backward_planes(const Region<Real<T>>&, const T* gradient, int64_t width, int64_t from, int64_t to,              \
                              Plane<Real<T>>);

DELINEATE_ROI_KERNELS(float)
DELINEATE_ROI_KERNELS(double)
DELINEATE_ROI_KERNELS(BFloat16)
DELINEATE_ROI_KERNELS(Half)
// Rounds `count` sums to the type of the maps.
void round_to(const float* sums, int64_t count, BFloat16* result);
void round_to(const float* sums, int64_t count, Half* result);

}  // namespace delineate
