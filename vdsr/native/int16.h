// How does a hidden layer run in 16-bit integers, nearly twice as fast as in fp32 and with hardly a difference?
//
// By Winograd's minimal filtering F(6x6, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// CVPR 2016, section 4; points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity): a 6 x 6 tile of the output takes 64 products a
// pair of channels instead of 324. The transforms are fp32. Only what is multiplied is rounded to integers; their sums
// are exact.
//
//        8 x 8 pixels, fp32          64 points, integers, each a           6 x 6 pixels, fp32
//                                       matrix product
//        V = B'dB  ------->  largest of 64 channels: a unit  ------->  M[p] = V[p] U[p]  ------->  Y = A'MA
//                            V[p] / unit, rounded                      times V's and U's unit
//
// Units. What a tile has at a point, 64 channels, shares one unit, in which the largest of them is 8,191. So a dark, flat
// part of a picture is held as finely as a bright edge beside it, and points that see no mean as finely as the one that
// does. U has a unit for each point and channel out. No sum of products leaves 32 bits: there are 64 of them, V is at
// most 8,191, and U's magnitudes add up to at most 2^18.
//
// What comes of it is not what fp32 gives, but costs less than 0.001 dB of PSNR on average; docs/architecture.md has the
// figures. What is no number makes a unit that is none, and so stays to be seen.
//
// Layout. Activations are pixels of 64 floats, as in winograd.h. Integers lie in pairs, since one instruction multiplies
// two and adds both; a pair's halves are of two neighbouring registers, so that shifting one over the other makes pairs:
//     V      [64 points][TILES tiles + one cache line][32 pairs of channels in]
//     U      [slice of channels out][64 points][32 pairs of channels in][SLICE channels out] pairs
//     M      [64 points][TILES tiles + one cache line][SLICE channels out], one slice at a time
//
// The result of a tile depends on its 8 x 8 pixels alone, to the bit, and not on its place in a Batch.
#pragma once

#include <cmath>
#include <cstdint>

#include "tiles.h"

namespace vdsr {

constexpr int OUT = 6, IN = OUT + 2;  // a tile's side after and before
constexpr int POINTS = IN * IN;
constexpr int TILES = 30;
constexpr int PAIRS = CHANNELS / 2;
constexpr int COLUMNS = 2;                       // registers of channels out in a block of products
constexpr int BLOCK = LANES == 16 ? 12 : 6;      // tiles in it
constexpr int SLICE = COLUMNS * LANES;           // channels out
constexpr int SLICES = CHANNELS / SLICE;
constexpr size_t V_STRIDE = size_t(TILES) * PAIRS + 16;  // from one point to the next
constexpr size_t M_STRIDE = size_t(TILES) * SLICE + 16;
constexpr size_t TRANSFORMED = size_t(POINTS) * PAIRS * CHANNELS;  // pairs of a layer's U
constexpr size_t UNITS = size_t(POINTS) * CHANNELS;                // of a layer's U
constexpr float LARGEST = 8191;                                    // of V
constexpr double LARGEST_SUM = (1 << 18) - CHANNELS;               // of U's magnitudes, before they are rounded

typedef Bits Integers;
typedef int32_t UnalignedIntegers __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));

inline Integers load(const int32_t* from) { return *reinterpret_cast<const UnalignedIntegers*>(from); }
inline void store(int32_t* to, Integers v) { *reinterpret_cast<UnalignedIntegers*>(to) = v; }

// sum + a.low b.low + a.high b.high, in each lane
inline Integers dot(Integers sum, Integers a, Integers b) {
#if defined(__AVX512VNNI__)
    return (Integers)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sum + (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

inline int32_t largest(Integers v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)v);
#elif defined(__AVX2__)
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
#else
    int32_t most = v[0];
    for (int lane = 1; lane < LANES; ++lane) most = std::max(most, v[lane]);
    return most;
#endif
}

// ---- the one-dimensional transforms; each two-dimensional one does its columns, then its rows

inline void input_transform(const Vector d[IN], Vector v[IN]) {  // B'd
    const Vector even1 = fma(-4.25f, d[4], d[2] + d[6]), odd1 = fma(-4.25f, d[3], d[1] + d[5]);
    const Vector even2 = fma(0.25f, d[2], fma(-1.25f, d[4], d[6]));
    const Vector odd2 = fma(0.5f, d[1], fma(-2.5f, d[3], d[5] + d[5]));
    const Vector even_half = fma(4, d[2], fma(-5, d[4], d[6]));
    const Vector odd_half = fma(0.5f, d[5], fma(-2.5f, d[3], d[1] + d[1]));
    v[0] = fma(5.25f, d[4] - d[2], d[0] - d[6]);
    v[1] = even1 + odd1;
    v[2] = even1 - odd1;
    v[3] = even2 + odd2;
    v[4] = even2 - odd2;
    v[5] = even_half + odd_half;
    v[6] = even_half - odd_half;
    v[7] = fma(5.25f, d[3] - d[5], d[7] - d[1]);
}

