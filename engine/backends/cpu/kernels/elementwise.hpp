// The gate of an MLP. Included inside a namespace of one instruction set.

template <class T>
static inline typename T::Vector activated(typename T::Vector x, int64_t activation) {
    using Wide = typename T::Wide;
    const auto one = broadcast(Wide(1)), zero = broadcast(Wide(0));
    // tanh's form of GELU is x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)).
    auto inner = x;
    if (activation == kGeluTanh) {
        const auto cube = multiply(multiply(x, x), x);
        inner = multiply(broadcast(Wide(1.5957691216057308)), multiply_add(cube, broadcast(Wide(0.044715)), x));
    }
    return divide(x, add(one, exponential(subtract(zero, inner))));
}

// output [rows, width] = act(gate) * up, of gate_up [rows, 2 * width]
template <class T>
static void gate(const void* gate_up, void* output, int64_t num_rows, int64_t width, int64_t activation,
                 int64_t num_threads) {
    using Storage = typename T::Storage;
    const bool is_parallel = num_rows > 1 && num_rows * width > kParallelElements;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(num_threads)) if (is_parallel)
    for (int64_t row = 0; row < num_rows; ++row) {
        const Storage* from = static_cast<const Storage*>(gate_up) + row * 2 * width;
        Storage* to = static_cast<Storage*>(output) + row * width;
        for (int64_t i = 0; i < width; i += kLanes) {
            const auto gated = activated<T>(load_some<T>(from, i, width), activation);
            store_some<T>(to, i, width, multiply(gated, load_some<T>(from + width, i, width)));
        }
    }
}
