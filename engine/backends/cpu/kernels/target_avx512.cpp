// The kernels for avx512.
#include "standard.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif

namespace pagefleet {
namespace avx512 {
#include "simd_avx512.hpp"
#include "float_elements.hpp"
#include "products.hpp"
#include "attention.hpp"
#include "norms.hpp"
#include "rotation.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"
}  // namespace avx512

extern const Kernels avx512_kernels[2];
const Kernels avx512_kernels[2] = {avx512::kernels_of<avx512::Bfloat16>(), avx512::kernels_of<avx512::Float32>()};
}  // namespace pagefleet

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