inline void output_transform(const Vector m[IN], Vector y[OUT]) {  // A'm
    const Vector even1 = m[1] + m[2], odd1 = m[1] - m[2];
    const Vector even2 = m[3] + m[4], odd2 = m[3] - m[4];
    const Vector even_half = m[5] + m[6], odd_half = m[5] - m[6];
    y[0] = m[0] + even1 + even2 + even_half;
    y[1] = fma(2, odd2, fma(1.0f / 2, odd_half, odd1));
    y[2] = fma(4, even2, fma(1.0f / 4, even_half, even1));
    y[3] = fma(8, odd2, fma(1.0f / 8, odd_half, odd1));
    y[4] = fma(16, even2, fma(1.0f / 16, even_half, even1));
    y[5] = fma(32, odd2, fma(1.0f / 32, odd_half, odd1)) + m[7];
}

inline void weight_transform(const double w[3], double u[IN]) {  // Gw
    const double even1 = (w[0] + w[2]) * (-2.0 / 9), odd1 = w[1] * (-2.0 / 9);
    const double even2 = w[0] / 90 + w[2] * (2.0 / 45), odd2 = w[1] / 45;
    const double even_half = w[0] * (32.0 / 45) + w[2] * (8.0 / 45), odd_half = w[1] * (16.0 / 45);
    u[0] = w[0];
    u[1] = even1 + odd1;
    u[2] = even1 - odd1;
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
    u[5] = even_half + odd_half;
    u[6] = even_half - odd_half;
    u[7] = w[2];
}

// ---- a batch of tiles

struct Batch {
    alignas(64) int32_t v[POINTS * V_STRIDE];
    alignas(64) int32_t m[POINTS * M_STRIDE];
    alignas(64) float units[TILES * POINTS];      // of V
    alignas(64) float tile[POINTS * CHANNELS];    // V of one, before it is rounded
};

// Where a channel lies among V's pairs: V[p][tile][pair], its lower half or its upper one.
inline int pair_of(int channel) { return channel / (2 * LANES) * LANES + channel % LANES; }
inline bool is_upper(int channel) { return channel / LANES % 2; }

// What is live of the V of some tiles: pairs, and as many registers of them as reach to the last (pairs that are seldom
// live lie last).
struct Share {
    Live pairs;
    int registers = 1;

    void add(const Live& channels) {
        for (int i = 0; i < channels.count; ++i) {
            const int pair = pair_of(int(channels.list[i]));
            if (!pairs.has[pair]) pairs.add(pair);
            registers = std::max(registers, pair / LANES + 1);
        }
    }
};

// groups: so many registers of channels, from the first on
inline void transform_input(const float* const rows[IN], int groups, float* tile) {
    transform_tile<IN>(
        rows, groups, [](const Vector* d, Vector* v) { input_transform(d, v); },
        [=](int point, int channel, Vector value) { store(tile + point * CHANNELS + channel, value); });
}

// tile[point][channel] to V and its units; REGISTERS of pairs, from the first on
template <int REGISTERS>
inline void round_to_integers(const float* tile, int32_t* v, float* units) {
    constexpr float LEAST = 1e-30f;           // a unit of it is as good as none
    constexpr float SHIFT = 3 << 22;          // beyond it a float's last bit is a whole one, and its lowest 16 the integer
    alignas(64) float most[POINTS], factors[POINTS];
    for (int p = 0; p < POINTS; ++p) {
        Integers bits = {};  // of magnitudes: as integers they are in order, and what is no number is the largest
        for (int group = 0; group < 2 * REGISTERS; ++group) {
            const Integers magnitude = (Integers)load(tile + p * CHANNELS + group * LANES) & 0x7fffffff;
            bits = magnitude > bits ? magnitude : bits;
        }
        const int32_t value = largest(bits);
        std::memcpy(most + p, &value, sizeof value);
    }
    for (int p = 0; p < POINTS; p += LANES) {
        Vector m = load(most + p);
        m = m < LEAST ? every(LEAST) : m;
        store(units + p, m * (1 / LARGEST));
        store(factors + p, LARGEST / m);
    }
    for (int p = 0; p < POINTS; ++p) {
        for (int i = 0; i < REGISTERS; ++i) {
            const float* from = tile + p * CHANNELS + i * 2 * LANES;
            const Integers low = (Integers)fma(factors[p], load(from), every(SHIFT));
            const Integers high = (Integers)fma(factors[p], load(from + LANES), every(SHIFT));
            store(v + p * V_STRIDE + i * LANES, (low & 0xffff) | high << 16);
        }
    }
}

template <int MOST = PAIRS / LANES>
inline void round_to_integers(const float* tile, int registers, int32_t* v, float* units) {
    if constexpr (MOST > 1)
        if (registers < MOST) return round_to_integers<MOST - 1>(tile, registers, v, units);
    round_to_integers<MOST>(tile, v, units);
}

// ---- M[p] = V[p] U[p] for one slice: BLOCK tiles by COLUMNS registers of channels out stay in registers

