// The functions that Python calls, and the choice of the instruction set.
#include "schedule.hpp"
#include "standard.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace pagefleet {
#if defined(__x86_64__)
extern const Kernels avx512_bfloat16_kernels[2];
extern const Kernels avx512_kernels[2];
extern const Kernels avx2_kernels[2];
#endif
extern const Kernels portable_kernels[2];
extern const Kernels float64_kernels[1];

namespace {

struct Target {
    const char* name;
    const Kernels* kernels;
    bool (*is_supported)();
};

#if defined(__x86_64__)
// __builtin_cpu_supports asks the operating system, too, whether it saves the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_bfloat16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
bool always() { return true; }

// The fastest first.
const Target kTargets[] = {
#if defined(__x86_64__)
    {"avx512_bf16", avx512_bfloat16_kernels, has_bfloat16},
    {"avx512", avx512_kernels, has_avx512},
    {"avx2", avx2_kernels, has_avx2},
    {"sse2", portable_kernels, always},
#elif defined(__aarch64__)
    {"neon", portable_kernels, always},
#else
    {"generic", portable_kernels, always},
#endif
};

}  // namespace
}  // namespace pagefleet

using namespace pagefleet;

// The name of the index-th instruction set that this processor has, the fastest first; null after the last one.
EXPORTED const char* pagefleet_target(int64_t index) {
    for (const Target& target : kTargets)
        if (target.is_supported() && index-- == 0) return target.name;
    return nullptr;
}

// The kernels of an element type, for an instruction set by its name; null if the processor does not have it.
EXPORTED const Kernels* pagefleet_kernels(const char* name, int64_t element) {
    if (element == kFloat64) return float64_kernels;
    for (const Target& target : kTargets)
        if (strcmp(target.name, name) == 0) return target.is_supported() ? target.kernels + element : nullptr;
    return nullptr;
}

// Count the items of a step, and write them and the merges if `items` is not null.
EXPORTED void pagefleet_schedule(const ScheduleArguments* arguments, Item* items, Merge* merges,
                                 ScheduleSizes* sizes) {
    *sizes = Scheduler(*arguments).run(items, merges);
}
