// The network in fp32: its hidden layers by Winograd's algorithm (winograd.h), streamed patch by patch (stream.h).
#include "winograd.h"

namespace vdsr {
namespace {

class Kernel {
public:
    static constexpr int HEIGHT = 32, WIDTH = 36;  // three whole batches: two planes of it and a layer's U
    static constexpr int GRID = OUT;
    static constexpr size_t PIXEL_BYTES = CHANNELS * sizeof(float);
    static constexpr size_t ROW_BYTES = (MARGIN + WIDTH) * PIXEL_BYTES;
    struct Desk {
        std::unique_ptr<Batch, Free> batch = structure<Batch>();
    };
    struct Hands {
        Batch& batch;
        explicit Hands(const Desk& desk) : batch(*desk.batch) {}
    };

    Kernel(const float* weights, int depth, int threads) : weights_(weights, depth, false, threads) {}

    int depth() const { return weights_.depth; }
    size_t pixel_bytes(int) const { return PIXEL_BYTES; }

    void first(const float* const rows[3], int left, int right, char* to) const {
        expand(rows, weights_.first.data(), left, right, [&](int x, int channel, Vector v) {
            store(reinterpret_cast<float*>(to) + x * CHANNELS + channel, positive(v));
        });
    }

    void hidden(Hands& hands, int plane, const Patch& from, const Patch& to, const Area& area, Ahead&) const {
        Batch& batch = hands.batch;
        in_batches<OUT, TILES>(area, [&](int count, auto&& place) {
            for (int t = 0; t < count; ++t) {
                const auto [y, x] = place(t);
                const float* rows[IN];
                for (int row = 0; row < IN; ++row) rows[row] = from.at<float>(y + row, x);
                transform_input(rows, batch.points + t * CHANNELS);
            }
            const Live channels = live_channels<OUT>(from, area, place, 0, count - 1);
            multiply(batch.points, weights_.layer(plane - 2), channels, count);
            for (int t = 0; t < count; ++t) {
                const auto [y, x] = place(t);
                float* const pixels = to.at<float>(MARGIN + y, MARGIN + x);
                transform_output(batch.points + t * CHANNELS, OUT, OUT,
                                 [&](int row, int column, int channel, Vector v) {
                    store(pixels + row * ROW_BYTES / sizeof(float) + column * CHANNELS + channel, positive(v));
                });
            }
        });
    }

    bool before_last(Hands&, const Patch&, const Patch&) const { return false; }

    void sum(const Patch& patch, int y, int left, int right, float* to) const {
        const float* rows[3];
        for (int i = 0; i < 3; ++i) rows[i] = patch.at<float>(y + i, left + 1);
        contract(rows, weights_.last.data(), right - left, to + left);
    }

private:
    const Weights weights_;
};

}  // namespace
}  // namespace vdsr

#include "interface.h"
