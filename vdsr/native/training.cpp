// How is the network trained on a processor without matrix units? A picture of the batch at a time goes through all
// layers forward, or all layers backward, in one thread; the pictures' gradients are then added in their order. So
// the result does not depend on the number of threads, and a layer's activations are still in the cache when the next
// one reads them.
//
// Every picture lies in a frame of zeros one pixel wide, and its sides are filled up to whole tiles, so that no
// transform has to ask where it is:
//
//        0 0 0 0 0 0 0 0 0 0
//        0 p p p p p 0 0 0 0       a picture of 5 x 2 in its frame: one tile down, two across;
//        0 p p p p p 0 0 0 0       Frame::at(0, 0) is its first pixel
//        0 0 0 0 0 0 0 0 0 0
//        0 0 0 0 0 0 0 0 0 0
//        0 0 0 0 0 0 0 0 0 0
#include "winograd.h"

namespace vdsr {
namespace {

struct Frame {
    int height, width;
    int down() const { return (height + OUT - 1) / OUT; }
    int across() const { return (width + OUT - 1) / OUT; }
    int row() const { return across() * OUT + 2; }
    size_t pixels() const { return size_t(down() * OUT + 2) * row(); }
    size_t at(int y, int x) const { return size_t(y + 1) * row() + x + 1; }
};

struct Scratch {
    Batch batch, gradient;
    alignas(64) float du[TRANSFORMED];
};

Scratch& scratch() {  // kept by the thread: the caller's stays warm from layer to layer
    static thread_local std::unique_ptr<Scratch, Free> own;
    if (!own) own = structure<Scratch>();
    return *own;
}

// Calls tile(index in its batch, its top, its left) for each tile, and then batch(how many tiles) for each batch.
template <class Tile, class Done>
void batches(const Frame& frame, Tile&& tile, Done&& done) {
    const int count = frame.down() * frame.across();
    for (int first = 0; first < count; first += TILES) {
        const int tiles = std::min(TILES, count - first);
        for (int t = 0; t < tiles; ++t)
            tile(t, (first + t) / frame.across() * OUT, (first + t) % frame.across() * OUT);
        done(first, tiles);
    }
}

template <int SIDE>
void rows_from(const float* x, const Frame& frame, int top, int left, const float* rows[SIDE]) {
    for (int i = 0; i < SIDE; ++i) rows[i] = x + frame.at(top + i, left) * CHANNELS;
}

// A hidden layer over a picture; finish(where in the frame, vector) stores it.
template <class Finish>
void convolve(const float* x, const float* u, const Frame& frame, Finish&& finish) {
    Scratch& s = scratch();
    auto gather = [&](int t, int top, int left) {
        const float* rows[IN];
        rows_from<IN>(x, frame, top - 1, left - 1, rows);
        transform_input(rows, s.batch.points + t * CHANNELS);
    };
    batches(frame, gather, [&](int first, int tiles) {
        multiply(s.batch.points, u, every_channel(), tiles);
        for (int t = 0; t < tiles; ++t) {
            const int top = (first + t) / frame.across() * OUT, left = (first + t) % frame.across() * OUT;
            transform_output(s.batch.points + t * CHANNELS, std::min(OUT, frame.height - top),
                             std::min(OUT, frame.width - left), [&](int y, int x, int channel, Vector v) {
                                 finish(frame.at(top + y, left + x) * CHANNELS + channel, v);
                             });
        }
    });
}

// dw (64, 64, 3, 3) of a hidden layer from its input and the gradient of what came before its ReLU.
void weight_gradient(const float* x, const float* gradient, const Frame& frame, float* dw) {
    Scratch& s = scratch();
    std::memset(s.du, 0, sizeof s.du);
    auto gather = [&](int t, int top, int left) {
        const float* rows[IN];
        rows_from<IN>(x, frame, top - 1, left - 1, rows);
        transform_input(rows, s.batch.points + t * CHANNELS);
        rows_from<OUT>(gradient, frame, top, left, rows);
        transform_gradient(rows, s.gradient.points + t * CHANNELS);
    };
    batches(frame, gather,
            [&](int, int tiles) { accumulate(s.batch.points, s.gradient.points, s.du, tiles); });
    transform_weight_gradient(s.du, dw);
}

// Zeros around the pixels of a layer: what its neighbours' transforms read there.
void clear_frame(float* x, const Frame& frame) {
    constexpr size_t PIXEL = CHANNELS * sizeof(float);
    float* const end = x + frame.pixels() * CHANNELS;
    std::memset(x, 0, frame.row() * PIXEL);
    for (int y = 0; y < frame.height; ++y) {
        std::memset(x + frame.at(y, -1) * CHANNELS, 0, PIXEL);
        float* const right = x + frame.at(y, frame.width) * CHANNELS;
        std::memset(right, 0, (frame.row() - frame.width - 1) * PIXEL);
    }
    float* const below = x + frame.at(frame.height, -1) * CHANNELS;
    std::memset(below, 0, size_t(end - below) * sizeof(float));
}

// A plane (height, width) in its frame.
std::vector<float> framed(const float* plane, const Frame& frame) {
    std::vector<float> out(frame.pixels());
    for (int y = 0; y < frame.height; ++y)
        std::copy_n(plane + size_t(y) * frame.width, frame.width, out.data() + frame.at(y, 0));
    return out;
}

// A plane to 64 channels: the first layer, and the last one's adjoint.
template <class Finish>
void expand_all(const std::vector<float>& plane, const float* w, const Frame& frame, Finish&& finish) {
    for (int y = 0; y < frame.height; ++y) {
        const float* rows[3];
        for (int i = 0; i < 3; ++i) rows[i] = plane.data() + frame.at(y + i - 1, 0);
        expand(rows, w, 0, frame.width,
               [&](int x, int channel, Vector v) { finish(frame.at(y, x) * CHANNELS + channel, v); });
    }
}

// dw [tap][64]: how a plane and 64 channels go together at each offset.
void correlate(const std::vector<float>& plane, const float* x, const Frame& frame, float* dw) {
    for (int group = 0; group < GROUPS; ++group) {
        Vector sum[TAPS] = {};
        for (int y = 0; y < frame.height; ++y)
            for (int column = 0; column < frame.width; ++column) {
                const Vector v = load(x + frame.at(y, column) * CHANNELS + group * LANES);
                for (int i = 0; i < TAPS; ++i)
                    sum[i] = fma(every(plane[frame.at(y + i / 3 - 1, column + i % 3 - 1)]), v, sum[i]);
            }
        for (int i = 0; i < TAPS; ++i) store(dw + i * CHANNELS + group * LANES, sum[i]);
    }
}

void forward_one(const Weights& weights, const float* y, const Frame& frame, float* activations, float* residual) {
    const size_t layer = frame.pixels() * CHANNELS;
    auto rectified = [](float* to) { return [to](size_t at, Vector v) { store(to + at, positive(v)); }; };
    for (size_t i = 0; i <= weights.hidden(); ++i) clear_frame(activations + i * layer, frame);
    expand_all(framed(y, frame), weights.first.data(), frame, rectified(activations));
    for (size_t i = 0; i < weights.hidden(); ++i)
        convolve(activations + i * layer, weights.layer(i), frame, rectified(activations + (i + 1) * layer));
    for (int y = 0; y < frame.height; ++y) {
        const float* rows[3];
        rows_from<3>(activations + weights.hidden() * layer, frame, y - 1, 0, rows);
        contract(rows, weights.last.data(), frame.width, residual + size_t(y) * frame.width);
    }
}

// dw: this picture's share, laid out as the weights are; here, below: two layers' gradients, their frames cleared.
void backward_one(const Weights& weights, const float* y, const float* upstream, const Frame& frame,
                  const float* activations, float* dw, float* here, float* below) {
    const size_t layer = frame.pixels() * CHANNELS;
    auto masked = [](const float* x, float* to) {  // the ReLU lets through what it let through
        return [=](size_t at, Vector v) { store(to + at, load(x + at) > 0.0f ? v : Vector{}); };
    };
    float taps[TAPS * CHANNELS];
    const std::vector<float> gradient = framed(upstream, frame);
    const float* x = activations + weights.hidden() * layer;
    correlate(gradient, x, frame, taps);
    float* last = dw + TAPS * CHANNELS + weights.hidden() * WEIGHTS;
    for (int i = 0; i < TAPS; ++i)  // the plane's neighbour to the right sees this pixel to its left
        for (int channel = 0; channel < CHANNELS; ++channel)
            last[channel * TAPS + i] = taps[(TAPS - 1 - i) * CHANNELS + channel];
    expand_all(gradient, weights.last_turned.data(), frame, masked(x, here));
    for (size_t i = weights.hidden(); i-- > 0;) {
        x = activations + i * layer;
        weight_gradient(x, here, frame, dw + TAPS * CHANNELS + i * WEIGHTS);
        convolve(here, weights.layer(i), frame, masked(x, below));
        std::swap(here, below);
    }
    correlate(framed(y, frame), here, frame, taps);
    for (int i = 0; i < TAPS; ++i)
        for (int channel = 0; channel < CHANNELS; ++channel) dw[channel * TAPS + i] = taps[i * CHANNELS + channel];
}

}  // namespace
}  // namespace vdsr

