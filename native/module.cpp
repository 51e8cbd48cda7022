// The module delineate._native. A new kernel is a file name.cpp with `void bind_name(nb::module_&)`, and one line in KERNELS.
#include <nanobind/nanobind.h>

#define KERNELS(X) \
    X(histogram)   \
    X(keypoints)   \
    X(masks)       \
    X(nms)         \
    X(rle)         \
    X(roi)

namespace delineate {
namespace nb = nanobind;

#define DECLARE(name) void bind_##name(nb::module_&);
KERNELS(DECLARE)

NB_MODULE(_native, module) {
    module.doc() = "CPU kernels over plain buffers; delineate.ops.native offers them.";
#define BIND(name) bind_##name(module);
    KERNELS(BIND)
}

}  // namespace delineate
