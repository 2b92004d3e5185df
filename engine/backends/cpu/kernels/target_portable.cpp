// The kernels for any processor: SSE2 or NEON, which every x86-64 or aarch64 has.
#include "standard.hpp"

namespace pagefleet {
namespace portable {
#include "simd_portable.hpp"
#include "float_elements.hpp"
#include "products.hpp"
#include "attention.hpp"
#include "norms.hpp"
#include "rotation.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"
}  // namespace portable

extern const Kernels portable_kernels[2];
const Kernels portable_kernels[2] = {portable::kernels_of<portable::Bfloat16>(),
                                     portable::kernels_of<portable::Float32>()};
}  // namespace pagefleet
