// How is the network trained on a processor without matrix units? A picture of the batch at a time goes through all
// layers forward, or all layers backward, in one thread; the pictures' gradients are then added in their order. So
// the result does not depend on the number of threads, and a layer's activations are still in the cache when the next
// one reads them.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <sys/mman.h>
#include <thread>
#include <vector>

#include "winograd.h"

namespace vdsr {
namespace {

constexpr int TAPS = 9;

struct Size {
    int height, width;
    size_t pixels() const { return size_t(height) * width; }
    int across() const { return (width + OUT - 1) / OUT; }
    int tiles() const { return across() * ((height + OUT - 1) / OUT); }
};

struct Free {
    void operator()(void* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

Floats floats(size_t count) {
    constexpr size_t PAGE = size_t(2) << 20;
    const size_t bytes = (count * sizeof(float) + PAGE - 1) / PAGE * PAGE;
    void* p = std::aligned_alloc(PAGE, bytes);
    if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return Floats(static_cast<float*>(p));
}

// Calls work(item) for 0 <= item < items, each once; throws what one of them throws.
template <class Work>
void share(int items, int threads, Work&& work) {
    std::atomic<int> next{0};
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure;
    auto run = [&] {
        try {
            for (int item; (item = next++) < items;) work(item);
        } catch (...) {
            if (!failed.test_and_set()) failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    for (int i = 1; i < std::min(threads, items); ++i) others.emplace_back(run);
    run();
    for (auto& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

// Copies a window of pixels, with zeros where it leaves the picture; sides in pixels.
void window(const float* x, Size size, int top, int left, int side, float* to) {
    for (int i = 0; i < side; ++i) {
        const int y = top + i, first = std::max(0, -left), last = std::min(side, size.width - left);
        float* row = to + size_t(i) * side * CHANNELS;
        std::memset(row, 0, size_t(side) * CHANNELS * sizeof(float));
        if (y < 0 || y >= size.height || last <= first) continue;
        std::memcpy(row + first * CHANNELS, x + (size_t(y) * size.width + left + first) * CHANNELS,
                    size_t(last - first) * CHANNELS * sizeof(float));
    }
}

// The rows of a window: in the picture itself where it is inside, else in `copy`.
template <int SIDE>
void rows_of(const float* x, Size size, int top, int left, float* copy, const float* rows[SIDE]) {
    const bool inside = top >= 0 && left >= 0 && top + SIDE <= size.height && left + SIDE <= size.width;
    if (!inside) window(x, size, top, left, SIDE, copy);
    for (int i = 0; i < SIDE; ++i)
        rows[i] = inside ? x + (size_t(top + i) * size.width + left) * CHANNELS : copy + i * SIDE * CHANNELS;
}

struct Scratch {
    Batch batch, gradient;
    alignas(64) float copy[IN * IN * CHANNELS];
    alignas(64) float du[TRANSFORMED];
};

Scratch& scratch() {  // kept by the thread: the caller's stays warm from layer to layer
    struct Delete {
        void operator()(Scratch* s) const { s->~Scratch(), std::free(s); }
    };
    static thread_local std::unique_ptr<Scratch, Delete> own;
    if (!own) {
        void* p = std::aligned_alloc(4096, (sizeof(Scratch) + 4095) / 4096 * 4096);
        if (!p) throw std::bad_alloc();
        own.reset(new (p) Scratch);
    }
    return *own;
}

// A hidden layer over a picture; finish(pixel, channel, vector) stores it.
template <class Finish>
void convolve(const float* x, const float* u, Size size, Finish&& finish) {
    Scratch& s = scratch();
    for (int first = 0; first < size.tiles(); first += TILES) {
        const int tiles = std::min(TILES, size.tiles() - first);
        for (int t = 0; t < tiles; ++t) {
            const int top = (first + t) / size.across() * OUT, left = (first + t) % size.across() * OUT;
            const float* rows[IN];
            rows_of<IN>(x, size, top - 1, left - 1, s.copy, rows);
            transform_input(rows, s.batch.points + t * CHANNELS);
        }
        multiply(s.batch.points, u, tiles);
        for (int t = 0; t < tiles; ++t) {
            const int top = (first + t) / size.across() * OUT, left = (first + t) % size.across() * OUT;
            transform_output(s.batch.points + t * CHANNELS, std::min(OUT, size.height - top),
                             std::min(OUT, size.width - left), [&](int y, int x, int channel, Vector v) {
                                 finish((size_t(top + y) * size.width + left + x) * CHANNELS + channel, v);
                             });
        }
    }
}

// dw (64, 64, 3, 3) of a hidden layer from its input and the gradient of what came before its ReLU.
void weight_gradient(const float* x, const float* gradient, Size size, float* dw) {
    Scratch& s = scratch();
    std::memset(s.du, 0, sizeof s.du);
    for (int first = 0; first < size.tiles(); first += TILES) {
        const int tiles = std::min(TILES, size.tiles() - first);
        for (int t = 0; t < tiles; ++t) {
            const int top = (first + t) / size.across() * OUT, left = (first + t) % size.across() * OUT;
            const float* rows[IN];
            rows_of<IN>(x, size, top - 1, left - 1, s.copy, rows);
            transform_input(rows, s.batch.points + t * CHANNELS);
            rows_of<OUT>(gradient, size, top, left, s.copy, rows);
            transform_gradient(rows, s.gradient.points + t * CHANNELS);
        }
        accumulate(s.batch.points, s.gradient.points, s.du, tiles);
    }
    transform_weight_gradient(s.du, dw);
}

// The nine pixels around one of a plane, zeros outside.
void around(const float* plane, Size size, int y, int x, float taps[TAPS]) {
    for (int i = 0; i < TAPS; ++i) {
        const int yy = y + i / 3 - 1, xx = x + i % 3 - 1;
        const bool inside = yy >= 0 && xx >= 0 && yy < size.height && xx < size.width;
        taps[i] = inside ? plane[size_t(yy) * size.width + xx] : 0.0f;
    }
}

// A plane to 64 channels, finish(pixel, channel, vector): the first layer, and the last one's adjoint. w [tap][64].
template <class Finish>
void expand(const float* plane, const float* w, Size size, Finish&& finish) {
    float taps[TAPS];
    for (int y = 0; y < size.height; ++y)
        for (int x = 0; x < size.width; ++x) {
            around(plane, size, y, x, taps);
            for (int channel = 0; channel < CHANNELS; channel += LANES) {
                Vector sum = {};
                for (int i = 0; i < TAPS; ++i) sum += every(taps[i]) * load(w + i * CHANNELS + channel);
                finish((size_t(y) * size.width + x) * CHANNELS + channel, sum);
            }
        }
}

// dw [tap][64], summed: how a plane and 64 channels go together at each offset.
void correlate(const float* plane, const float* x, Size size, float* dw) {
    float taps[TAPS];
    Vector sum[TAPS][GROUPS] = {};
    for (int y = 0; y < size.height; ++y)
        for (int column = 0; column < size.width; ++column) {
            around(plane, size, y, column, taps);
            const float* pixel = x + (size_t(y) * size.width + column) * CHANNELS;
            for (int group = 0; group < GROUPS; ++group) {
                const Vector v = load(pixel + group * LANES);
                for (int i = 0; i < TAPS; ++i) sum[i][group] += every(taps[i]) * v;
            }
        }
    for (int i = 0; i < TAPS; ++i)
        for (int group = 0; group < GROUPS; ++group) store(dw + i * CHANNELS + group * LANES, sum[i][group]);
}

float total(Vector v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
    return sum;
}

// 64 channels to a plane: the last layer. w [tap][64].
void contract(const float* x, const float* w, Size size, float* plane) {
    for (int y = 0; y < size.height; ++y)
        for (int column = 0; column < size.width; ++column) {
            Vector sum = {};
            for (int i = 0; i < TAPS; ++i) {
                const int yy = y + i / 3 - 1, xx = column + i % 3 - 1;
                if (yy < 0 || xx < 0 || yy >= size.height || xx >= size.width) continue;
                const float* pixel = x + (size_t(yy) * size.width + xx) * CHANNELS;
                for (int group = 0; group < GROUPS; ++group)
                    sum += load(pixel + group * LANES) * load(w + i * CHANNELS + group * LANES);
            }
            plane[size_t(y) * size.width + column] = total(sum);
        }
}

// The weights of all layers, one behind the other, as the kernels say.
struct Weights {
    int depth;
    std::vector<float> first, last, last_turned;  // [tap][64]
    Floats hidden_layers;                         // [hidden layer] U

    // turned: for the way back
    Weights(const float* w, int depth, bool turned, int threads)
        : depth(depth), first(TAPS * CHANNELS), last(TAPS * CHANNELS), last_turned(TAPS * CHANNELS),
          hidden_layers(floats(hidden() * TRANSFORMED)) {
        const float* end = w + TAPS * CHANNELS + hidden() * WEIGHTS;
        for (int i = 0; i < TAPS; ++i)
            for (int channel = 0; channel < CHANNELS; ++channel) {
                first[i * CHANNELS + channel] = w[channel * TAPS + i];
                last[i * CHANNELS + channel] = end[channel * TAPS + i];
                last_turned[i * CHANNELS + channel] = end[channel * TAPS + TAPS - 1 - i];
            }
        share(int(hidden()), threads, [&](int layer) {
            transform_weights(w + TAPS * CHANNELS + layer * WEIGHTS, hidden_layers.get() + layer * TRANSFORMED, turned);
        });
    }
    size_t hidden() const { return size_t(depth) - 2; }
};

void forward_one(const Weights& weights, const float* y, Size size, float* activations, float* residual) {
    const size_t layer = size.pixels() * CHANNELS;
    expand(y, weights.first.data(), size, [&](size_t at, Vector v) { store(activations + at, positive(v)); });
    for (size_t i = 0; i < weights.hidden(); ++i) {
        float* to = activations + (i + 1) * layer;
        convolve(activations + i * layer, weights.hidden_layers.get() + i * TRANSFORMED, size,
                 [&](size_t at, Vector v) { store(to + at, positive(v)); });
    }
    contract(activations + weights.hidden() * layer, weights.last.data(), size, residual);
}

// dw: this picture's share, laid out as the weights are; scratch: two layers' gradients.
void backward_one(const Weights& weights, const float* y, const float* gradient, Size size, const float* activations,
                  float* dw, float* here, float* below) {
    const size_t layer = size.pixels() * CHANNELS;
    float taps[TAPS * CHANNELS];
    const float* x = activations + weights.hidden() * layer;
    correlate(gradient, x, size, taps);
    float* last = dw + TAPS * CHANNELS + weights.hidden() * WEIGHTS;
    for (int i = 0; i < TAPS; ++i)  // the plane's neighbour to the right sees this pixel to its left
        for (int channel = 0; channel < CHANNELS; ++channel)
            last[channel * TAPS + i] = taps[(TAPS - 1 - i) * CHANNELS + channel];
    auto masked = [](const float* x, float* to) {  // the ReLU lets through what it let through
        return [=](size_t at, Vector v) { store(to + at, load(x + at) > 0.0f ? v : Vector{}); };
    };
    expand(gradient, weights.last_turned.data(), size, masked(x, here));
    for (size_t i = weights.hidden(); i-- > 0;) {
        x = activations + i * layer;
        weight_gradient(x, here, size, dw + TAPS * CHANNELS + i * WEIGHTS);
        convolve(here, weights.hidden_layers.get() + i * TRANSFORMED, size, masked(x, below));
        std::swap(here, below);
    }
    correlate(y, here, size, taps);
    for (int i = 0; i < TAPS; ++i)
        for (int channel = 0; channel < CHANNELS; ++channel) dw[channel * TAPS + i] = taps[i * CHANNELS + channel];
}

}  // namespace
}  // namespace vdsr

using namespace vdsr;

extern "C" {

// weights: all kernels (out, in, 3, 3) one behind the other; y, residual: (n, height, width);
// activations: (n, depth - 1, height, width, 64), for the way back. 0, or 1 where memory did not suffice.
int vdsr_forward(const float* weights, int depth, const float* y, int n, int height, int width, float* activations,
                 float* residual, int threads) try {
    const Size size{height, width};
    const Weights all(weights, depth, false, threads);
    share(n, threads, [&](int i) {
        forward_one(all, y + i * size.pixels(), size, activations + i * (depth - 1) * size.pixels() * CHANNELS,
                    residual + i * size.pixels());
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// gradient: of the residual, (n, height, width); dw: laid out as the weights are.
int vdsr_backward(const float* weights, int depth, const float* y, const float* gradient, int n, int height, int width,
                  const float* activations, float* dw, int threads) try {
    const Size size{height, width};
    const Weights all(weights, depth, true, threads);
    const size_t count = 2 * TAPS * CHANNELS + all.hidden() * WEIGHTS, layer = size.pixels() * CHANNELS;
    const Floats shares = floats(n * count), gradients = floats(2 * n * layer);
    share(n, threads, [&](int i) {
        backward_one(all, y + i * size.pixels(), gradient + i * size.pixels(), size,
                     activations + i * (depth - 1) * layer, shares.get() + i * count,
                     gradients.get() + 2 * i * layer, gradients.get() + (2 * i + 1) * layer);
    });
    std::memcpy(dw, shares.get(), count * sizeof(float));
    for (int i = 1; i < n; ++i)
        for (size_t k = 0; k < count; ++k) dw[k] += shares[i * count + k];
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
