// What is a vector register here, and what can be done with it?
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace vdsr {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats in a register
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int CHANNELS = 64;
constexpr int GROUPS = CHANNELS / LANES;  // registers that one pixel fills
constexpr size_t WEIGHTS = size_t(CHANNELS) * CHANNELS * 9;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector v) { *reinterpret_cast<Unaligned*>(to) = v; }
inline Vector every(float value) { return value - Vector{}; }

// a * b + c, rounded once. Always asked for and never left to the compiler (-ffp-contract=off), which would fuse the
// same formula here and not there, and so give other bits in another place.
inline Vector fma(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}
inline Vector fma(float a, Vector b, Vector c) { return fma(every(a), b, c); }

// What is no number stays, to be seen: the processor's maximum gives the second of the two then.
inline Vector positive(Vector v) {
#if defined(__AVX512F__)
    return _mm512_max_ps(Vector{}, v);
#elif defined(__AVX2__)
    return _mm256_max_ps(Vector{}, v);
#else
    return v < 0.0f ? Vector{} : v;
#endif
}

}  // namespace vdsr
