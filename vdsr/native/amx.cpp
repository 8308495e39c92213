// How does an image stream through all layers on a matrix unit, with the activations in the level-2 cache?
//
// Patch by patch, each through all layers before the next. A layer's patch lies one pixel further up and to the left
// than that of the layer before, so that it sees nothing that is still to come, and nothing is computed twice:
//
//        plane p: the activations behind p layers                what a layer reads of the plane before it
//
//        plane 0   |----- k -----|--- k + 1 ---|                    . . + + + + + + + +
//        plane 1  |----- k -----|--- k + 1 ---|                     . . + + + + + + + +    . the neighbours' pixels
//        plane 2 |----- k -----|--- k + 1 ---|                      . . o o o o o o o o    + those of the band above
//        ...                                                        . . o o o o o o o o    o the patch's own
//
// A plane's patch has two columns of its left neighbour and two rows of the band above. The columns stay with the
// thread, which does a band from left to right; the rows lie in a store as wide as the image, where patch k of a band
// finds those of patch k above it, and leaves its own last two. So a band may begin while the one above is being
// computed, if it stays a patch behind: the threads take a band each.
//
//        band 0   # # # # # # # .        # done or being done
//        band 1   # # # # . . . .        a thread waits before patch k until the band above has done patch k
//        band 2   # # . . . . . .
//
// The last layer has one channel out. The unit makes the nine products of each pixel with the kernel's taps; they take
// the place of its activations as the plane that the residual is summed from.
//
// Precision. Products are bf16 with fp32 sums. The planes 1 to FINE are held in two bf16 each, since nearly all that
// bf16 costs comes of rounding those; so are the last layer's weights. The first layer is fp32.
//
// A pixel's bits depend on its neighbourhood alone (amx.h), and so not on patches, pushes, threads, or where in an
// image a strip begins that has `depth` columns more on each side.
#include "amx.h"

namespace vdsr {
namespace {

constexpr int HEIGHT = 32, WIDTH = 96;  // of a patch: two planes of it stay in level 2, beside a layer's weights
constexpr int MARGIN = 2;               // rows and columns that it has of its neighbours
constexpr int FINE = 3;
constexpr int MOST_BANDS = 64;  // that are awaited before they are computed together
// From one row of a patch to the next: room for its pixels of up to 256 bytes, and 37 lines more than a multiple of
// level 1's 64 sets, so that of the six rows that a block sees each one's 36 lines lie behind those of the row before.
constexpr size_t ROW_BYTES = (6 * 64 + 37) * 64;
static_assert(ROW_BYTES >= size_t(WIDTH + MARGIN) * 2 * CHANNELS * sizeof(bf16), "a row has to fit");
static_assert(FINE >= 1, "the first layer writes two halves");
static_assert(HEIGHT % DOWN == 0 && WIDTH % ACROSS == 0, "a patch is made of whole blocks");

constexpr size_t TAPS_BYTES = SLICE * sizeof(float);  // a pixel's products with the last layer's taps

char* bytes(const Floats& memory) { return reinterpret_cast<char*>(memory.get()); }
Floats zeroed(size_t size_bytes) {
    Floats memory = floats((size_bytes + sizeof(float) - 1) / sizeof(float));
    std::memset(memory.get(), 0, size_bytes);
    return memory;
}

// The weights of all layers, as the unit takes them.
class Network {
public:
    const int depth;

    // w: all kernels (out, in, 3, 3), one behind the other
    Network(const float* w, int depth)
        : depth(depth), first_(TAPS * CHANNELS), hidden_(zeroed(size_t(depth - 2) * HIDDEN * sizeof(bf16))),
          last_(zeroed(4 * TILE * sizeof(bf16))) {
        for (int tap = 0; tap < TAPS; ++tap)
            for (int channel = 0; channel < CHANNELS; ++channel)
                first_[tap * CHANNELS + channel] = w[channel * TAPS + tap];
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
    const float* first() const { return first_.data(); }  // [tap][64]
    const bf16* hidden(int layer) const { return bf16s(hidden_) + (layer - 1) * HIDDEN; }
    const bf16* last() const { return bf16s(last_); }  // [rounded, remainder][half of the channels in] B

private:
    std::vector<float> first_;
    Floats hidden_, last_;

    static bf16* bf16s(const Floats& memory) { return reinterpret_cast<bf16*>(memory.get()); }
};

// Asks for what the next layer reads, a little at a time while this one computes: it lies in level 3.
class Ahead {
public:
    void add(const void* from, size_t size_bytes) { parts_[count_++] = {static_cast<const char*>(from), size_bytes}; }
    void fetch(int lines) {
        for (; lines > 0 && part_ < count_; --lines) {
            __builtin_prefetch(parts_[part_].from + at_, 0, 2);
            at_ += 64;
            if (at_ >= parts_[part_].size_bytes) at_ = 0, ++part_;
        }
    }

private:
    struct {
        const char* from;
        size_t size_bytes;
    } parts_[2];
    int count_ = 0, part_ = 0;
    size_t at_ = 0;
};

// The part of a patch that lies inside the image.
struct Area {
    int top, bottom, left, right;
    bool empty() const { return top == bottom || left == right; }
};

class Stream {
public:
    Stream(const Network& network, int height, int width)
        : network_(network), height_(height), width_(width), row_(size_t(width) + 2),
          across_((width + depth() + WIDTH - 1) / WIDTH), bands_((height + depth() + HEIGHT - 1) / HEIGHT),
          zeros_(row_) {
        for (int plane = 1; plane < depth(); ++plane) store_.emplace_back(across_ * above_bytes(plane));
    }

