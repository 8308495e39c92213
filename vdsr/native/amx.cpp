// The network on a matrix unit: how amx.h's blocks make a layer, streamed patch by patch (stream.h).
//
// The last layer has one channel out. The unit makes the nine products of each pixel with the kernel's taps; they take
// the place of its activations as the plane that the residual is summed from.
//
// Precision. Products are bf16 with fp32 sums. The planes 1 to FINE are held in two bf16 each, since nearly all that
// bf16 costs comes of rounding those; so are the last layer's weights. The first layer is fp32.
#include "amx.h"
#include "stream.h"

namespace vdsr {
namespace {

constexpr int FINE = 3;
constexpr size_t TAPS_BYTES = SLICE * sizeof(float);  // a pixel's products with the last layer's taps

// The weights of all layers, as the unit takes them, and what it does with them.
class Kernel {
public:
    static constexpr int HEIGHT = 32, WIDTH = 96;  // two planes of it stay in level 2, beside a layer's weights
    static constexpr int GRID = 1;                 // a pixel's bits depend on its 3 x 3 pixels alone (amx.h)
    // Room for pixels of up to 256 bytes, and 37 lines more than a multiple of level 1's 64 sets, so that of the six
    // rows that a block sees each one's 36 lines lie behind those of the row before.
    static constexpr size_t ROW_BYTES = (6 * 64 + 37) * 64;
    static_assert(ROW_BYTES >= size_t(WIDTH + MARGIN) * 2 * CHANNELS * sizeof(bf16), "a row has to fit");
    static_assert(FINE >= 1, "the first layer writes two halves");
    static_assert(HEIGHT % DOWN == 0 && WIDTH % ACROSS == 0, "a patch is made of whole blocks");
    struct Desk {};
    struct Hands : Tiles {
        explicit Hands(const Desk&) {}
    };

    // w: all kernels (out, in, 3, 3), one behind the other
    Kernel(const float* w, int depth, int)
        : depth_(depth), first_(by_tap(w)), hidden_(zeroed(size_t(depth - 2) * HIDDEN * sizeof(bf16))),
          last_(zeroed(4 * TILE * sizeof(bf16))) {
        w += TAPS * CHANNELS;
        for (int layer = 1; layer < depth - 1; ++layer, w += WEIGHTS)
            arrange_weights(w, bf16s(hidden_) + (layer - 1) * HIDDEN);
        for (int half = 0; half < 2; ++half) {
            const float* from = w + half * 2 * PAIRS * TAPS;
            const auto weight = [&](int in, int tap) { return tap < TAPS ? from[in * TAPS + tap] : 0; };
            weight_tile(bf16s(last_) + half * TILE, weight);
            weight_tile(bf16s(last_) + (2 + half) * TILE,
                        [&](int in, int tap) { return weight(in, tap) - widened(rounded(weight(in, tap))); });
        }
    }

    int depth() const { return depth_; }
    size_t pixel_bytes(int plane) const {
        return plane == depth_ ? TAPS_BYTES : parts(plane) * CHANNELS * sizeof(bf16);
    }

    void first(const float* const rows[3], int left, int right, char* to) const {
        expand(rows, first_.data(), left, right, [&](int x, int channel, Vector v) {
            put<2>(reinterpret_cast<bf16*>(to) + x * 2 * CHANNELS + channel, positive(v));
        });
    }

    void hidden(Tiles& tiles, int plane, const Patch& from, const Patch& to, const Area& area, Ahead& ahead) const {
        const int next = plane == depth_ - 1 ? 2 : plane + 1;  // after the last comes the next patch's first
        ahead.weights(weights(next), HIDDEN * sizeof(bf16));
        if (parts(plane) == 2) blocks<2, 2>(tiles, plane, from, to, area, ahead);
        else if (parts(plane - 1) == 2) blocks<2, 1>(tiles, plane, from, to, area, ahead);
        else blocks<1, 1>(tiles, plane, from, to, area, ahead);
    }

