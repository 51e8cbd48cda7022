// Pooling regions of feature maps: the plan of all regions, threads, and the bindings. The loops are in roi_channels_last.cpp
// and roi_planes.cpp.
#include "roi_kernels.hpp"

#include <nanobind/stl/vector.h>

#include <numeric>
#include <tuple>

namespace delineate {
namespace {

using Inputs = std::vector<Input>;
using Outputs = std::vector<Output>;

constexpr int64_t kRegionsAtOnce = 8;  // that a thread takes
constexpr int64_t kPlanesAtOnce = 16;  // channels

// The size of a feature map (N, C, H, W) or (N, H, W, C), and where one of its images lies.
struct Shape {
    int64_t images, channels, height, width;
    bool channels_last;

    template <typename Array>
    Shape(const Array& map, bool last) : channels_last(last) {
        require(map.ndim() == 4, "a feature map must have four axes");
        images = map.shape(0), channels = map.shape(last ? 3 : 1), height = map.shape(last ? 1 : 2),
        width = map.shape(last ? 2 : 3);
    }
    template <typename T>
    Plane<T> plane(T* map, int64_t image) const {
        map += image * channels * height * width;
        return channels_last ? Plane<T>{map, width * channels, channels, 1} : Plane<T>{map, width, 1, height * width};
    }
};

// The regions of all boxes (K, 5), sorted by map, image and place: neighbours read the same cells, which are in the cache then.
template <typename A>
std::vector<Region<A>> plan(const Input& boxes, const Input& levels, const std::vector<double>& scales,
                            const std::vector<Shape>& shapes, int64_t bins_y, int64_t bins_x, const Rule& rule, int threads) {
    const auto count = static_cast<int64_t>(boxes.shape(0));
    const A* box = elements<A>(boxes, "boxes");
    const int64_t* level = elements<int64_t>(levels, "levels");
    std::vector<Region<A>> regions(count);
    parallel_for(count, 64, threads, [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; k++) {
            const A* b = box + 5 * k;
            require(level[k] >= 0 && level[k] < static_cast<int64_t>(shapes.size()),
                    "box " + std::to_string(k) + " is of map " + std::to_string(level[k]) + ", but there are " +
                        std::to_string(shapes.size()));
            const Shape& shape = shapes[level[k]];
            require(b[0] >= 0 && b[0] < static_cast<A>(shape.images), "box " + std::to_string(k) + " is of image " +
                                                                          std::to_string(b[0]) + ", but there are " +
                                                                          std::to_string(shape.images));
            const auto axis = rule.quantized ? pool_axis<A> : align_axis<A>;
            const A scale = static_cast<A>(scales[level[k]]);
            regions[k] = {k, level[k], static_cast<int64_t>(b[0]), axis(b[2], b[4], scale, bins_y, shape.height, rule),
                          axis(b[1], b[3], scale, bins_x, shape.width, rule)};
        }
    });
    std::sort(regions.begin(), regions.end(), [](const Region<A>& a, const Region<A>& b) {
        const auto key = [](const Region<A>& r) { return std::tuple(r.level, r.image, r.y.lowest / 16, r.x.lowest, r.row); };
        return key(a) < key(b);
    });
    return regions;
}

// The arrays of one call, checked.
template <typename T>
struct Call {
    std::vector<Shape> shapes;
    std::vector<const T*> maps;
    std::vector<Region<Real<T>>> regions;
    int64_t bins, channels;