    // Takes the next rows (count, width); writes the residual's next rows to out, and returns how many.
    int push(const float* rows, int count, float* out, int threads) {
        const int before = given_;
        const int together = std::clamp(2 * threads, 8, MOST_BANDS);
        do {
            const int taken = std::clamp((done_ + together) * HEIGHT - read_, 0, count);
            for (int y = 0; y < taken; ++y, rows += width_) {  // between two zeros each
                plane_.push_back(0);
                plane_.insert(plane_.end(), rows, rows + width_);
                plane_.push_back(0);
            }
            read_ += taken, count -= taken;
            const int ready = (read_ == height_ ? bands_ : read_ / HEIGHT) - done_;
            if (ready >= together || (ready > 0 && read_ == height_)) compute(ready, out, before, threads);
        } while (count > 0);
        return given_ - before;
    }

private:
    // What one thread has in hand.
    struct Scratch {
        Floats patches[2];                       // a plane and the next, in turn: [2 + HEIGHT][2 + WIDTH] pixels
        std::vector<std::vector<char>> columns;  // each plane's last ones for the next patch: [2 + HEIGHT][2] pixels

        explicit Scratch(const Stream& stream) {
            for (Floats& patch : patches) patch = zeroed((MARGIN + HEIGHT) * ROW_BYTES);
            for (int plane = 1; plane < stream.depth(); ++plane) columns.emplace_back(stream.columns_bytes(plane));
        }
        // The place of a plane's pixel; (0, 0) is the first of the margin.
        char* at(int plane, int y, int x, size_t pixel_bytes) const {
            return bytes(patches[plane % 2]) + y * ROW_BYTES + x * pixel_bytes;
        }
    };

    const Network& network_;
    const int height_, width_;
    const size_t row_;                      // of plane 0
    const int across_, bands_;              // patches in a band; bands
    std::vector<float> zeros_;              // a row of plane 0 outside the image
    std::vector<float> plane_;              // the rows of plane 0 that bands to come need, from first_ on
    std::vector<std::vector<char>> store_;  // each plane's rows for the band below: [patch][2][WIDTH] pixels
    std::vector<Scratch> scratch_;          // a thread
    int first_ = 0, read_ = 0, done_ = 0, given_ = 0;

    int depth() const { return network_.depth; }
    static int parts(int plane) { return plane <= FINE ? 2 : 1; }
    static size_t activation_bytes(int plane) { return parts(plane) * CHANNELS * sizeof(bf16); }
    // Of a pixel as the next layer reads it from a patch with margins.
    size_t pixel_bytes(int plane) const { return plane == depth() - 1 ? TAPS_BYTES : activation_bytes(plane); }
    size_t above_bytes(int plane) const { return MARGIN * WIDTH * pixel_bytes(plane); }
    size_t columns_bytes(int plane) const { return (MARGIN + HEIGHT) * MARGIN * pixel_bytes(plane); }
    char* above(int plane, int patch) { return store_[plane - 1].data() + patch * above_bytes(plane); }
    const float* input(int y) const {
        return (y < 0 || y >= height_ ? zeros_.data() : plane_.data() + (y - first_) * row_) + 1;
    }

