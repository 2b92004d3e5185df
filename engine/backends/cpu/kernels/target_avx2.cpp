// The kernels for avx2.
#include "standard.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace pagefleet {
namespace avx2 {
#include "simd_avx2.hpp"
#include "float_elements.hpp"
#include "products.hpp"
#include "attention.hpp"
#include "norms.hpp"
#include "rotation.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"
}  // namespace avx2

extern const Kernels avx2_kernels[2];
const Kernels avx2_kernels[2] = {avx2::kernels_of<avx2::Bfloat16>(), avx2::kernels_of<avx2::Float32>()};
}  // namespace pagefleet

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