    Call(const Inputs& inputs, const Input& boxes, const Input& levels, const std::vector<double>& scales, const Rule& rule,
         bool channels_last, int64_t bins_y, int64_t bins_x, int threads) {
        require(!inputs.empty() && inputs.size() == scales.size(), "each feature map needs its scale");
        require(boxes.ndim() == 2 && boxes.shape(1) == 5 && levels.size() == boxes.shape(0),
                "boxes must be (K, 5), levels (K)");
        for (const Input& input : inputs) {
            shapes.emplace_back(input, channels_last);
            maps.push_back(elements<T>(input, "feature map"));
            require(shapes.back().channels == shapes[0].channels, "feature maps must have equal numbers of channels");
        }
        bins = bins_y * bins_x;
        channels = shapes[0].channels;
        regions = plan<Real<T>>(boxes, levels, scales, shapes, bins_y, bins_x, rule, threads);
    }
};

// Channels first, the rows of a region lie in as many places as it has channels. So all regions are gone through for a few
// channels at a time, which stay in the cache from one region to the next.
template <typename T>
void forward(const Call<T>& call, const Rule& rule, T* result, int threads) {
    const int64_t step = call.shapes[0].channels_last ? std::max<int64_t>(call.channels, 1) : kPlanesAtOnce;
    const auto count = static_cast<int64_t>(call.regions.size()), groups = (count + kRegionsAtOnce - 1) / kRegionsAtOnce;
    parallel_for(groups * ((call.channels + step - 1) / step), 1, threads, [&](int64_t piece, int64_t) {
        const int64_t from = piece / groups * step, to = std::min(call.channels, from + step);
        const int64_t first = piece % groups * kRegionsAtOnce, last = std::min(count, first + kRegionsAtOnce);
        for (int64_t i = first; i < last; i++) {
            const Region<Real<T>>& region = call.regions[i];
            const Shape& shape = call.shapes[region.level];
            const Plane<const T> plane = shape.plane(call.maps[region.level], region.image);
            T* bins = result + region.row * call.bins * call.channels;
            if (!shape.channels_last)
                mean_forward_planes(region, plane, shape.width, from, to, bins);
            else if (rule.maximum)
                max_forward(region, plane, call.channels, bins);
            else
                mean_forward(region, plane, call.channels, bins);
        }
    });
}

// What one thread computes at a time of the maps' gradients: some channels of one image, so that no two write one number, and
// each number is summed in the order of the regions.
struct Piece {
    int64_t level, image, from, to;
    size_t first, last;  // its regions
};

template <typename T>
std::vector<Piece> pieces_of(const Call<T>& call, int threads) {
    const auto images = std::accumulate(call.shapes.begin(), call.shapes.end(), int64_t{0},
                                        [](int64_t sum, const Shape& shape) { return sum + shape.images; });
    const bool few = images * call.channels < kRun * 2 * threads;
    const int64_t step = !call.shapes[0].channels_last ? 8 : few ? kLanes : kRun;
    std::vector<Piece> pieces;
    size_t first = 0;
    for (int64_t level = 0; level < static_cast<int64_t>(call.shapes.size()); level++)
        for (int64_t image = 0; image < call.shapes[level].images; image++) {
            size_t last = first;
            while (last < call.regions.size() && call.regions[last].level == level && call.regions[last].image == image) last++;
            for (int64_t from = 0; from < call.channels; from += step)
                pieces.push_back({level, image, from, std::min(call.channels, from + step), first, last});
            first = last;
        }
    return pieces;
}

template <typename T>
void add_regions(const Call<T>& call, const Rule& rule, const Piece& piece, const T* gradient, Plane<Real<T>> total) {
    const Shape& shape = call.shapes[piece.level];
    for (size_t i = piece.first; i < piece.last; i++) {
        const Region<Real<T>>& region = call.regions[i];
        const T* bins = gradient + region.row * call.bins * call.channels;
        if (!shape.channels_last)
            mean_backward_planes(region, bins, shape.width, piece.from, piece.to, total);
        else if (!rule.maximum)
            mean_backward(region, bins, call.channels, piece.from, piece.to, total);
        else
            max_backward(region, shape.plane(call.maps[piece.level], piece.image), bins, call.channels, piece.from, piece.to,
                         total);
    }
}

// A piece's gradient is summed in float or double: in its place, or in memory of its own and rounded in the end.
template <typename T>
void backward_piece(const Call<T>& call, const Rule& rule, const Piece& piece, const T* gradient, T* result) {
    const Shape& shape = call.shapes[piece.level];
    const int64_t cells = shape.height * shape.width, channels = piece.to - piece.from;
    const bool last = shape.channels_last;
    Plane<T> place = shape.plane(result, piece.image);
    place.data += piece.from * place.channel;
    const int64_t runs = last ? cells : 1, run = last ? channels : channels * cells;  // contiguous numbers
    if constexpr (std::is_same_v<T, Real<T>>) {
        for (int64_t i = 0; i < runs; i++) std::fill_n(place.data + i * place.column, run, T(0));
        add_regions(call, rule, piece, gradient, place);
    } else {
        std::vector<float> sums(cells * channels);
        const Plane<float> total = last ? Plane<float>{sums.data(), shape.width * channels, channels, 1}
                                        : Plane<float>{sums.data(), shape.width, 1, cells};
        add_regions(call, rule, piece, gradient, total);
        for (int64_t i = 0; i < runs; i++) round_to(sums.data() + i * run, run, place.data + i * place.column);
    }
}

template <typename F>
void for_dtype(const Input& array, const F& f) {
    const nb::dlpack::dtype dtype = array.dtype();
    const auto is = [&](nb::dlpack::dtype_code code, int bits) {
        return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits;
    };
    if (is(nb::dlpack::dtype_code::Float, 32))
        f(float{});
    else if (is(nb::dlpack::dtype_code::Float, 64))
        f(double{});
    else if (is(nb::dlpack::dtype_code::Float, 16))
        f(Half{});
    else if (is(nb::dlpack::dtype_code::Bfloat, 16))
        f(BFloat16{});
    else
        throw std::invalid_argument("feature maps must be float32, float64, bfloat16 or float16");
}

Rule rule_of(bool quantized, int sampling_ratio, bool aligned, bool maximum) {
    return {quantized, sampling_ratio, aligned, maximum};
}

void roi_forward(const Inputs& maps, const Input& boxes, const Input& levels, const std::vector<double>& scales, bool quantized,
                 int sampling_ratio, bool aligned, bool maximum, bool channels_last, const Output& result, int threads) {
    const Rule rule = rule_of(quantized, sampling_ratio, aligned, maximum);
    require(channels_last || !maximum, "the maximum needs channels last");
    const Shape bins(result, channels_last);
    for_dtype(maps.at(0), [&](auto zero) {
        using T = decltype(zero);
        T* data = elements<T>(result, "result");
        use_huge_pages(data, result.nbytes());
        nb::gil_scoped_release release;
        const Call<T> call(maps, boxes, levels, scales, rule, channels_last, bins.height, bins.width, threads);
        require(bins.images == static_cast<int64_t>(boxes.shape(0)) && bins.channels == call.channels,
                "result has the wrong shape");
        forward(call, rule, data, threads);
    });
}

void roi_backward(const Input& gradient, const Inputs& maps, const Input& boxes, const Input& levels,
                  const std::vector<double>& scales, bool quantized, int sampling_ratio, bool aligned, bool maximum,
                  bool channels_last, const Outputs& results, int threads) {
    const Rule rule = rule_of(quantized, sampling_ratio, aligned, maximum);
    require(channels_last || !maximum, "the maximum needs channels last");
    const Shape bins(gradient, channels_last);
    for_dtype(maps.at(0), [&](auto zero) {
        using T = decltype(zero);
        const T* bin_gradient = elements<T>(gradient, "gradient");
        std::vector<T*> data;
        for (size_t i = 0; i < results.size(); i++) {
            require(i < maps.size() && results[i].size() == maps[i].size(), "each map needs a gradient of its size");
            data.push_back(elements<T>(results[i], "result"));
            use_huge_pages(data.back(), results[i].nbytes());
        }
        nb::gil_scoped_release release;
        const Call<T> call(maps, boxes, levels, scales, rule, channels_last, bins.height, bins.width, threads);
        require(
            bins.images == static_cast<int64_t>(boxes.shape(0)) && bins.channels == call.channels && data.size() == maps.size(),
            "gradient or results have the wrong shape");
        const std::vector<Piece> pieces = pieces_of(call, threads);
        parallel_for(pieces.size(), 1, threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++) backward_piece(call, rule, pieces[i], bin_gradient, data[pieces[i].level]);
        });
    });
}

}  // namespace

void bind_roi(nb::module_& module) {
    module.def("roi_forward", &roi_forward);
    module.def("roi_backward", &roi_backward);
}

}  // namespace delineate