    // The next bands; out: the residual's rows from `before` on.
    void compute(int count, float* out, int before, int threads) {
        threads = std::min({threads, count, across_});
        while (int(scratch_.size()) < threads) scratch_.emplace_back(*this);
        const std::unique_ptr<std::atomic<int>[]> finished(new std::atomic<int>[count]);  // patches of each band
        for (int i = 0; i < count; ++i) finished[i] = 0;
        std::atomic<int> thread{0}, next{0};
        in_parallel(threads, [&] {
            Tiles tiles;
            Scratch& scratch = scratch_[thread++];
            for (int i; (i = next++) < count;) {
                for (auto& columns : scratch.columns)  // zeros lie left of the image
                    std::fill(columns.begin(), columns.end(), 0);
                for (int patch = 0; patch < across_; ++patch) {
                    if (i > 0) spin_until([&] { return finished[i - 1].load(std::memory_order_acquire) > patch; });
                    through_all_layers(tiles, scratch, done_ + i, patch, out, before);
                    finished[i].store(patch + 1, std::memory_order_release);
                }
            }
        });
        done_ += count;
        given_ = std::clamp(done_ * HEIGHT - depth(), 0, height_);
        const int needed = std::min(done_ * HEIGHT - MARGIN, read_);
        plane_.erase(plane_.begin(), plane_.begin() + (needed - first_) * row_);
        first_ = needed;
    }

    void through_all_layers(Tiles& tiles, Scratch& scratch, int band, int patch, float* out, int before) {
        for (int plane = 1; plane < depth(); ++plane) {
            const Area area = inside(plane, band, patch);
            if (!area.empty()) {
                if (plane == 1) first(scratch, band, patch, area);
                else hidden(tiles, scratch, plane, patch, area);
            }
            clear_outside(scratch, plane, area);
            if (plane < depth() - 1) exchange(scratch, plane, patch, plane);
        }
        products(tiles, scratch);
        exchange(scratch, depth() - 1, patch, depth());
        sum(scratch, band, patch, out, before);
    }

    Area inside(int plane, int band, int patch) const {
        const int y = band * HEIGHT - plane, x = patch * WIDTH - plane;
        return {std::clamp(-y, 0, HEIGHT), std::clamp(height_ - y, 0, HEIGHT), std::clamp(-x, 0, WIDTH),
                std::clamp(width_ - x, 0, WIDTH)};
    }

    void first(Scratch& scratch, int band, int patch, const Area& area) {
        for (int y = area.top; y < area.bottom; ++y) {
            const float* rows[3];
            for (int i = 0; i < 3; ++i) rows[i] = input(band * HEIGHT - 1 + y + i - 1) + patch * WIDTH - 1 + area.left;
            bf16* to = reinterpret_cast<bf16*>(scratch.at(1, MARGIN + y, MARGIN, activation_bytes(1)));
            expand(rows, network_.first(), area.left, area.right, [&](int x, int channel, Vector v) {
                put<2>(to + x * 2 * CHANNELS + channel, positive(v));
            });
        }
    }

    void hidden(Tiles& tiles, Scratch& scratch, int plane, int patch, const Area& area) {
        const bool last = plane == depth() - 1;  // then comes the next patch's first
        Ahead ahead;
        ahead.add(network_.hidden(last ? 1 : plane), HIDDEN * sizeof(bf16));
        if (!last) ahead.add(above(plane + 1, patch), above_bytes(plane + 1));
        if (parts(plane) == 2) blocks<2, 2>(tiles, scratch, plane, area, ahead);
        else if (parts(plane - 1) == 2) blocks<2, 1>(tiles, scratch, plane, area, ahead);
        else blocks<1, 1>(tiles, scratch, plane, area, ahead);
    }

