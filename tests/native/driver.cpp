// Does the compiled code touch only its own memory, and do its threads race? Runs all of it for a sanitizer to watch.
//
// Linked with inference.cpp or amx.cpp, and with training.cpp where that is to run too. Checks that threads and pieces
// change no bit, and prints a checksum of every residual, so that two builds can be compared.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

extern "C" {
void* vdsr_network(const float*, int depth, int threads);
void vdsr_network_free(void*);
void* vdsr_stream(const void*, int height, int width);
void vdsr_stream_free(void*);
int vdsr_stream_push(void*, const float* rows, int count, float* out, int threads);
int vdsr_stream_delay(int depth);
int vdsr_residuals(const void*, const float* planes, int count, int height, int width, float* out, int threads);
__attribute__((weak)) size_t vdsr_activations(int depth, int height, int width);
__attribute__((weak)) int vdsr_forward(const float*, int depth, const float* y, int n, int height, int width,
                                       float* activations, float* residual, int threads);
__attribute__((weak)) int vdsr_backward(const float*, int depth, const float* y, const float* gradient, int n,
                                        int height, int width, const float* activations, float* gradients, int threads);
}

namespace {

using Floats = std::vector<float>;

struct Case {
    int depth, height, width;
};
constexpr Case CASES[] = {{20, 1, 1}, {20, 1, 37}, {20, 37, 1}, {20, 13, 11}, {2, 5, 3},
                          {3, 100, 200}, {5, 70, 41}, {4, 300, 9}};

Floats noise(size_t count, float scale) {
    static std::mt19937 bits(1);
    Floats values(count);
    for (float& value : values) value = scale * (float(bits() >> 8) / (1 << 24));
    return values;
}

bool same(const Floats& a, const Floats& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

int failures = 0;
void expect(bool true_, const char* what, const Case& c, int threads) {
    if (true_) return;
    std::printf("%s: depth %d, %d x %d, %d threads\n", what, c.depth, c.height, c.width, threads);
    ++failures;
}

Floats weights_of(int depth) {
    Floats weights = noise(size_t(depth - 2) * 64 * 64 * 9 + 2 * 64 * 9, 0.1f);
    for (float& weight : weights) weight -= 0.049f;
    return weights;
}

// rows: at a time. Each piece is given and taken in memory of its own size, so that a step beyond is seen.
Floats residual(const Floats& weights, const Case& c, const Floats& y, int rows, int threads) {
    void* network = vdsr_network(weights.data(), c.depth, threads);
    void* stream = vdsr_stream(network, c.height, c.width);
    Floats all;
    for (int top = 0; top < c.height; top += rows) {
        const int count = std::min(rows, c.height - top);
        const Floats piece(y.begin() + size_t(top) * c.width, y.begin() + size_t(top + count) * c.width);
        Floats out(size_t(count + vdsr_stream_delay(c.depth)) * c.width);
        const int given = vdsr_stream_push(stream, piece.data(), count, out.data(), threads);
        expect(given >= 0, "no memory", c, threads);
        all.insert(all.end(), out.begin(), out.begin() + size_t(given) * c.width);
    }
    vdsr_stream_free(stream);
    vdsr_network_free(network);
    expect(all.size() == y.size(), "not all rows came", c, threads);
    return all;
}

void infer(const Case& c) {
    const Floats weights = weights_of(c.depth), y = noise(size_t(c.height) * c.width, 1);
    const Floats first = residual(weights, c, y, c.height, 1);
    for (int threads = 1; threads <= 3; ++threads)
        expect(same(first, residual(weights, c, y, 5 * threads, threads)), "other bits", c, threads);
    uint64_t sum = 14695981039346656037u;  // FNV-1a
    for (size_t i = 0; i < first.size() * sizeof(float); ++i)
        sum = (sum ^ reinterpret_cast<const unsigned char*>(first.data())[i]) * 1099511628211u;
    std::printf("depth %d, %d x %d: %016llx\n", c.depth, c.height, c.width, static_cast<unsigned long long>(sum));
}

// Several images, a thread each.
void together(const Case& c) {
    constexpr int N = 3;
    const Floats weights = weights_of(c.depth), y = noise(size_t(N) * c.height * c.width, 1);
    Floats expected;
    for (int i = 0; i < N; ++i) {
        const Floats one(y.begin() + i * y.size() / N, y.begin() + (i + 1) * y.size() / N);
        const Floats found = residual(weights, c, one, c.height, 1);
        expected.insert(expected.end(), found.begin(), found.end());
    }
    for (int threads = 1; threads <= 3; ++threads) {
        Floats out(y.size());
        void* network = vdsr_network(weights.data(), c.depth, threads);
        vdsr_residuals(network, y.data(), N, c.height, c.width, out.data(), threads);
        vdsr_network_free(network);
        expect(same(expected, out), "other bits together", c, threads);
    }
}

void train(const Case& c) {
    constexpr int N = 3;
    const Floats weights = weights_of(c.depth), y = noise(size_t(N) * c.height * c.width, 1);
    Floats first;
    for (int threads = 1; threads <= 3; ++threads) {
        Floats activations(N * vdsr_activations(c.depth, c.height, c.width)), out(y.size()), gradients(weights.size());
        vdsr_forward(weights.data(), c.depth, y.data(), N, c.height, c.width, activations.data(), out.data(), threads);
        vdsr_backward(weights.data(), c.depth, y.data(), out.data(), N, c.height, c.width, activations.data(),
                      gradients.data(), threads);
        if (threads == 1) first = gradients;
        expect(same(first, gradients), "other gradients", c, threads);
    }
}

}  // namespace

int main() {
    for (const Case& c : CASES) {
        infer(c);
        if (c.height * c.width < 5000) together(c);
        if (vdsr_forward && c.height * c.width < 5000) train(c);
    }
    return failures != 0;
}
