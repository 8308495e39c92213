// How does a hidden layer run on a processor's matrix unit (Intel AMX)? As products of bf16 tiles, summed in fp32.
//
// The unit has eight registers, each a tile of 16 rows of 64 bytes. One instruction adds the product of two tiles to a
// third. The channels that are summed over lie in pairs:
//
//        A: 16 pixels of a row,            B: 32 channels in,                     C: 16 pixels,
//           32 channels in, bf16              16 channels out, bf16                  16 channels out, fp32
//
//        pixel 0   c0 c1 c2 ... c31        c0 c1    o0 o0 o1 o1 ... o15 o15       pixel 0   o0 o1 ... o15
//        pixel 1   c0 c1 c2 ... c31    x   c2 c3    o0 o0 o1 o1 ... o15 o15   +=  pixel 1   o0 o1 ... o15
//          ...                               ...                                    ...
//        pixel 15  c0 c1 c2 ... c31        c30 c31  o0 o0 o1 o1 ... o15 o15       pixel 15  o0 o1 ... o15
//
// A block is 4 rows of 16 pixels and 16 channels out: its sums stay in registers 0 to 3. One step takes one tap across
// and half of the channels in. It loads B for the three taps down, and each of the six rows of input that the block
// sees once, as A, for every row of output that it leads to:
//
//        input row     0    1    2    3    4    5
//        output row 0  B0   B1   B2                     12 products from 9 loads
//        output row 1       B0   B1   B2
//        output row 2            B0   B1   B2
//        output row 3                 B0   B1   B2
//
// A pixel's sum runs over the taps and channels in the same order wherever in a block it lies, so that its bits depend
// on its 3 x 3 pixels alone.
//
// Layout. Activations are pixels of 64 bf16 ("NHWC"). Where one bf16 is too coarse, a pixel is 128: 64 rounded values,
// then 64 rounded remainders, both multiplied by the same weights.
//     weights of a layer   [4 groups of channels out][3 taps across][2 halves of the channels in][3 taps down] B
//
// VDSR_EMULATE_AMX puts plain C++ in the place of the unit's instructions, so that everything else can be tested on
// any processor. The sums are those that Intel documents for the instruction (Software Developer's Manual, TDPBF16PS),
// but for products below 2^-126, which it keeps until they are added.
#pragma once

#if defined(__linux__) && !defined(VDSR_EMULATE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

#include "network.h"

namespace vdsr {

typedef uint16_t bf16;  // the upper half of a float's bits
typedef uint16_t Bf16s __attribute__((vector_size(LANES * sizeof(bf16))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));

constexpr int DOWN = 4, ACROSS = 16, SLICE = 16;  // a block's rows, pixels a row, and channels out
constexpr int PAIRS = 16;                         // of channels in, in a tile
constexpr int TILE = PAIRS * SLICE * 2;           // bf16 in a B
constexpr int STEPS = 6;                          // 3 taps across, 2 halves of the channels in
constexpr int STEP = 3 * TILE;                    // bf16 of weights
constexpr size_t HIDDEN = size_t(CHANNELS / SLICE) * STEPS * STEP;

// ---- rounding

// To the nearest, to even between two.
inline bf16 rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widened(bf16 value) {
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline Bf16s rounded(Vector v) {
#if defined(__AVX512BF16__)
    return (Bf16s)_mm512_cvtneps_pbh(v);
#else
    const Words bits = (Words)v;
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Bf16s);
#endif
}
inline Vector widened(Bf16s v) { return (Vector)(__builtin_convertvector(v, Words) << 16); }

// Stores channels of a pixel: rounded, and with PARTS = 2 the remainders behind all 64.
template <int PARTS>
inline void put(bf16* to, Vector v) {
    const Bf16s high = rounded(v);
    std::memcpy(to, &high, sizeof high);
    if (PARTS == 2) {
        const Bf16s low = rounded(v - widened(high));
        std::memcpy(to + CHANNELS, &low, sizeof low);
    }
}

// ---- the unit

// Denormals count as zero in this thread, as they always do in the unit.
class FlushDenormals {
public:
#if defined(__SSE2__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

private:
    const unsigned before_;
#endif
};

#if defined(VDSR_EMULATE_AMX)

// A thread's tile registers.
class Tiles {
public:
    static bool permitted() { return true; }

