// The kernels of float64, which is for comparisons: one version for every processor.
#include "standard.hpp"

namespace pagefleet {
namespace float64 {
#include "simd_portable.hpp"

struct Float64 {
    using Storage = double;
    using Wide = double;
    using Vector = Portable<double>;
    using Operand = Vector;
    using Factor = double;
    static constexpr int kPair = 1;

    static Vector load(const Storage* from) { return load_vector(from); }
    static void store(Storage* to, Vector x) { store_vector(to, x); }
    static Operand operand(const Storage* from) { return load_vector(from); }
    static Vector product(Vector sums, Operand operand, const Factor* factor) {
        return multiply_add(operand, broadcast(*factor), sums);
    }
    static void store_factors(Factor* to, Vector x) { store_vector(to, x); }
};

#include "products.hpp"
#include "attention.hpp"
#include "norms.hpp"
#include "rotation.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"
}  // namespace float64

extern const Kernels float64_kernels[1];
const Kernels float64_kernels[1] = {float64::kernels_of<float64::Float64>()};
}  // namespace pagefleet