    // All blocks that touch the area. Each one's sums become activations while the unit makes the next one's.
    template <int IN, int OUT>
    void blocks(Tiles& tiles, Scratch& scratch, int plane, const Area& area, Ahead& ahead) {
        constexpr size_t IN_BYTES = IN * CHANNELS * sizeof(bf16), OUT_BYTES = OUT * CHANNELS * sizeof(bf16);
        constexpr int LINES = 8;  // a block: 192 blocks fetch 98 KB
        Sums sums[2];
        char* to = nullptr;  // where the sums before belong
        int current = 0;
        for (int slice = 0; slice < CHANNELS / SLICE; ++slice) {
            const bf16* weights = network_.hidden(plane - 1) + slice * STEPS * STEP;
            for (int y = area.top / DOWN * DOWN; y < area.bottom; y += DOWN)
                for (int x = area.left / ACROSS * ACROSS; x < area.right; x += ACROSS) {
                    convolve<IN>(tiles, scratch.at(plane - 1, y, x, IN_BYTES), ROW_BYTES, weights, sums[current],
                                 [&](int step) { if (to) activate<OUT>(sums[1 - current], step, to); });
                    to = scratch.at(plane, MARGIN + y, MARGIN + x, OUT_BYTES) + slice * SLICE * sizeof(bf16);
                    current = 1 - current;
                    ahead.fetch(LINES);
                }
        }
        for (int step = 0; step < STEPS; ++step) activate<OUT>(sums[1 - current], step, to);
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

    // The image lies among zeros, whatever a block that reaches beyond it has made.
    void clear_outside(Scratch& scratch, int plane, const Area& area) {
        const size_t pixel = activation_bytes(plane);
        for (int y = 0; y < HEIGHT; ++y) {
            char* row = scratch.at(plane, MARGIN + y, MARGIN, pixel);
            const bool outside = y < area.top || y >= area.bottom;
            const int left = outside ? WIDTH : area.left;
            std::memset(row, 0, left * pixel);
            if (!outside) std::memset(row + area.right * pixel, 0, (WIDTH - area.right) * pixel);
        }
    }

    // Takes the margins of a plane's patch from its neighbours, and leaves theirs for the next ones.
    // place: the plane in whose turn it lies
    void exchange(Scratch& scratch, int plane, int patch, int place) {
        const size_t pixel = pixel_bytes(plane), across = WIDTH * pixel, beside = MARGIN * pixel;
        char* const columns = scratch.columns[plane - 1].data();
        char* const rows = above(plane, patch);
        for (int y = 0; y < MARGIN; ++y) std::memcpy(scratch.at(place, y, MARGIN, pixel), rows + y * across, across);
        for (int y = 0; y < MARGIN + HEIGHT; ++y) {
            std::memcpy(scratch.at(place, y, 0, pixel), columns + y * beside, beside);
            std::memcpy(columns + y * beside, scratch.at(place, y, WIDTH, pixel), beside);
        }
        for (int y = 0; y < MARGIN; ++y)
            std::memcpy(rows + y * across, scratch.at(place, HEIGHT + y, MARGIN, pixel), across);
    }

    // The last activations times each tap of the last layer, in the other patch.
    void products(Tiles& tiles, Scratch& scratch) {
        const int plane = depth() - 1;
        const size_t pixel = activation_bytes(plane), half = CHANNELS * sizeof(bf16) / 2;
        const bf16* weights = network_.last();
        tiles.load<4>(weights, 64), tiles.load<5>(weights + TILE, 64);
        tiles.load<6>(weights + 2 * TILE, 64), tiles.load<7>(weights + 3 * TILE, 64);
        for (int y = MARGIN; y < MARGIN + HEIGHT; ++y)
            for (int x = MARGIN; x < MARGIN + WIDTH; x += ACROSS) {
                tiles.zero<0>();
                for (int part = 0; part < parts(plane); ++part) {
                    const char* from = scratch.at(plane, y, x, pixel) + part * 2 * half;
                    tiles.load<1>(from, pixel), tiles.load<2>(from + half, pixel);
                    tiles.dot<0, 1, 4>(), tiles.dot<0, 2, 5>(), tiles.dot<0, 1, 6>(), tiles.dot<0, 2, 7>();
                }
                tiles.store<0>(scratch.at(plane + 1, y, x, TAPS_BYTES), TAPS_BYTES);
            }
    }

    void sum(const Scratch& scratch, int band, int patch, float* out, int before) {
        const Area area = inside(depth(), band, patch);
        constexpr ptrdiff_t PIXEL = SLICE;
        for (int y = area.top; y < area.bottom; ++y) {
            const float* rows[3];
            for (int i = 0; i < 3; ++i) rows[i] = reinterpret_cast<float*>(scratch.at(depth(), y + i, 0, TAPS_BYTES));
            float* to = out + ptrdiff_t(band * HEIGHT - depth() + y - before) * width_;
            for (int x = area.left; x < area.right; ++x) {
                float sums[3];
                for (int i = 0; i < 3; ++i) {
                    const float* taps = rows[i] + x * PIXEL + 3 * i;
                    sums[i] = taps[0] + taps[PIXEL + 1] + taps[2 * PIXEL + 2];
                }
                to[patch * WIDTH - depth() + x] = sums[0] + sums[1] + sums[2];
            }
        }
    }
};

}  // namespace
}  // namespace vdsr

using namespace vdsr;

extern "C" {

// Whether this process may use what this was compiled for. Nothing else may be called before it has said so.
int vdsr_amx_permitted() { return Tiles::permitted(); }

// The rest is as in inference.cpp.

Network* vdsr_network(const float* weights, int depth, int) try {
    return new Network(weights, depth);
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_network_free(Network* network) { delete network; }

Stream* vdsr_stream(const Network* network, int height, int width) try {
    return new Stream(*network, height, width);
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_stream_free(Stream* stream) { delete stream; }

int vdsr_stream_push(Stream* stream, const float* rows, int count, float* out, int threads) try {
    return stream->push(rows, count, out, threads);
} catch (const std::bad_alloc&) {
    return -1;
}

int vdsr_tile() { return 1; }

int vdsr_stream_delay(int depth) { return MOST_BANDS * HEIGHT + depth; }
}
