// How does one of the network's hidden layers, 64 to 64 channels, run fast in fp32?
//
// By Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// CVPR 2016, section 4.3): a 4 x 4 tile of the output takes 36 products a pair of channels instead of 144.
//
//        6 x 6 pixels of the input            36 points, each a          4 x 4 pixels of
//        (4 x 4 and one around)               matrix product             the output
//
//        . . . . . .                          M[p] = V[p] U[p]
//        . o o o o .     V = B'dB        (tiles x 64) (64 x 64)          o o o o
//        . o o o o .   ------------->    p = 0 ... 35                    o o o o
//        . o o o o .                                      Y = A'MA      o o o o
//        . o o o o .                     U = G w G'     ------------->   o o o o
//        . . . . . .                     (once a set of weights)
//
// Layout. A picture's activations are pixels of 64 floats, row by row ("NHWC"), so that a vector register holds
// neighbouring channels of one pixel and every load is whole. A Batch of up to TILES tiles shares each point's U:
//     V, M   [36 points][TILES tiles + one cache line][64 channels], M in the place of V
//     U      [36 points][64 channels in][64 channels out]
// The cache line between points keeps the 36 streams of a transform out of the same cache sets.
//
// The result of a tile depends on its 6 x 6 pixels alone, to the bit, and not on its place in a Batch.
#pragma once

#include "tiles.h"