using namespace vdsr;

extern "C" {

// How many floats a picture's activations take.
size_t vdsr_activations(int depth, int height, int width) {
    return size_t(depth - 1) * Frame{height, width}.pixels() * CHANNELS;
}

// weights: all kernels (out, in, 3, 3) one behind the other; y, residual: (n, height, width); activations: n times
// vdsr_activations, for the way back. 0, or 1 where memory did not suffice.
int vdsr_forward(const float* weights, int depth, const float* y, int n, int height, int width, float* activations,
                 float* residual, int threads) try {
    const size_t pixels = size_t(height) * width, size = vdsr_activations(depth, height, width);
    const Weights all(weights, depth, false, threads);
    share(n, threads, [&](int i) {
        forward_one(all, y + i * pixels, {height, width}, activations + i * size, residual + i * pixels);
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// gradient: of the residual, (n, height, width); dw: laid out as the weights are.
int vdsr_backward(const float* weights, int depth, const float* y, const float* gradient, int n, int height, int width,
                  const float* activations, float* dw, int threads) try {
    const size_t pixels = size_t(height) * width, size = vdsr_activations(depth, height, width);
    const Weights all(weights, depth, true, threads);
    const size_t count = 2 * TAPS * CHANNELS + all.hidden() * WEIGHTS;
    const size_t layer = Frame{height, width}.pixels() * CHANNELS;
    const Floats shares = floats(n * count);
    std::atomic<int> next{0};
    in_parallel(std::min(threads, n), [&] {
        const Floats gradients = floats(2 * layer);
        for (int i : {0, 1}) clear_frame(gradients.get() + i * layer, {height, width});
        for (int i; (i = next++) < n;)
            backward_one(all, y + i * pixels, gradient + i * pixels, {height, width}, activations + i * size,
                         shares.get() + i * count, gradients.get(), gradients.get() + layer);
    });
    std::memcpy(dw, shares.get(), count * sizeof(float));
    for (int i = 1; i < n; ++i)
        for (size_t k = 0; k < count; ++k) dw[k] += shares[i * count + k];
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