    template <int T>
    void zero() {
        std::memset(tiles_[T], 0, sizeof tiles_[T]);
    }
    // stride: bytes from one row of the tile to the next
    template <int T>
    void load(const void* from, size_t stride) {
        for (int row = 0; row < 16; ++row)
            std::memcpy(tiles_[T][row], static_cast<const char*>(from) + row * stride, 64);
    }
    template <int T>
    void store(void* to, size_t stride) const {
        for (int row = 0; row < 16; ++row)
            std::memcpy(static_cast<char*>(to) + row * stride, tiles_[T][row], 64);
    }
    // C += A B. The products of a pair's firsts and of its seconds are summed apart, from zero; a product of two bf16
    // is exact in fp32, so that it does not matter whether it is fused with its addition.
    template <int C, int A, int B>
    void dot() {
        for (int group = 0; group < SLICE / LANES; ++group) {
            Vector first[PAIRS], second[PAIRS];
            for (int pair = 0; pair < PAIRS; ++pair) {
                Words both;
                std::memcpy(&both, &tiles_[B][pair][group * LANES], sizeof both);
                first[pair] = (Vector)(both << 16);
                second[pair] = (Vector)(both & 0xffff0000);
            }
            for (int row = 0; row < 16; ++row) {
                Vector firsts = {}, seconds = {}, sum;
                for (int pair = 0; pair < PAIRS; ++pair) {
                    const uint32_t both = tiles_[A][row][pair];
                    firsts += widened(bf16(both)) * first[pair];
                    seconds += widened(bf16(both >> 16)) * second[pair];
                }
                std::memcpy(&sum, &tiles_[C][row][group * LANES], sizeof sum);
                sum += firsts + seconds;
                std::memcpy(&tiles_[C][row][group * LANES], &sum, sizeof sum);
            }
        }
    }

private:
    FlushDenormals flush_;
    alignas(64) uint32_t tiles_[8][16][16] = {};
};

#else

// A thread's tile registers, configured as long as this lives. The compiler knows nothing of them: nobody else in the
// thread may use them meanwhile.
class Tiles {
public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        static_assert(sizeof shape == 64, "the processor reads 64 bytes");
        asm volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    // Whether processor and system let this process use the unit; asks the system for it.
    static bool permitted() {
#if defined(__linux__) && defined(__x86_64__)
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return false;  // OSXSAVE: xgetbv may be asked
        unsigned low, high;
        asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        constexpr unsigned AVX512_STATE = 0xe6, TILE_STATE = 3u << 17;
        if ((low & (AVX512_STATE | TILE_STATE)) != (AVX512_STATE | TILE_STATE)) return false;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
        constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, AVX512F = 1u << 16;
        if ((d & (AMX_BF16 | AMX_TILE)) != (AMX_BF16 | AMX_TILE) || !(b & AVX512F)) return false;
        constexpr unsigned AVX512_BF16 = 1u << 5;
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512_BF16)) return false;
        // The state is 8 KB a thread; Linux makes room for it only in processes that ask
        // (https://docs.kernel.org/arch/x86/xstate.html).
        constexpr int REQUEST = 0x1023, TILE_DATA = 18;
        return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
        return false;
#endif
    }

    template <int T>
    void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    // stride: bytes from one row of the tile to the next
    template <int T>
    void load(const void* from, size_t stride) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
    }
    template <int T>
    void store(void* to, size_t stride) const {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
    }
    // C += A B
    template <int C, int A, int B>
    void dot() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }

private:
    FlushDenormals flush_;
};

#endif

// ---- a block

// The sums of a block: [row][pixel][channel].
struct Sums {
    alignas(64) float values[DOWN * ACROSS * SLICE];
};

// What one row of input gives to the rows of output that see it.
template <int ROW>
inline void input_row(Tiles& tiles, const char* pixels, size_t pixel_bytes) {
    tiles.load<4>(pixels, pixel_bytes);
    if constexpr (ROW < 4) tiles.dot<ROW, 4, 5>();
    if constexpr (ROW >= 1 && ROW < 5) tiles.dot<ROW - 1, 4, 6>();
    if constexpr (ROW >= 2) tiles.dot<ROW - 2, 4, 7>();
}

// One slice of channels out. pixels: the first of the 6 x 18 that the block sees, rows `row_bytes` apart.
// meanwhile(step): other work, done beside the unit's.
template <int PARTS, class Meanwhile>
inline void convolve(Tiles& tiles, const char* pixels, size_t row_bytes, const bf16* weights, Sums& sums,
                     Meanwhile&& meanwhile) {
    constexpr size_t PART_BYTES = CHANNELS * sizeof(bf16), PIXEL_BYTES = PARTS * PART_BYTES;
    tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
    for (int step = 0; step < STEPS; ++step) {
        const bf16* taps = weights + step * STEP;
        tiles.load<5>(taps, 64), tiles.load<6>(taps + TILE, 64), tiles.load<7>(taps + 2 * TILE, 64);
        for (int part = 0; part < PARTS; ++part) {
            const char* row = pixels + step / 2 * PIXEL_BYTES + part * PART_BYTES + step % 2 * (PART_BYTES / 2);
            input_row<0>(tiles, row, PIXEL_BYTES);
            input_row<1>(tiles, row + row_bytes, PIXEL_BYTES);
            input_row<2>(tiles, row + 2 * row_bytes, PIXEL_BYTES);
            input_row<3>(tiles, row + 3 * row_bytes, PIXEL_BYTES);
            input_row<4>(tiles, row + 4 * row_bytes, PIXEL_BYTES);
            input_row<5>(tiles, row + 5 * row_bytes, PIXEL_BYTES);
        }
        meanwhile(step);
    }
    constexpr int ROW = ACROSS * SLICE;
    tiles.store<0>(sums.values, 64), tiles.store<1>(sums.values + ROW, 64);
    tiles.store<2>(sums.values + 2 * ROW, 64), tiles.store<3>(sums.values + 3 * ROW, 64);
}

// ---- weights

// value(in, out): of the 32 channels in and 16 out of a tile
template <class Value>
inline void weight_tile(bf16* tile, Value&& value) {
    for (int in = 0; in < 2 * PAIRS; ++in)
        for (int out = 0; out < SLICE; ++out) tile[(in / 2 * SLICE + out) * 2 + in % 2] = rounded(value(in, out));
}

// w: (64 out, 64 in, 3, 3), to HIDDEN
inline void arrange_weights(const float* w, bf16* to) {
    for (int slice = 0; slice < CHANNELS / SLICE; ++slice)
        for (int step = 0; step < STEPS; ++step)
            for (int down = 0; down < 3; ++down, to += TILE)
                weight_tile(to, [&](int in, int out) {
                    const int channel_in = step % 2 * 2 * PAIRS + in, tap = down * 3 + step / 2;
                    return w[(size_t(slice * SLICE + out) * CHANNELS + channel_in) * TAPS + tap];
                });
}

}  // namespace vdsr