template <int BLOCK>
inline void multiply_block(const int32_t* v, const int32_t* u, const Live& pairs, int32_t* m) {
    Integers sum[BLOCK][COLUMNS];
#pragma GCC unroll 12
    for (int t = 0; t < BLOCK; ++t)
        for (int k = 0; k < COLUMNS; ++k) sum[t][k] = Integers{};
    for (int i = 0; i < pairs.count; ++i) {
        const size_t pair = pairs.list[i];
        Integers weight[COLUMNS];
        for (int k = 0; k < COLUMNS; ++k) weight[k] = load(u + pair * SLICE + k * LANES);
#pragma GCC unroll 12
        for (int t = 0; t < BLOCK; ++t) {
            const Integers value = v[t * PAIRS + pair] - Integers{};
            for (int k = 0; k < COLUMNS; ++k) sum[t][k] = dot(sum[t][k], value, weight[k]);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < BLOCK; ++t)
        for (int k = 0; k < COLUMNS; ++k) store(m + t * SLICE + k * LANES, sum[t][k]);
}

// shares: of each BLOCK of tiles, and of them all
inline void multiply(const int32_t* v, const int32_t* u, const Share shares[], const Share& all, int32_t* m,
                     int tiles) {
    for (int p = 0; p < POINTS; ++p, v += V_STRIDE, u += PAIRS * SLICE, m += M_STRIDE) {
        // U comes from level 3. What is asked for beyond its end is the next slice's beginning, or nobody's.
        constexpr int AHEAD = 2, LINE = 64 / sizeof(int32_t);
        for (int i = 0; i < all.pairs.count; ++i)
            for (int k = 0; k < SLICE; k += LINE)
                __builtin_prefetch(u + (AHEAD * PAIRS + all.pairs.list[i]) * SLICE + k);
        int t = 0;
        for (; t + BLOCK <= tiles; t += BLOCK)
            multiply_block<BLOCK>(v + t * PAIRS, u, shares[t / BLOCK].pairs, m + t * SLICE);
        const Live& last = shares[t / BLOCK].pairs;
        for (; t + 2 <= tiles; t += 2) multiply_block<2>(v + t * PAIRS, u, last, m + t * SLICE);
        for (; t < tiles; ++t) multiply_block<1>(v + t * PAIRS, u, last, m + t * SLICE);
    }
}

// finish(y, x, channel, vector): what to do with LANES channels from the slice's `channel` on of the tile's pixel (y, x)
// v_units: [point]; u_units: [point][SLICE]
template <class Finish>
inline void transform_output(const int32_t* m, const float* v_units, const float* u_units, Finish&& finish) {
    for (int channel = 0; channel < SLICE; channel += LANES) {
        Vector half[OUT][IN];  // [pixel down][point across]
        for (int q = 0; q < IN; ++q) {
            Vector points[IN], column[OUT];
            for (int p = 0; p < IN; ++p) {
                const int point = p * IN + q;
                const Vector sum = __builtin_convertvector(load(m + point * M_STRIDE + channel), Vector);
                points[p] = sum * (v_units[point] * load(u_units + point * SLICE + channel));
            }
            output_transform(points, column);
            for (int y = 0; y < OUT; ++y) half[y][q] = column[y];
        }
        for (int y = 0; y < OUT; ++y) {
            Vector row[OUT];
            output_transform(half[y], row);
            for (int x = 0; x < OUT; ++x) finish(y, x, channel, row[x]);
        }
    }
}

// ---- weights: w (64 out, 64 in, 3, 3), U and its units [slice][point][SLICE]

inline void transform_weights(const float* w, int32_t* u, float* units) {
    for (int out = 0; out < CHANNELS; ++out) {
        static_assert(CHANNELS * POINTS * sizeof(double) <= 1 << 15, "on the stack");
        double points[CHANNELS][IN][IN];
        for (int in = 0; in < CHANNELS; ++in) {
            const float* kernel = w + (size_t(out) * CHANNELS + in) * TAPS;
            double half[3][IN];  // [pixel across][point down]
            for (int x = 0; x < 3; ++x) {
                const double column[3] = {kernel[x], kernel[3 + x], kernel[6 + x]};
                weight_transform(column, half[x]);
            }
            for (int p = 0; p < IN; ++p) {
                const double row[3] = {half[0][p], half[1][p], half[2][p]};
                weight_transform(row, points[in][p]);
            }
        }
        for (int p = 0; p < POINTS; ++p) {
            double sum = 0, most = 0;
            for (int in = 0; in < CHANNELS; ++in) {
                const double magnitude = std::abs((&points[in][0][0])[p]);
                sum += magnitude;
                most = std::max(most, magnitude);
            }
            const double unit = sum == 0 ? 1 : std::max(sum / LARGEST_SUM, most / INT16_MAX);
            const size_t at = size_t(out / SLICE) * POINTS + p;
            units[at * SLICE + out % SLICE] = float(unit);
            for (int in = 0; in < CHANNELS; ++in) {
                const double value = (&points[in][0][0])[p] / unit;
                const auto integer = uint32_t(std::isfinite(value) ? std::lrint(value) : 0);
                int32_t& pair = u[(at * PAIRS + pair_of(in)) * SLICE + out % SLICE];
                pair |= is_upper(in) ? int32_t(integer << 16) : int32_t(integer & 0xffff);
            }
        }
    }
}

}  // namespace vdsr
