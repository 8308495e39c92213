// The network in 16-bit integers: its hidden layers by Winograd's algorithm (int16.h), streamed patch by patch
// (stream.h). Its two ends and the residual are fp32.
#include "int16.h"

namespace vdsr {
namespace {

class Kernel {
public:
    static constexpr int HEIGHT = 30, WIDTH = 36;  // one whole batch
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

    // w: all kernels (out, in, 3, 3), one behind the other
    Kernel(const float* w, int depth, int threads)
        : depth_(depth), first_(by_tap(w)), last_(by_tap(w + TAPS * CHANNELS + size_t(depth - 2) * WEIGHTS)),
          hidden_(zeroed(size_t(depth - 2) * TRANSFORMED * sizeof(int32_t))), units_(floats(size_t(depth - 2) * UNITS)) {
        share(depth - 2, threads, [&](int layer) {
            transform_weights(w + TAPS * CHANNELS + layer * WEIGHTS,
                              reinterpret_cast<int32_t*>(hidden_.get()) + layer * TRANSFORMED,
                              units_.get() + layer * UNITS);
        });
    }

    int depth() const { return depth_; }
    size_t pixel_bytes(int) const { return PIXEL_BYTES; }

    void first(const float* const rows[3], int left, int right, char* to) const {
        expand(rows, first_.data(), left, right, [&](int x, int channel, Vector v) {
            store(reinterpret_cast<float*>(to) + x * CHANNELS + channel, positive(v));
        });
    }

    void hidden(Hands& hands, int plane, const Patch& from, const Patch& to, const Area& area, Ahead&) const {
        const int32_t* const weights = reinterpret_cast<const int32_t*>(hidden_.get()) + (plane - 2) * TRANSFORMED;
        const float* const units = units_.get() + (plane - 2) * UNITS;
        Batch& batch = hands.batch;
        in_batches<OUT, TILES>(area, [&](int count, auto&& place) {
            Share live[TILES / BLOCK + 1], all;
            for (int t = 0; t < count; t += BLOCK) {
                const Live channels = live_channels<OUT>(from, area, place, t, std::min(t + BLOCK, count) - 1);
                live[t / BLOCK].add(channels), all.add(channels);
            }
            for (int t = 0; t < count; ++t) {
                const auto [y, x] = place(t);
                const float* rows[IN];
                for (int row = 0; row < IN; ++row) rows[row] = from.at<float>(y + row, x);
                const int registers = live[t / BLOCK].registers;
                transform_input(rows, 2 * registers, batch.tile);
                round_to_integers(batch.tile, registers, batch.v + t * PAIRS, batch.units + t * POINTS);
            }
            for (int slice = 0; slice < SLICES; ++slice) {
                multiply(batch.v, weights + size_t(slice) * POINTS * PAIRS * SLICE, live, all, batch.m, count);
                for (int t = 0; t < count; ++t) {
                    const auto [y, x] = place(t);
                    float* const pixels = to.at<float>(MARGIN + y, MARGIN + x) + slice * SLICE;
                    transform_output(batch.m + t * SLICE, batch.units + t * POINTS,
                                     units + size_t(slice) * POINTS * SLICE,
                                     [&](int row, int column, int channel, Vector v) {
                        store(pixels + row * ROW_BYTES / sizeof(float) + column * CHANNELS + channel, positive(v));
                    });
                }
            }
        });
    }

    bool before_last(Hands&, const Patch&, const Patch&) const { return false; }

    void sum(const Patch& patch, int y, int left, int right, float* to) const {
        const float* rows[3];
        for (int i = 0; i < 3; ++i) rows[i] = patch.at<float>(y + i, left + 1);
        contract(rows, last_.data(), right - left, to + left);
    }

private:
    const int depth_;
    const std::vector<float> first_, last_;  // [tap][64]
    const Floats hidden_, units_;            // [hidden layer] U, and its units
};

}  // namespace
}  // namespace vdsr

#include "interface.h"