    // The last activations times each tap of the last layer: what a pixel gives to those around it.
    bool before_last(Tiles& tiles, const Patch& from, const Patch& to) const {
        constexpr size_t HALF = CHANNELS * sizeof(bf16) / 2;
        const bf16* weights = bf16s(last_);
        tiles.load<4>(weights, 64), tiles.load<5>(weights + TILE, 64);
        tiles.load<6>(weights + 2 * TILE, 64), tiles.load<7>(weights + 3 * TILE, 64);
        for (int y = MARGIN; y < MARGIN + HEIGHT; ++y)
            for (int x = MARGIN; x < MARGIN + WIDTH; x += ACROSS) {
                tiles.zero<0>();
                for (int part = 0; part < parts(depth_ - 1); ++part) {
                    const char* pixels = from.at(y, x) + part * 2 * HALF;
                    tiles.load<1>(pixels, from.pixel_bytes), tiles.load<2>(pixels + HALF, from.pixel_bytes);
                    tiles.dot<0, 1, 4>(), tiles.dot<0, 2, 5>(), tiles.dot<0, 1, 6>(), tiles.dot<0, 2, 7>();
                }
                tiles.store<0>(to.at(y, x), TAPS_BYTES);
            }
        return true;
    }

    void sum(const Patch& patch, int y, int left, int right, float* to) const {
        constexpr ptrdiff_t PIXEL = SLICE;
        for (int x = left; x < right; ++x) {
            float sums[3];
            for (int i = 0; i < 3; ++i) {
                const float* taps = patch.at<float>(y + i, x) + 3 * i;
                sums[i] = taps[0] + taps[PIXEL + 1] + taps[2 * PIXEL + 2];
            }
            to[x] = sums[0] + sums[1] + sums[2];
        }
    }

private:
    const int depth_;
    const std::vector<float> first_;  // [tap][64]
    Floats hidden_, last_;      // last_: [rounded, remainder][half of the channels in] B

    static int parts(int plane) { return plane <= FINE ? 2 : 1; }
    static bf16* bf16s(const Floats& memory) { return reinterpret_cast<bf16*>(memory.get()); }
    // Of the layer that makes the plane.
    const bf16* weights(int plane) const { return bf16s(hidden_) + (plane - 2) * HIDDEN; }

    // All blocks that touch the area. Each one's sums become activations while the unit makes the next one's.
    template <int IN, int OUT>
    void blocks(Tiles& tiles, int plane, const Patch& from, const Patch& to, const Area& area, Ahead& ahead) const {
        constexpr int LINES = 8;  // a block: 192 blocks fetch 98 KB
        Sums sums[2];
        char* place = nullptr;  // where the sums before belong
        int current = 0;
        for (int slice = 0; slice < CHANNELS / SLICE; ++slice) {
            const bf16* taps = weights(plane) + slice * STEPS * STEP;
            for (int y = area.top / DOWN * DOWN; y < area.bottom; y += DOWN)
                for (int x = area.left / ACROSS * ACROSS; x < area.right; x += ACROSS) {
                    convolve<IN>(tiles, from.at(y, x), ROW_BYTES, taps, sums[current],
                                 [&](int step) { if (place) activate<OUT>(sums[1 - current], step, place); });
                    place = to.at(MARGIN + y, MARGIN + x) + slice * SLICE * sizeof(bf16);
                    current = 1 - current;
                    ahead.fetch(LINES);
                }
        }
        for (int step = 0; step < STEPS; ++step) activate<OUT>(sums[1 - current], step, place);
    }

    // A sixth of a block's sums to activations.
    template <int PARTS>
    static void activate(const Sums& sums, int step, char* to) {
        constexpr int PIXELS = DOWN * ACROSS;
        for (int i = PIXELS * step / STEPS; i < PIXELS * (step + 1) / STEPS; ++i) {
            char* row = to + i / ACROSS * ROW_BYTES;
            bf16* pixel = reinterpret_cast<bf16*>(row) + i % ACROSS * PARTS * CHANNELS;
            for (int channel = 0; channel < SLICE; channel += LANES)
                put<PARTS>(pixel + channel, positive(load(sums.values + i * SLICE + channel)));
        }
    }
};

}  // namespace
}  // namespace vdsr

#include "interface.h"

extern "C" {

// Whether this process may use what this was compiled for. Nothing else may be called before it has said so.
int vdsr_amx_permitted() { return Tiles::permitted(); }
}
