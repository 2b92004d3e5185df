// The headers of the standard library, which every instruction set's file includes before it changes the target: what
// they define inline must not be compiled for an instruction set that the processor may not have.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "arguments.hpp"
#include "tiles.hpp"