namespace vdsr {

constexpr int OUT = 4, IN = OUT + 2;      // a tile's side after and before
constexpr int POINTS = IN * IN;
constexpr int TILES = 24;
constexpr size_t STRIDE = size_t(TILES) * CHANNELS + 16;  // floats from one point of V or M to the next
constexpr size_t TRANSFORMED = size_t(POINTS) * CHANNELS * CHANNELS;
constexpr int COLUMNS = LANES == 8 ? 2 : 4;  // registers of output channels in a GEMM's block

// ---- the one-dimensional transforms; each two-dimensional one does its columns, then its rows

inline void input_transform(const Vector d[IN], Vector v[IN]) {  // B'd
    const Vector a = fma(-4, d[2], d[4]), b = fma(-4, d[1], d[3]), c = d[4] - d[2], e = d[3] - d[1];
    v[0] = fma(4, d[0], fma(-5, d[2], d[4]));
    v[1] = a + b;
    v[2] = a - b;
    v[3] = fma(2, e, c);
    v[4] = fma(-2, e, c);
    v[5] = fma(4, d[1], fma(-5, d[3], d[5]));
}

inline void output_transform(const Vector m[IN], Vector y[OUT]) {  // A'm
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = fma(2, e, b);
    y[2] = fma(4, c, a);
    y[3] = fma(8, e, b) + m[5];
}

inline void output_adjoint(const Vector y[OUT], Vector m[IN]) {  // Ay, for the gradient
    const Vector a = y[0] + y[2], b = y[1] + y[3], c = fma(4, y[2], y[0]), e = fma(8, y[3], y[1] + y[1]);
    m[0] = y[0];
    m[1] = a + b;
    m[2] = a - b;
    m[3] = c + e;
    m[4] = c - e;
    m[5] = y[3];
}

inline void weight_transform(const Vector w[3], Vector u[IN]) {  // Gw
    const Vector a = (w[0] + w[2]) * (-1.0f / 6), b = w[1] * (-1.0f / 6);
    const Vector c = fma(1.0f / 24, w[0], w[2] * (1.0f / 6)), e = w[1] * (1.0f / 12);
    u[0] = w[0] * 0.25f;
    u[1] = a + b;
    u[2] = a - b;
    u[3] = c + e;
    u[4] = c - e;
    u[5] = w[2];
}

inline void weight_adjoint(const Vector u[IN], Vector w[3]) {  // G'u, for the gradient
    const Vector a = u[1] + u[2], b = u[1] - u[2], c = u[3] + u[4], e = u[3] - u[4];
    w[0] = fma(0.25f, u[0], fma(-1.0f / 6, a, c * (1.0f / 24)));
    w[1] = fma(1.0f / 12, e, b * (-1.0f / 6));
    w[2] = fma(1.0f / 6, c - a, u[5]);
}

// ---- a batch of tiles

struct Batch {  // 225 KB, so that it and U stay in the level-2 cache
    alignas(64) float points[POINTS * STRIDE];
};

// rows[i]: where row i of the tile's 6 x 6 pixels begins
inline void transform_input(const float* const rows[IN], float* v) {
    transform_tile<IN>(
        rows, GROUPS, [](const Vector* d, Vector* v) { input_transform(d, v); },
        [=](int point, int channel, Vector value) { store(v + point * STRIDE + channel, value); });
}

// finish(y, x, channel, vector): what to do with LANES channels from `channel` on of the tile's pixel (y, x)
template <class Finish>
inline void transform_output(const float* m, int height, int width, Finish&& finish) {
    for (int group = 0; group < GROUPS; ++group) {
        Vector half[OUT][IN];  // [pixel down][point across]
        for (int q = 0; q < IN; ++q) {
            Vector points[IN], column[OUT];
            for (int p = 0; p < IN; ++p) points[p] = load(m + (p * IN + q) * STRIDE + group * LANES);
            output_transform(points, column);
            for (int y = 0; y < OUT; ++y) half[y][q] = column[y];
        }
        for (int y = 0; y < height; ++y) {
            Vector row[OUT];
            output_transform(half[y], row);
            for (int x = 0; x < width; ++x) finish(y, x, group * LANES, row[x]);
        }
    }
}

// rows[y]: where row y of the tile's 4 x 4 gradients begins
inline void transform_gradient(const float* const rows[OUT], float* m) {
    for (int group = 0; group < GROUPS; ++group) {
        Vector half[IN][OUT];
        for (int x = 0; x < OUT; ++x) {
            Vector g[OUT], column[IN];
            for (int y = 0; y < OUT; ++y) g[y] = load(rows[y] + x * CHANNELS + group * LANES);
            output_adjoint(g, column);
            for (int p = 0; p < IN; ++p) half[p][x] = column[p];
        }
        for (int p = 0; p < IN; ++p) {
            Vector row[IN];
            output_adjoint(half[p], row);
            for (int q = 0; q < IN; ++q) store(m + (p * IN + q) * STRIDE + group * LANES, row[q]);
        }
    }
}

// ---- M[p] = V[p] U[p], in V's place: BLOCK tiles by COLUMNS registers of output channels stay in registers

template <int BLOCK>
inline void multiply_block(float* v, const float* u, const Live& channels) {
    alignas(64) float results[BLOCK * CHANNELS];
    float* to = COLUMNS == GROUPS ? v : results;  // where one pass gives all channels, V is no longer needed after it
    for (int o = 0; o < CHANNELS; o += COLUMNS * LANES) {
        Vector sum[BLOCK][COLUMNS];
#pragma GCC unroll 8
        for (int t = 0; t < BLOCK; ++t)
            for (int k = 0; k < COLUMNS; ++k) sum[t][k] = Vector{};
        for (int i = 0; i < channels.count; ++i) {
            const size_t c = channels.list[i];
            Vector weight[COLUMNS];
            for (int k = 0; k < COLUMNS; ++k) weight[k] = load(u + c * CHANNELS + o + k * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < BLOCK; ++t) {
                const Vector value = every(v[t * CHANNELS + c]);
                for (int k = 0; k < COLUMNS; ++k) sum[t][k] = fma(value, weight[k], sum[t][k]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < BLOCK; ++t)
            for (int k = 0; k < COLUMNS; ++k) store(to + t * CHANNELS + o + k * LANES, sum[t][k]);
    }
    if (to != v) std::memcpy(v, results, sizeof results);
}

// channels: in, that are not zero in all tiles
inline void multiply(float* v, const float* u, const Live& channels, int tiles) {
    constexpr int BLOCK = 6;
    for (int p = 0; p < POINTS; ++p) {
        const float* weights = u + size_t(p) * CHANNELS * CHANNELS;
        float* tile = v + p * STRIDE;
        float* const end = tile + tiles * CHANNELS;
        for (; tile + BLOCK * CHANNELS <= end; tile += BLOCK * CHANNELS) multiply_block<BLOCK>(tile, weights, channels);
        for (; tile + 2 * CHANNELS <= end; tile += 2 * CHANNELS) multiply_block<2>(tile, weights, channels);
        for (; tile < end; tile += CHANNELS) multiply_block<1>(tile, weights, channels);
    }
}

// ---- dU[p] += V[p]' M[p]: the gradient of the weights, summed over the tiles

inline void accumulate(const float* v, const float* m, float* du, int tiles) {
    constexpr int BLOCK = 4;  // channels in
    for (int p = 0; p < POINTS; ++p)
        for (int c = 0; c < CHANNELS; c += BLOCK)
            for (int o = 0; o < CHANNELS; o += COLUMNS * LANES) {
                float* to = du + (size_t(p) * CHANNELS + c) * CHANNELS + o;
                Vector sum[BLOCK][COLUMNS];
                for (int i = 0; i < BLOCK; ++i)
                    for (int k = 0; k < COLUMNS; ++k) sum[i][k] = load(to + i * CHANNELS + k * LANES);
                for (int t = 0; t < tiles; ++t) {
                    Vector gradient[COLUMNS];
                    for (int k = 0; k < COLUMNS; ++k)
                        gradient[k] = load(m + p * STRIDE + t * CHANNELS + o + k * LANES);
                    for (int i = 0; i < BLOCK; ++i) {
                        const Vector value = every(v[p * STRIDE + t * CHANNELS + c + i]);
                        for (int k = 0; k < COLUMNS; ++k) sum[i][k] = fma(value, gradient[k], sum[i][k]);
                    }
                }
                for (int i = 0; i < BLOCK; ++i)
                    for (int k = 0; k < COLUMNS; ++k) store(to + i * CHANNELS + k * LANES, sum[i][k]);
            }
}

// ---- weights: w (64 out, 64 in, 3, 3) and U

// turned: the layer's adjoint, which carries gradients back (channels swapped, kernel turned by 180 degrees)
inline void transform_weights(const float* w, float* u, bool turned) {
    for (int in = 0; in < CHANNELS; ++in)
        for (int group = 0; group < GROUPS; ++group) {
            alignas(64) float kernel[9][LANES];
            for (int lane = 0; lane < LANES; ++lane) {
                const int out = group * LANES + lane;
                for (int tap = 0; tap < 9; ++tap)
                    kernel[tap][lane] = turned ? w[(size_t(in) * CHANNELS + out) * 9 + 8 - tap]
                                               : w[(size_t(out) * CHANNELS + in) * 9 + tap];
            }
            Vector half[IN][3];
            for (int x = 0; x < 3; ++x) {
                const Vector taps[3] = {load(kernel[x]), load(kernel[3 + x]), load(kernel[6 + x])};
                Vector column[IN];
                weight_transform(taps, column);
                for (int p = 0; p < IN; ++p) half[p][x] = column[p];
            }
            for (int p = 0; p < IN; ++p) {
                Vector row[IN];
                weight_transform(half[p], row);
                for (int q = 0; q < IN; ++q)
                    store(u + (size_t(p * IN + q) * CHANNELS + in) * CHANNELS + group * LANES, row[q]);
            }
        }
}

inline void transform_weight_gradient(const float* du, float* dw) {
    for (int in = 0; in < CHANNELS; ++in)
        for (int group = 0; group < GROUPS; ++group) {
            Vector half[3][IN];
            for (int q = 0; q < IN; ++q) {
                Vector points[IN], column[3];
                for (int p = 0; p < IN; ++p)
                    points[p] = load(du + (size_t(p * IN + q) * CHANNELS + in) * CHANNELS + group * LANES);
                weight_adjoint(points, column);
                for (int y = 0; y < 3; ++y) half[y][q] = column[y];
            }
            for (int y = 0; y < 3; ++y) {
                Vector row[3];
                weight_adjoint(half[y], row);
                for (int x = 0; x < 3; ++x)
                    for (int lane = 0; lane < LANES; ++lane)
                        dw[(size_t(group * LANES + lane) * CHANNELS + in) * 9 + y * 3 + x] = row[x][lane];
            }
        }
}

// ---- a network

// The weights of all layers, from one behind the other as (out, in, 3, 3).
struct Weights {
    int depth;
    std::vector<float> first, last, last_turned;  // [tap][64]
    Floats hidden_layers;                         // [hidden layer] U

    // turned: the hidden layers' adjoints, for the way back
    Weights(const float* w, int depth, bool turned, int threads)
        : depth(depth), first(by_tap(w)), last(by_tap(w + TAPS * CHANNELS + hidden() * WEIGHTS)),
          last_turned(TAPS * CHANNELS), hidden_layers(floats(hidden() * TRANSFORMED)) {
        for (int i = 0; i < TAPS; ++i)
            std::copy_n(&last[i * CHANNELS], CHANNELS, &last_turned[(TAPS - 1 - i) * CHANNELS]);
        share(int(hidden()), threads, [&](int layer) {
            transform_weights(w + TAPS * CHANNELS + layer * WEIGHTS, hidden_layers.get() + layer * TRANSFORMED, turned);
        });
    }
    size_t hidden() const { return size_t(depth) - 2; }
    const float* layer(size_t i) const { return hidden_layers.get() + i * TRANSFORMED; }
};

}  // namespace vdsr
